"""Which columns of a CSV file are image, class and box: by the names in its header, or by the rows if it has none.

Corners: xmin, ymin, xmax, ymax, or x1, y1, x2, y2, or left, top, right, bottom; `width` and `height` beside corners are
the image's. Upper left corner and size: x, y (or xmin, ...), width, height (or w, h). Centre and size: x_center,
y_center, width, height. Without a header: `image,x1,y1,x2,y2,class`, and `class,x,y,w,h,image,width,height`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from codetr_cli.annotations.survey import stem_of
from codetr_cli.errors import listed
from codetr_cli.images.image_files import IMAGE_SUFFIXES

DELIMITERS = (",", ";", "\t", "|")
MAX_COLUMNS = 1_000
_ROWS = 20
Form = Literal["xyxy", "xywh", "cxcywh"]

_IMAGE = (
    "filename", "imagefilename", "imagefile", "imagename", "imgname", "imagepath", "imgpath", "filepath", "fname",
    "image", "img", "path", "file", "imageid", "imgid",
)  # fmt: skip
_PATH = ("imagepath", "imgpath", "filepath", "path")
_CLASS = ("class", "classname", "label", "labelname", "category", "categoryname", "objectclass", "objectname", "name")
_CLASS_ID = ("classid", "categoryid", "labelid", "classindex")
_X1, _Y1 = ("xmin", "x1", "left", "xtl"), ("ymin", "y1", "top", "ytl")
_X2, _Y2 = ("xmax", "x2", "right", "xbr"), ("ymax", "y2", "bottom", "ybr")
_X, _Y = ("x", *_X1), ("y", *_Y1)
_CX, _CY = (
    ("xcenter", "xcentre", "centerx", "centrex", "cx", "xc"),
    ("ycenter", "ycentre", "centery", "centrey", "cy", "yc"),
)
_W, _H = ("w", "width"), ("h", "height")
_IMAGE_SIZE = (("imageheight", "imgheight", "imageh", "imgh"), ("imagewidth", "imgwidth", "imagew", "imgw"))
_BOX = ("bbox", "box", "boundingbox", "bndbox")
_SPLIT = ("split", "set", "subset", "partition", "usage")
_SCORE = ("confidence", "score", "conf")
_OPEN_IMAGES = {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"}
_AFFIX = re.compile(r"^(?:bbox|box|bndbox|boundingbox)(?=.)|(?:normalized|normalised|norm|relative|rel)$")
_RELATIVE = re.compile(r"(?:normalized|normalised|norm|relative|rel)$")
UNDERSTOOD = (
    "an image (filename, image, image_id, path), a class (class, label, category) and xmin, ymin, xmax, ymax (or x1, "
    "y1, x2, y2, or x, y, width, height, or x_center, y_center, width, height)"
)


@dataclass(frozen=True)
class Columns:
    """The columns of a file, by their positions.

    Args:
        delimiter: between them.
        has_header: whether the first row names them.
        image: the image's name.
        label: the class.
        box: of four numbers, or the only one with all of them.
        form: what the four numbers are; None if the names do not say.
        relative: whether the names say that they are relative to the image's size.
        size: height and width of the image.
        split: "train", "val" or "test".
        score: confidence, of a detection or of Open Images' raters.
        group: whether the box is around several objects.
        open_images: whether they are those of Open Images.
        label_is_id: whether the class is a number.
        path: of the image, beside its name.
        names: as the header has them.
        problem: why they cannot be used, a phrase; empty if they can.
    """

    delimiter: str
    has_header: bool
    image: int
    label: int = -1
    box: tuple[int, ...] = ()
    form: Form | None = None
    relative: bool = False
    size: tuple[int, int] | None = None
    split: int | None = None
    score: int | None = None
    group: int | None = None
    open_images: bool = False
    label_is_id: bool = False
    path: int | None = None
    names: tuple[str, ...] = ()
    problem: str = ""

    @property
    def last(self) -> int:
        """The position of the last column that is needed."""
        return max(self.image, self.label, *self.box, *(self.size or ()), -1)


def find_columns(head: str) -> Columns | None:
    """The columns of a file by its first lines; None if they are no boxes."""
    tables = [(delimiter, first_rows(head, delimiter)) for delimiter in DELIMITERS]
    tables = [(delimiter, rows) for delimiter, rows in tables if rows and len(rows[0]) >= 3]
    # With the right delimiter, rows have as many columns as the header; of several, the one with the most.
    tables.sort(key=lambda table: (_is_even(table[1]), len(table[1][0])), reverse=True)
    refused = None
    for delimiter, rows in tables:
        columns = _by_header(delimiter, rows[0]) or _by_rows(delimiter, rows)
        if columns is not None and not columns.problem:
            return columns
        refused = refused or columns
    return refused


def first_rows(head: str, delimiter: str) -> list[list[str]]:
    """The first rows, without empty ones; the last line may be cut and is not used if there are others."""
    lines = list(io.StringIO(head, newline=""))
    if len(lines) > 1 and len(head) > 10_000:
        lines = lines[:-1]
    rows = []
    try:
        for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True):
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row[:MAX_COLUMNS]])
            if len(rows) == _ROWS:
                break
    except csv.Error:
        pass  # a cell is longer than csv's limit: the rows before it decide
    return rows


def number(text: str) -> float:
    """The number in a cell; NaN if there is none."""
    try:
        return float(text) if len(text) <= 100 else math.nan
    except ValueError:
        return math.nan


def is_image_name(text: str) -> bool:
    """Whether a cell has the name of an image file."""
    suffix = text[len(stem_of(text)) :].lower()
    return suffix in IMAGE_SUFFIXES


def first_cells(columns: Columns, head: str) -> Iterator[list[str]]:
    """The first rows that name an image."""
    rows = first_rows(head, columns.delimiter)[int(columns.has_header) :]
    return (row for row in rows if len(row) > columns.image and row[columns.image])


def has_scores(columns: Columns, head: str) -> bool:
    """Whether the first rows are detections of a model: they have scores other than 1, and are not Open Images'."""
    if columns.score is None or columns.open_images:
        return False
    rows = first_rows(head, columns.delimiter)[int(columns.has_header) :]
    return any(row[columns.score] not in ("", "1") and number(row[columns.score]) != 1 for row in rows
               if len(row) > columns.score)  # fmt: skip


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    return all(len(row) == len(rows[0]) for row in rows)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# -------------------------------------------------------------------------------------------------------------- header


def _by_header(delimiter: str, header: Sequence[str]) -> Columns | None:
    if any(not math.isnan(number(cell)) for cell in header):
        return None
    names = [_plain(cell) for cell in header]
    found = _Names(names)
    image = found.first(_IMAGE)
    box = found.box()
    if image is None or (box is None and found.count_of_box() < 2):
        return None
    label, label_is_id = found.first(_CLASS), False
    if label is None or label == image:
        label, label_is_id = found.first(_CLASS_ID), True
    kinds = tuple(header)
    repeated = listed([cell for cell, name in zip(header, names, strict=True) if name and names.count(name) > 1], 6)
    if repeated or box is None or label is None:
        missing = f"the columns {repeated} are there twice" if repeated else f"its columns are {listed(header, 20)}"
        problem = f"{missing}; understood are {UNDERSTOOD}. Rename the columns"
        return Columns(delimiter, True, image, names=kinds, problem=problem)
    positions, form, relative = box
    size = found.pair(_IMAGE_SIZE[0], _IMAGE_SIZE[1])
    if size is None:
        size = found.pair(("height",), ("width",))
        size = size if size and not set(size) & set(positions) else None
    open_images = set(names) >= _OPEN_IMAGES and bool(set(names) & {"isgroupof", "isoccluded", "confidence", "source"})
    return Columns(
        delimiter,
        has_header=True,
        image=image,
        label=label,
        box=positions,
        form=form,
        relative=relative or open_images,
        size=size,
        split=found.first(_SPLIT),
        score=found.first(_SCORE),
        group=found.first(("isgroupof", "iscrowd")),
        open_images=open_images,
        label_is_id=label_is_id,
        path=found.first(_PATH),
        names=kinds,
    )


class _Names:
    """Positions of columns by their plain names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._at = {name: index for index, name in reversed(list(enumerate(names))) if name}
        self._relative: set[int] = set()
        self._boxes: dict[str, int] = dict(self._at)
        for name, index in self._at.items():
            short = name
            while (shorter := _AFFIX.sub("", short)) != short:
                short = shorter
            if short != name:
                self._boxes.setdefault(short, index)
                self._relative.update({index} if _RELATIVE.search(name) else ())

    def first(self, names: Sequence[str]) -> int | None:
        return next((self._at[name] for name in names if name in self._at), None)

    def pair(self, first: Sequence[str], second: Sequence[str]) -> tuple[int, int] | None:
        one, two = self.first(first), self.first(second)
        return None if one is None or two is None else (one, two)

    def count_of_box(self) -> int:
        every = {*_X, *_Y, *_X2, *_Y2, *_CX, *_CY, "w", "h"}
        return len(every & set(self._boxes))

    def box(self) -> tuple[tuple[int, ...], Form | None, bool] | None:
        """The columns of the box, their form, and whether they are relative to the image's size."""
        forms: tuple[tuple[Form, tuple[Sequence[str], ...]], ...] = (
            ("xyxy", (_X1, _Y1, _X2, _Y2)),
            ("cxcywh", (_CX, _CY, _W, _H)),
            ("xywh", (_X, _Y, _W, _H)),
        )
        for form, kinds in forms:
            found = [next((self._boxes[name] for name in names if name in self._boxes), None) for names in kinds]
            positions = tuple(index for index in found if index is not None)
            if len(positions) == 4:
                return positions, form, self._relative >= set(positions)
        whole = next((self._at[name] for name in _BOX if name in self._at), None)
        return None if whole is None else ((whole,), None, False)


# ------------------------------------------------------------------------------------------------------------ no header


def _by_rows(delimiter: str, rows: Sequence[Sequence[str]]) -> Columns | None:
    if _are_mostly(_is_simple, rows):
        return Columns(delimiter, has_header=False, image=0, label=5, box=(1, 2, 3, 4), form="xyxy")
    if _are_mostly(_is_reversed, rows):
        return Columns(delimiter, False, image=5, label=0, box=(1, 2, 3, 4), form="xywh", size=(7, 6))
    # The first row may be a header of unknown names.
    for start in range(min(2, len(rows))):
        row = rows[start]
        numbers = sum(not math.isnan(number(cell)) for cell in row)
        image = next((index for index, cell in enumerate(row) if is_image_name(cell)), None)
        if image is not None and numbers >= 4 and len(row) >= 6:
            problem = (
                f"its first row is {listed(rows[0], 20)}; understood are rows of image,x1,y1,x2,y2,class without a "
                f"header, or a header that names {UNDERSTOOD}. Add such a header or rename its columns"
            )
            return Columns(delimiter, bool(start), image, names=tuple(rows[0]), problem=problem)
    return None


def _are_mostly(kind: Callable[[Sequence[str]], bool], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row is of a kind, and half of them or more are: the others are wrong rows."""
    return kind(rows[0]) and 2 * sum(map(kind, rows)) >= len(rows)


def _is_simple(row: Sequence[str]) -> bool:
    """Whether a row is `image,x1,y1,x2,y2,class`, or `image,,,,,` of an image without objects."""
    if len(row) != 6 or not is_image_name(row[0]):
        return False
    numbers = [not math.isnan(number(cell)) for cell in row[1:5]]
    return (all(numbers) and row[5] != "") or not any(row[1:])


def _is_reversed(row: Sequence[str]) -> bool:
    """Whether a row is `class,x,y,w,h,image,width,height`."""
    return (
        len(row) == 8 and is_image_name(row[5]) and not any(math.isnan(number(cell)) for cell in (*row[1:5], *row[6:]))
    )
