"""CSV and TSV files with a box a row, simple ones and those of Open Images. Which columns: see `csv_columns`.

Coordinates are pixels unless the names of the columns say otherwise (`xmin_norm`) or they are Open Images'; where none
is above 1, they are refused until `data.box_format` states what they are. A row without coordinates is an image without
objects. Training, validation and test images: by a column `split`, else by the name of the CSV file (train.csv) or its
folder, else by the folder of the image. Files whose rows have scores are detections, which are not read.

Open Images: rows with Confidence 0 state that a class is not in an image and are not used; boxes of groups are crowds;
the names of classes are those of class-descriptions-boxable.csv, if it is there; rows of images that are not in the
folder are skipped, since the published files list more images than most users download.

Rows are read one by one and kept as numbers: about 50 bytes a row.
"""

from __future__ import annotations

import csv
import io
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np

from codetr_cli.annotations.encodings import decode_text
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats.assembly import (
    AnnotatedImage,
    Content,
    NamedBox,
    assemble,
    class_name,
)
from codetr_cli.formats.csv_columns import (
    Columns,
    find_columns,
    first_cells,
    first_rows,
    has_scores,
    number,
)
from codetr_cli.formats.csv_images import RowImages, same_name, stated_names, tables_without_images
from codetr_cli.formats.csv_rows import Row, TableReader
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import MAX_CLASSES, ParsedDataset
from codetr_cli.formats.linked_folders import files_and_images, with_links
from codetr_cli.formats.split_names import split_of
from codetr_cli.images.image_header import Size
from codetr_cli.reading import read_bytes

KEY = "csv"
TITLE = "CSV"
MAX_ROWS = 20_000_000
"""Open Images has 14.6 million boxes."""
MAX_FILES = 1_000
MAX_CLASS_BYTES = 8 << 20
_CLASS_FILE = re.compile(r"(?i)class|label|categor")


def evidence(survey: Survey) -> str:
    """The file that shows the layout; empty if there is none."""
    return next(_tables(with_links(survey)), ("", None))[0]


def _tables(survey: Survey) -> Iterator[tuple[str, Columns]]:
    """The files that have boxes of images in the folder."""
    images: RowImages | None = None
    for name in survey.with_suffix(".csv", ".tsv")[:MAX_FILES]:
        head = survey.head(name)
        columns = find_columns(head)
        if columns is None or has_scores(columns, head):
            continue
        images = images or RowImages(survey.images)
        # Of Open Images, a part of the images may be there, and the first ones not.
        found = (images.find(columns, cells, name, split_of(name) or "") for cells in first_cells(columns, head))
        if (columns.open_images and len(images)) or any(found):
            yield name, columns


def why_none(survey: Survey) -> str:
    """Why files with boxes are none of a data set, a sentence; empty if there are none."""
    return tables_without_images(survey, survey.with_suffix(".csv", ".tsv")[:MAX_FILES])


def files_read(survey: Survey, names: NameRule) -> Iterable[Path]:
    """The files that decide the result of `read`, except the content of images."""
    return files_and_images(survey, ".csv", ".tsv")


def read(survey: Survey, names: NameRule, options: ReadOptions) -> ParsedDataset:
    """Reads all tables of the folder.

    Args:
        survey: of the data set's folder.
        names: not needed: images are looked for in the folder only.
        options: how it is read.

    Raises:
        DatasetError: columns or rows that are not understood, or images that are not there.
    """
    survey = with_links(survey)
    tables = sorted(_tables(survey), key=lambda table: not split_of(table[0]))  # before a file of all images
    content = Content(TITLE, survey, [], tables[0][0] if len(tables) == 1 else "the CSV files")
    rows = _Rows(content, RowImages(survey.images, partial(_stated, survey, tables, options)))
    listed_classes = _listed_classes(survey, {name for name, _ in tables}, rows)
    for name, columns in tables:
        rows.read(name, columns, options)
    for name in survey.with_suffix(".csv", ".tsv"):
        if name not in rows.used_files:
            content.findings.add("other_file", content.place, name)
    content.images = rows.images()
    content.class_names = _class_names(rows, listed_classes, content.place)
    return assemble(content, options)


def _stated(survey: Survey, tables: Sequence[tuple[str, Columns]], options: ReadOptions) -> Iterator[tuple[str, str]]:
    """The names of images in all tables but Open Images', which have no folders."""
    for name, columns in tables:
        if not columns.open_images and not columns.problem:
            last = None
            for row in TableReader(survey.folder / name, name, columns, options).rows():
                if row.image != last or columns.path is not None:
                    yield from stated_names(columns, row.cells, name)
                last = row.image


# ------------------------------------------------------------------------------------------------------------- classes


def _listed_classes(survey: Survey, tables: set[str], rows: _Rows) -> dict[int, str]:
    """The classes of a file with a name and a number a row, by number. Open Images' names go to `rows`."""
    classes: dict[int, str] = {}
    for name in survey.with_suffix(".csv", ".tsv")[:MAX_FILES]:
        if name in tables or not _CLASS_FILE.search(name.rpartition("/")[2]):
            continue
        head = survey.head(name)
        delimiter = max((",", ";", "\t", "|"), key=lambda each: len((first_rows(head, each) or [[]])[0]))
        if any(len(row) != 2 for row in first_rows(head, delimiter)):
            continue
        path = survey.folder / name
        pairs = _pairs(path, delimiter)
        if all(key.startswith("/m/") or not index for index, (key, _) in enumerate(pairs)) and len(pairs) > 1:
            rows.descriptions.update(pair for pair in pairs if pair[0].startswith("/m/"))
            rows.used_files.add(name)
            continue
        numbers = [(number(value), key) for key, value in pairs]
        if numbers and math.isnan(numbers[0][0]):  # a header
            numbers = numbers[1:]
        if not numbers or any(value != value or value % 1 or not 0 <= value < 1e6 for value, _ in numbers):
            continue
        if classes:  # another part's list of the same classes
            rows.used_files |= {name} if classes == {int(value): key for value, key in numbers} else set()
            continue
        rows.used_files.add(name)
        for value, key in numbers:
            if int(value) in classes:
                raise DatasetError(f"{path} has the number {int(value)} twice. Give every class its own")
            classes[int(value)] = class_name(key, f"{path}: class {int(value)}")
    return classes


def _pairs(path: Path, delimiter: str) -> list[tuple[str, str]]:
    try:
        text = decode_text(read_bytes(path, MAX_CLASS_BYTES))
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}. Save it again") from error
    if len(rows) > MAX_CLASSES + 1 or any(len(row) != 2 for row in rows):
        raise DatasetError(f"{path} is no list of up to {MAX_CLASSES:,} classes, each with one name. Fix or remove it")
    return [(row[0].strip(), row[1].strip()) for row in rows]


def _class_names(rows: _Rows, classes: dict[int, str], place: str) -> list[str]:
    """The names in the order of their ids; those of `rows` are replaced by the listed ones where these are numbers."""
    used = rows.class_names
    if not classes:
        return sorted(set(used))
    if rows.labels_are_ids:
        known = {f"{index}": name for index, name in classes.items()}
        rows.class_names = used = [known.get(name, name) for name in used]
    unknown = sorted(set(used) - set(classes.values()))
    if unknown:
        raise DatasetError(f"{place} has the class {unknown[0]:.80}, which the list of classes does not have. Add it")
    return list(dict.fromkeys(classes[index] for index in sorted(classes)))


# ---------------------------------------------------------------------------------------------------------------- rows


@dataclass(slots=True)
class _Image:
    """An image of the tables: which table its boxes are from, and how this names it."""

    name: str
    where: str
    split: str
    relative: bool
    stated: str
    is_exact: bool
    size: Size = (0, 0)


class _Rows:
    """The rows of all tables, as columns of numbers.

    Attributes:
        class_names: by number, in the order of their first use.
        descriptions: names of Open Images' classes.
        labels_are_ids: whether classes are numbers in a table.
        used_files: names of the files that were read.
    """

    def __init__(self, content: Content, finder: RowImages) -> None:
        self.class_names: list[str] = []
        self.descriptions: dict[str, str] = {}
        self.labels_are_ids = False
        self.used_files: set[str] = set()
        self._content, self._finder = content, finder
        self._images: list[_Image] = []
        self._by_key: dict[tuple[str, str], int] = {}
        self._classes: dict[str, int] = {}
        self._table: tuple[array[int], array[int], array[float], bytearray] = (
            array("i"),
            array("i"),
            array("d"),
            bytearray(),
        )
        self._rows = 0

    def read(self, name: str, columns: Columns, options: ReadOptions) -> None:
        """Adds the rows of a file."""
        path = self._content.survey.folder / name
        if columns.problem:
            raise DatasetError(f"{path} has columns that are not understood: {columns.problem}")
        self.used_files.add(name)
        self.labels_are_ids |= columns.label_is_id
        reader = TableReader(path, name, columns, options)
        indices: dict[tuple[str, str, str], int | None] = {}
        for row in reader.rows():
            beside = row.cells[columns.path] if columns.path is not None and len(row.cells) > columns.path else ""
            key = (row.split, row.image, beside)
            if key not in indices:
                indices[key] = self._index(row, name, reader)
            index = indices[key]
            if index is None:
                if columns.open_images:
                    self._content.findings.add("row_without_image", self._content.place, f"{name}: {row.image:.200}")
                continue
            if row.label is not None:
                self._add(index, row)
        reader.check_unit()
        if reader.absent_classes:
            self._content.findings.add("absent_class", self._content.place, name, reader.absent_classes)

    def _index(self, row: Row, table: str, reader: TableReader) -> int | None:
        """The number of an image that a table has not named so far; None if its rows are not used."""
        image = self._finder.find(reader.columns, row.cells, table, row.split)
        if image is None:
            if not reader.columns.open_images:
                self._content.absent.append(f"{row.image:.200} ({table}, line {reader.line})")
            return None
        stated = " ".join(stated for stated, _ in stated_names(reader.columns, row.cells, table))
        known = self._by_key.get((row.split, image))
        if known is not None:
            first = self._images[known]
            is_exact = self._finder.is_exact(reader.columns, row.cells, table)
            if first.where == table and ((is_exact and first.is_exact) or same_name(first.stated, stated)):
                return known  # under another spelling
            self._content.findings.add("second_annotation", self._content.place, f"{table}: {image}")
            return None
        self._by_key[row.split, image] = len(self._images)
        is_exact = self._finder.is_exact(reader.columns, row.cells, table)
        self._images.append(_Image(image, table, row.split, reader.relative, stated, is_exact, reader.size(row)))
        return len(self._images) - 1

    def _add(self, index: int, row: Row) -> None:
        self._rows += 1
        if self._rows > MAX_ROWS:
            raise DatasetError(f"{self._content.place}: more than {MAX_ROWS:,} boxes, the limit. Use a part of them")
        label = self._classes.get(row.label or "")
        if label is None:
            if len(self._classes) >= MAX_CLASSES:
                raise DatasetError(f"{self._content.place}: more than {MAX_CLASSES:,} classes. Check the class column")
            label = self._classes[row.label or ""] = len(self._classes)
            self.class_names.append(self.descriptions.get(row.label or "", row.label or ""))
        images, labels, corners, crowds = self._table
        images.append(index)
        labels.append(label)
        corners.extend(row.corners)
        crowds.append(row.is_crowd)

    def images(self) -> list[AnnotatedImage]:
        """The images with their boxes, which are made when they are used."""
        images = np.frombuffer(self._table[0], np.int32) if self._table[0] else np.zeros(0, np.int32)
        order = np.argsort(images, kind="stable").astype(np.int32)
        counts = np.bincount(images, minlength=len(self._images))
        ends = np.cumsum(counts)
        return [
            AnnotatedImage(
                image.name,
                image.where,
                _Boxes(self, order[end - count : end]),
                size=image.size,
                split=image.split,
                relative=image.relative,
            )
            for image, count, end in zip(self._images, counts.tolist(), ends.tolist(), strict=True)
        ]

    def box(self, row: int) -> NamedBox:
        """The box of a row."""
        _, labels, corners, crowds = self._table
        x1, y1, x2, y2 = corners[4 * row : 4 * row + 4]
        return NamedBox(self.class_names[labels[row]], (x1, y1, x2, y2), bool(crowds[row]))


class _Boxes(Sequence[NamedBox]):
    """The boxes of an image."""

    __slots__ = ("_order", "_rows")

    def __init__(self, rows: _Rows, order: np.ndarray) -> None:
        self._rows, self._order = rows, order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> NamedBox: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NamedBox]: ...
    def __getitem__(self, index: int | slice) -> NamedBox | Sequence[NamedBox]:
        if isinstance(index, slice):
            return [self._rows.box(int(row)) for row in self._order[index]]
        return self._rows.box(int(self._order[index]))
