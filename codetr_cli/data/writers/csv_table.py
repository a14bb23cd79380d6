"""CSV: annotations.csv with a box a row, classes.csv with the classes and their numbers, and a folder a split.

Corners are in pixels, edges have no width, six decimals. `filename` is relative to the table, and `width` and `height`
are those of the image; an image without objects is a row without class and corners. Crowd regions have `iscrowd` 1.
There are no outlines.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from codetr_cli.data.writers.content import (
    LayoutWriter,
    WrittenClasses,
    WrittenImage,
    WrittenObject,
    clipped_objects,
    number,
    one_polygon,
    place,
)

COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_END = "\r\n"


class _Lines:
    """Ends rows of `csv.writer` with a line feed only."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(f"{row.removesuffix(_END)}\n")


def row_writer(file: IO[str]) -> Any:
    """A `csv.writer` that quotes carriage returns, too, which readers take for the end of a row."""
    return csv.writer(_Lines(file), lineterminator=_END)  # quoted is what has a character of the end


class CsvWriter(LayoutWriter):
    """Writes the layout, see `content.LayoutWriter`."""

    def __init__(self, folder: Path, classes: WrittenClasses, counts: Counter[str], *, outlines: bool = False) -> None:
        super().__init__(folder, classes, counts, outlines=outlines)
        self._file = (folder / "annotations.csv").open("w", encoding="utf-8", newline="")
        self._rows = row_writer(self._file)
        self._rows.writerow((*COLUMNS, "iscrowd", "split"))

    def image_path(self, split: str, name: str) -> str:
        """Where the file of an image is."""
        return place(split, name)

    def add(self, image: WrittenImage) -> int:
        """Writes the rows of an image."""
        name = self.image_path(image.split, image.name)
        count = 0
        for item, cells in table_rows(image, name, self.classes.names, self.counts):
            one_polygon(item, image, self.counts, wanted=False)
            self._rows.writerow((*cells, int(item.crowd), image.split))
            count += 1
        if not count:
            self._rows.writerow((*empty_row(image, name), "", image.split))
        return count

    def finish(self) -> None:
        """Writes the list of classes, which keeps those without objects and their order."""
        self._file.close()
        with (self.folder / "classes.csv").open("w", encoding="utf-8", newline="") as file:
            rows = row_writer(file)
            rows.writerow(("class", "id"))
            rows.writerows((name, label) for label, name in enumerate(self.classes.names))

    def close(self) -> None:
        """Closes the table."""
        self._file.close()


def table_rows(
    image: WrittenImage, file_name: str, names: Sequence[str], counts: Counter[str]
) -> Iterator[tuple[WrittenObject, list[Any]]]:
    """The objects of an image that have a box in it, each with its cells of `COLUMNS`."""
    for item, corners in clipped_objects(image, counts):
        cells = [file_name, image.width, image.height, names[item.label], *(number(value) for value in corners)]
        yield item, cells


def empty_row(image: WrittenImage, file_name: str) -> list[Any]:
    """The cells of `COLUMNS` of an image without objects."""
    return [file_name, image.width, image.height, "", "", "", "", ""]
