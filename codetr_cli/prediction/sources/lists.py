"""Lists of images in files: text, an image a line, or a column of a CSV or Parquet table.

A list may come from a stranger: it is read line by line, within limits, and only names images.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator
from typing import IO

from codetr_cli.errors import ConfigError, DatasetError, listed, nearest
from codetr_cli.images.image_files import suffix_of
from codetr_cli.prediction.parquet import import_pyarrow

TEXT_SUFFIXES = (".txt", ".lst", ".list")
TABLE_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
LIST_SUFFIXES = (*TEXT_SUFFIXES, *TABLE_SUFFIXES, *PARQUET_SUFFIXES)
COLUMNS = (
    *("path", "file_path", "filepath", "file", "file_name", "filename", "image_path", "img_path", "image", "img"),
    *("image_file", "image_name", "url", "image_url", "img_url", "uri", "image_uri"),
)
"""Usual names of the column of the images, those that name a place best first."""
MAX_LINE = 1 << 16
"""Bytes."""
MAX_COLUMNS = 10_000
BATCH_ROWS = 10_000


def entries(file: IO[bytes], name: str, column: str | None) -> Iterator[str]:
    """The images that a list names, as it spells them.

    Args:
        file: open for reading.
        name: of the file, which ends with one of `LIST_SUFFIXES`.
        column: of a table; None: a usual one.

    Raises:
        DatasetError: it is not such a list.
        ConfigError: the table has no such column, or none with a usual name.
        ResourceError: Parquet cannot be read here.
    """
    suffix = suffix_of(name)
    if suffix in PARQUET_SUFFIXES:
        yield from _parquet(file, name, column)
    elif suffix in TABLE_SUFFIXES:
        yield from _table(_lines(file, name), name, column, "\t" if suffix == ".tsv" else None)
    elif column is not None:
        raise ConfigError(f"--column {column} is of no use here: {name} is a text list, without columns")
    else:
        yield from filter(None, map(str.strip, _lines(file, name)))


def _lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Lines with their ends."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DatasetError(f"{name} is not a list of images: line {number:,} has more than {MAX_LINE:,} bytes")
        if b"\0" in line:
            raise DatasetError(f"{name} is not a list of images: line {number:,} has zero bytes, as no text has")
        text = line.decode("utf-8", "surrogateescape")
        yield text.removeprefix("\ufeff") if number == 1 else text


def _table(lines: Iterator[str], name: str, column: str | None, delimiter: str | None) -> Iterator[str]:
    first = next(lines, "")
    delimiter = delimiter or max(",;\t|", key=first.count)
    try:
        header = next(csv.reader([first], delimiter=delimiter), [])
        position = _position([field.strip() for field in header], name, column)
        for row in csv.reader(lines, delimiter=delimiter):
            if len(row) > position and row[position].strip():
                yield row[position].strip()
    except csv.Error as error:
        raise DatasetError(f"{name} cannot be read as a table: {error}") from error


def _position(header: list[str], name: str, column: str | None) -> int:
    """The number of the column of the images."""
    header = header[:MAX_COLUMNS]
    if column is not None:
        if column not in header:
            raise ConfigError(f"{name} has no column {column!r}: {nearest(column, header)}")
        return header.index(column)
    folded = [field.casefold() for field in header]
    for usual in COLUMNS:
        if usual in folded:
            return folded.index(usual)
    raise ConfigError(f"which column of {name} names the images? Give it with --column: {listed(header, 12)}")


def _parquet(file: IO[bytes], name: str, column: str | None) -> Iterator[str]:
    arrow = import_pyarrow()
    try:
        table = importlib.import_module("pyarrow.parquet").ParquetFile(file)
        schema = table.schema_arrow
        found = schema.names[_position(list(schema.names), name, column)]
        kind = schema.field(found).type
        if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
            raise ConfigError(f"column {found!r} of {name} is of type {kind}, not text: choose another with --column")
        for batch in table.iter_batches(BATCH_ROWS, columns=[found]):
            yield from (text.strip() for text in batch.column(0).to_pylist() if text and text.strip())
    except (arrow.ArrowException, OSError) as error:
        raise DatasetError(f"{name} cannot be read as Parquet: {error}") from error
