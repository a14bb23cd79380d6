"""The rows of a CSV file with a box a row, read one by one. Which columns: see `csv_columns`."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO, TypeAlias

from codetr_cli.annotations.encodings import decode_text
from codetr_cli.errors import DatasetError, shown
from codetr_cli.formats.assembly import class_name, split_word
from codetr_cli.formats.csv_columns import Columns, number
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import MAX_CLASSES, MAX_CORNER, MAX_SIDE
from codetr_cli.formats.split_names import split_of
from codetr_cli.images.image_header import Size
from codetr_cli.reading import open_file

MAX_RELATIVE = 1.5
"""Relative coordinates may be a little beyond the edge; those of objects in pixels are larger."""
MAX_LINE = 100_000
"""Characters of a line."""
MAX_WHOLE_BYTES = 64 << 20
"""Larger files are decoded piece by piece, and have to be UTF-8."""
Corners: TypeAlias = tuple[float, float, float, float]


class Row(NamedTuple):
    """A row: `label` is None for an image without objects, `cells` are the texts of all columns."""

    image: str
    split: str
    label: str | None
    corners: Corners
    is_crowd: bool
    cells: list[str]


@dataclass
class TableReader:
    """Reads the rows of one file.

    Attributes:
        line: number of the line that was read last.
        absent_classes: number of rows that state that a class is not in an image.
    """

    path: Path
    name: str
    columns: Columns
    options: ReadOptions
    line: int = 0
    absent_classes: int = 0
    _largest: float = 0.0
    _labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stated = self.options.box_format
        form = self.columns.form
        plain = stated.removeprefix("relative-") if stated else None
        if form is None and plain is None:
            raise DatasetError(
                f"{self.path} has boxes in one column, {self.columns.names[self.columns.box[0]]}, which does not say "
                "what its numbers are. State it with --set data.box_format=xyxy (two corners), xywh (upper left corner "
                "and size) or cxcywh (centre and size); relative-xyxy etc. if they are relative to the image's size"
            )
        if form is not None and plain is not None and form != plain:
            raise DatasetError(
                f"data.box_format is {stated}, but the columns of {self.path} are {form}. Remove the setting or rename "
                "the columns"
            )
        self._form = form or plain
        self.relative = self.columns.relative or (stated or "").startswith("relative-")

    def rows(self) -> Iterator[Row]:
        """The rows, without the header and empty ones."""
        columns, split = self.columns, split_of(self.name) or ""
        last, first = columns.last, columns.has_header
        with self._open() as text:
            reader = csv.reader(self._lines(text), delimiter=columns.delimiter, skipinitialspace=True)
            try:
                for cells in reader:
                    if not any(cells):
                        continue
                    if first:
                        first = False
                        continue
                    self.line = reader.line_num
                    if len(cells) <= last:
                        raise self._error(f"{len(cells)} columns, {last + 1} are needed")
                    if columns.open_images and columns.score is not None and number(cells[columns.score]) == 0:
                        self.absent_classes += 1
                        continue
                    yield self._row(cells, split)
            except csv.Error as error:
                raise DatasetError(f"{self.path}, line {reader.line_num}: {error}. Save it again") from error
            except UnicodeDecodeError as error:
                raise DatasetError(
                    f"{self.path} is not UTF-8 after line {reader.line_num}: save it as UTF-8"
                ) from error

    def check_unit(self) -> None:
        """Raises a DatasetError if all coordinates are about 1 or below, and nothing says that they are relative."""
        if 0 < self._largest <= MAX_RELATIVE and not self.relative and self.options.box_format is None:
            about = "about " if self._largest > 1 else ""
            raise DatasetError(
                f"{self.path}: all coordinates are {about}between 0 and 1, and nothing says whether they are relative "
                f"to the image's size. If so, state it with --set data.box_format=relative-{self._form}; if they are "
                f"pixels, with --set data.box_format={self._form}"
            )

    @contextmanager
    def _open(self) -> Iterator[TextIO]:
        try:
            with open_file(self.path) as file:
                if os.fstat(file.fileno()).st_size <= MAX_WHOLE_BYTES:
                    yield io.StringIO(decode_text(file.read(MAX_WHOLE_BYTES + 1)), newline="")
                else:
                    yield io.TextIOWrapper(file, "utf-8-sig", newline="")
        except OSError as error:
            raise DatasetError(f"cannot read {self.path}: {error.strerror}. Replace or remove it") from error
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise DatasetError(f"{self.path}: {error}") from error

    def _lines(self, text: TextIO) -> Iterator[str]:
        while line := text.readline(MAX_LINE):
            if len(line) == MAX_LINE and not line.endswith("\n"):
                raise DatasetError(f"{self.path} has a line of more than {MAX_LINE:,} characters. Save it again")
            yield line

    def size(self, row: Row) -> Size:
        """The size of the image that a row states; (0, 0) if it states none that is possible."""
        if self.columns.size is None:
            return (0, 0)
        height, width = (number(row.cells[index]) for index in self.columns.size)
        return (int(height), int(width)) if 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE else (0, 0)

    def _row(self, cells: list[str], split: str) -> Row:
        columns = self.columns
        image = cells[columns.image].strip()
        if not image:
            raise self._error("no image")
        if columns.split is not None and len(cells) > columns.split and (word := cells[columns.split].strip()):
            split = split_word(word)
            if not split:
                raise self._error(f"{columns.names[columns.split]} = {shown(word)} instead of train, val or test")
        texts = self._numbers(cells)
        if not any(texts):
            label = cells[columns.label].strip()
            if label and not columns.has_header:
                raise self._error(f"the class {shown(label)}, but no coordinates")
            return Row(image, split, None, (0, 0, 0, 0), False, cells)
        text = cells[columns.label]
        name = self._labels.get(text) or self._label(text)
        is_crowd = (
            columns.group is not None
            and len(cells) > columns.group
            and cells[columns.group].strip().lower() in ("1", "true")
        )
        return Row(image, split, name, self._corners(texts), is_crowd, cells)

    def _label(self, text: str) -> str:
        name = class_name(text, f"{self.path}, line {self.line}:")
        if self.columns.label_is_id and number(name) % 1 == 0:
            name = f"{int(number(name))}"
        if len(self._labels) < MAX_CLASSES:
            self._labels[text] = name
        return name

    def _numbers(self, cells: list[str]) -> list[str]:
        """The texts of the four numbers."""
        if len(self.columns.box) == 4:
            return [cells[index].strip() for index in self.columns.box]
        text = cells[self.columns.box[0]].strip().strip("[](){}").strip()
        return re.split(r"[,;\s]+", text) if text else []

    def _corners(self, texts: list[str]) -> Corners:
        try:
            a, b, c, d = map(float, texts)
        except ValueError:
            a = b = c = d = math.nan
        largest = max(abs(a), abs(b), abs(c), abs(d))
        if not largest <= MAX_CORNER or a != a or b != b or c != c or d != d:
            raise self._error(f"the box {shown(texts)} instead of four numbers")
        self._largest = max(self._largest, largest)
        if self._form == "xyxy":
            if c < a or d < b:
                raise self._error(f"swapped corners: {a:g}, {b:g}, {c:g}, {d:g}")
            return a, b, c, d
        if c < 0 or d < 0:
            raise self._error(f"width {c:g} and height {d:g}, which cannot be negative")
        if self._form == "xywh":
            return a, b, a + c, b + d
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2

    def _error(self, problem: str) -> DatasetError:
        return DatasetError(f"{self.path}, line {self.line}: {problem}. Fix the row or remove it")
