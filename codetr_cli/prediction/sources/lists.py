"""Lists of images in files: text, an image a line, or a column of a CSV or Parquet table.

A list may come from a stranger: it is read line by line, within limits, and only names images.
"""

from __future__ import annotations

import codecs
import csv
import importlib
from collections.abc import Iterator
from typing import IO, Any

from codetr_cli.errors import ConfigError, DatasetError, listed, nearest, shown
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
BATCH_ROWS = 1_000


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
        found = _parquet(file, name, column)
    elif suffix in TABLE_SUFFIXES:
        found = _table(_lines(file, name), name, column, "\t" if suffix == ".tsv" else None)
    elif column is not None:
        raise ConfigError(f"--column {column} is of no use here: {name} is a text list, without columns")
    else:
        found = _lines(file, name)
    for entry in filter(None, map(str.strip, found)):
        if entry.rpartition("/")[2] in ("", ".", "..") and "://" not in entry:
            raise DatasetError(f"{name} names a folder, {entry}: it needs the images in it, one by one")
        yield entry


def _lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Lines with their ends."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DatasetError(f"{name} is not a list of images: line {number:,} has more than {MAX_LINE:,} bytes")
        if b"\0" in line:
            hint = (
                ": save it as UTF-8" if number == 1 and line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ""
            )
            raise DatasetError(f"{name} is not a list of images: line {number:,} has zero bytes, as no text has{hint}")
        text = line.decode("utf-8", "surrogateescape")
        yield text.removeprefix("\ufeff") if number == 1 else text


def _table(lines: Iterator[str], name: str, column: str | None, delimiter: str | None) -> Iterator[str]:
    first = next(lines, "")
    delimiter = delimiter or max(",;\t|", key=first.count)
    try:
        header = next(csv.reader([first], delimiter=delimiter, strict=True), [])
        position = _position([field.strip() for field in header], name, column)
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
            entry = row[position].strip() if len(row) > position else ""
            if "\n" in entry:  # the images of these lines would be lost
                raise DatasetError(f"{name} has a quote that is not closed before {shown(entry[:80])}")
            yield entry
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
        if schema.names.count(found) > 1:
            raise DatasetError(f"{name} has several columns {found!r}: name them differently")
        kind = schema.field(found).type
        if not _is_text(arrow.types, kind.value_type if arrow.types.is_dictionary(kind) else kind):
            raise ConfigError(f"column {found!r} of {name} is of type {kind}, not text: choose another with --column")
        for batch in table.iter_batches(BATCH_ROWS, columns=[found]):
            for text in batch.column(0).to_pylist():
                if text and (len(text) > MAX_LINE or "\0" in text):
                    raise DatasetError(f"{name} is not a list of images: it has texts that no name can be")
                yield text or ""
    except (arrow.ArrowException, OSError) as error:
        raise DatasetError(f"{name} cannot be read as Parquet: {error}") from error


def _is_text(types: Any, kind: Any) -> bool:
    return any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_string_view))
