"""The rows of YOLO's label files: `class cx cy w h`, relative to the image's width and height, and what may follow.

A row of 5 columns is a box. Longer rows mean different things that their numbers alone cannot distinguish:

    outline    class x y x y ...                   any number of points; also 4 corners of a turned box (OBB)
    keypoints  class cx cy w h x y [v] x y [v] ... K points of D numbers each, the same in the whole data set
    others     class cx cy w h score [track]       saved predictions

With `kpt_shape: [K, D]` in the description, rows of 5 + K * D columns have keypoints: their first four numbers are the
box. Otherwise long rows are outlines, and their box is the bounding box of the points, if the rows prove it; if not,
the data set is refused. `data.yolo_labels` decides instead. Any of these is a proof:

- the numbers of points vary: none of them has more than a fifth of the rows;
- the second points are near the others wherever these are, as width and height of boxes do not follow the centre;
- for each number of points that has more than a fifth of the rows, many of these are rectangles or would have
  keypoints outside their boxes; or their points are in the order in which outlines are drawn; or as before.

Boxes that extend beyond the image prove nothing: those of people who are partly outside often do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from codetr_cli.config.data_settings import YoloLabels
from codetr_cli.errors import DatasetError
from codetr_cli.formats.intermediate import ParsedBox

MAX_RELATIVE = 1.5
"""Relative coordinates beyond this must be pixels."""
MAX_LINE = 1 << 20
"""Letters of the outline of one object."""
MAX_RARE = 0.2
"""Share of the long rows up to which a number of columns may be one of many. Keypoints have one number of columns, or a
few in sets that were put together."""
MAX_AMBIGUOUS = 0.6
"""Share of the rows with one number of columns that may look like boxes with keypoints. Nearly all real ones do."""
REACH = 0.6
"""How far keypoints may be from the centre of their box, relative to its size; 0.5 is its side."""
MAX_SPREAD, MAX_SPREAD_OF_FEW = 0.5, 0.1
"""How much the steps from the first to the second point may vary, relative to the first points; the latter for a few
rows. The sizes of boxes vary independently of their places, which makes it more than 1."""
MIN_NEAR = 0.95
"""Share of the rows whose second point must be near their others for this."""
MIN_SPREAD = 0.01
"""How much the first points must vary for this, relative to the image."""
MIN_SAMPLE, MAX_SAMPLE = 4, 200
"""Rows of one number of columns that are compared."""
MIN_DRAWN, MIN_NOT_FILLED = 0.95, 0.2
"""Share of these rows that must be drawn in order, and of those that are far from filling a box."""
MAX_POINTS = 40
"""Points of an outline that are searched for crossings, which takes the square of their number."""
Point: TypeAlias = tuple[float, float]
TASKS: dict[str, YoloLabels] = {"segment": "outlines", "obb": "outlines"}
"""Values of `task` in a description that say what long rows are."""


@dataclass(frozen=True)
class RowRule:
    """What rows may have.

    Args:
        classes: number of classes.
        names_file: the file with their names, for messages.
        keypoints: (K, D) of the description's kpt_shape.
        long_rows: what rows of more than 5 columns are; None: as in the module's docstring.
    """

    classes: int
    names_file: Path
    keypoints: tuple[int, int] | None = None
    long_rows: YoloLabels | None = None

    @property
    def columns(self) -> int:
        """Columns of a row with keypoints."""
        return 5 + math.prod(self.keypoints) if self.keypoints else 0


@dataclass
class LongRows:
    """What the rows of more than 5 columns of a data set look like: how many of each number of columns.

    Attributes:
        all: rows, by number of columns.
        ambiguous: those among them that could have keypoints as well as points of an outline.
        near: those whose second point is near their other points.
        starts: the first four numbers after the class of some of them, by number of columns.
        first: where the first of them is, by number of columns.
        extra: rows whose columns after the box are not used.
    """

    all: Counter[int] = field(default_factory=Counter)
    ambiguous: Counter[int] = field(default_factory=Counter)
    near: Counter[int] = field(default_factory=Counter)
    starts: dict[int, list[list[float]]] = field(default_factory=dict)
    first: dict[int, str] = field(default_factory=dict)
    extra: int = 0

    def add(self, other: LongRows) -> None:
        """Adds the rows of another file."""
        self.all += other.all
        self.ambiguous += other.ambiguous
        self.near += other.near
        for columns, starts in other.starts.items():
            mine = self.starts.setdefault(columns, [])
            mine += starts[: MAX_SAMPLE - len(mine)]
        self.first = {**other.first, **self.first}
        self.extra += other.extra

    def count(self, values: list[float], is_rectangle: bool, where: str) -> None:
        """Counts one row, by its numbers after the class."""
        columns = 1 + len(values)
        self.all[columns] += 1
        self.starts.setdefault(columns, []).append(values[:4])
        self.first.setdefault(columns, where)
        if _is_near(values):
            self.near[columns] += 1
        if not is_rectangle and _could_have_keypoints(values):
            self.ambiguous[columns] += 1

    def check(self, rule: RowRule, outlines: Iterable[tuple[float, ...]]) -> None:
        """Raises a DatasetError if the rows are not proven to be outlines, as in the module's docstring.

        Args:
            rule: what rows may have.
            outlines: x, y, x, y, ... of the rows as outlines, in pixels.
        """
        total = self.all.total()
        if not total or rule.long_rows == "outlines":
            return
        if self._follow(self.all):
            return
        outlines = list(outlines)
        for columns, count in self.all.most_common():
            if total >= MIN_SAMPLE and count <= max(1, MAX_RARE * total):
                return
            proven = self.ambiguous[columns] <= MAX_AMBIGUOUS * count
            if proven or self._follow([columns]) or _are_drawn(columns, outlines):
                continue
            raise DatasetError(
                f"{self.first[columns]}: {count:,} of {total:,} rows of more than 5 columns have {columns} columns, "
                f"which can be a box and {_possible(columns)}, or an outline of {(columns - 1) // 2} points. {_CHOICES}"
            )

    def _follow(self, lengths: Collection[int]) -> bool:
        """Whether the second points of rows with some numbers of columns follow the others to where these are."""
        if sum(self.near[columns] for columns in lengths) < MIN_NEAR * sum(self.all[columns] for columns in lengths):
            return False
        starts = [start for columns in lengths for start in self.starts[columns]]
        different = len(set(map(tuple, starts)))
        if different < (MIN_SAMPLE if len(lengths) == 1 else 2):
            return False
        table = np.array(starts)
        places, steps = table[:, :2].std(axis=0), (table[:, 2:] - table[:, :2]).std(axis=0)
        limit = MAX_SPREAD if different >= 2 * MIN_SAMPLE else MAX_SPREAD_OF_FEW
        return bool((places >= MIN_SPREAD).all() and (steps <= limit * places).all())

    def notes(self, rule: RowRule, objects: int) -> list[str]:
        """Phrases on how long rows were read, which are some of a number of objects."""
        notes = []
        if self.extra and rule.keypoints:
            notes.append(f"the keypoints of {self.extra:,} objects (kpt_shape {list(rule.keypoints)}) are not used")
        elif self.extra:
            notes.append(f"the columns after the box of {self.extra:,} objects are not used (data.yolo_labels)")
        if outlines := self.all.total():
            notes.append(f"{outlines:,} of {objects:,} objects are outlines, whose bounding boxes are used")
        return notes


_CHOICES = (
    "State it: for keypoints, add `kpt_shape: [NUMBER, 2 or 3]` to data.yaml or, to use the first four numbers as the "
    "box and nothing else, --set data.yolo_labels=boxes; for outlines and turned boxes, --set data.yolo_labels=outlines"
)


def parse_rows(
    lines: Iterable[tuple[int, str]], size: tuple[int, int], rule: RowRule, path: Path
) -> tuple[list[ParsedBox], LongRows | None]:
    """The boxes of a label file, and its rows of more than 5 columns if there are any.

    Args:
        lines: numbers and texts of its lines.
        size: (height, width) of the image, in pixels.
        rule: what rows may have.
        path: the file, for messages.

    Raises:
        DatasetError: a row is wrong; the error names it.
    """
    height, width = size
    place = str(path)
    boxes: list[ParsedBox] = []
    long_rows: LongRows | None = None
    for number, line in lines:
        label, values = _numbers(line, rule, f"{place}, line {number}")
        if len(values) > 4:
            long_rows = long_rows or LongRows()
            if rule.long_rows == "boxes" or rule.keypoints:
                values = values[:4]
                long_rows.extra += 1
        if len(values) == 4:
            cx, cy, w, h = values
            corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
            boxes.append(ParsedBox(label, corners))
            continue
        xs, ys = [value * width for value in values[::2]], [value * height for value in values[1::2]]
        if long_rows is not None:
            long_rows.count(values, _is_rectangle(xs, ys), f"{place}, line {number}")
        outline = tuple(value for point in zip(xs, ys, strict=True) for value in point)
        boxes.append(ParsedBox(label, (min(xs), min(ys), max(xs), max(ys)), outline=outline))
    return boxes, long_rows


def _numbers(line: str, rule: RowRule, where: str) -> tuple[int, list[float]]:
    """The class and the other numbers of a row, which are right for what it is."""
    if len(line) > MAX_LINE:
        raise DatasetError(f"{where} has {len(line):,} letters, {MAX_LINE:,} are possible. Fix it")
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        numbers = [math.nan]
    if len(numbers) < 5 or not all(map(math.isfinite, numbers)):
        raise DatasetError(f"{_shown(where, line)} is neither `class cx cy w h` nor an outline. Fix it")
    if len(numbers) != 5:
        _check_columns(len(numbers), rule, _shown(where, line))
    number, values = numbers[0], numbers[1:]
    if number != int(number) or not 0 <= number < rule.classes:
        first = "; if the numbers start at 1, subtract 1 from all" if number == rule.classes else ""
        raise DatasetError(
            f"{where}: class {number:g}, but {rule.names_file} names {rule.classes} classes, 0 to {rule.classes - 1}. "
            f"Add the name or fix the line{first}"
        )
    is_box = len(values) == 4 or rule.long_rows == "boxes" or rule.keypoints is not None
    if max(map(abs, values[:4] if is_box else values)) > MAX_RELATIVE:
        if not is_box and max(map(abs, values[:4])) <= MAX_RELATIVE:
            raise DatasetError(
                f"{_shown(where, line)} has {len(numbers)} columns, of which only the first are relative to the "
                f"image's size, as in a box and {_possible(len(numbers))}. {_CHOICES}"
            )
        raise DatasetError(
            f"{_shown(where, line)} has values in pixels; YOLO's are relative to the image's width and height, 0 to 1. "
            "Divide them, or export the labels again"
        )
    if is_box and min(values[2:4]) < 0:
        raise DatasetError(
            f"{where}: width {values[2]:g} and height {values[3]:g}, which cannot be negative. Correct the box"
        )
    return int(number), values


def _shown(where: str, line: str) -> str:
    """The place and the start of a row, for messages."""
    return f"{where}: {' '.join(line[:200].split())!r:.80}"


def _check_columns(columns: int, rule: RowRule, shown: str) -> None:
    """Raises a DatasetError for a number of columns that no row can have."""
    if rule.long_rows == "boxes":
        return
    if rule.keypoints:
        if columns != rule.columns:
            raise DatasetError(
                f"{shown} has {columns} columns, but kpt_shape {list(rule.keypoints)} in {rule.names_file.name} means "
                f"5 or {rule.columns}. Correct kpt_shape or the line"
            )
        return
    if columns == 6:
        raise DatasetError(
            f"{shown} has 6 columns: `class cx cy w h` and probably a score, as saved predictions have. Remove the "
            "column, or ignore it with --set data.yolo_labels=boxes"
        )
    if columns % 2 == 0:
        raise DatasetError(
            f"{shown} has {columns} columns, which is neither `class cx cy w h` nor an outline (class x y x y ...), "
            f"but can be a box and {_possible(columns)}. {_CHOICES}"
        )


def _possible(columns: int) -> str:
    """The keypoints that the columns after a box can be: "4 keypoints (kpt_shape: [4, 2])"."""
    rest = columns - 5
    shapes = [f"[{rest // numbers}, {numbers}]" for numbers in (2, 3) if rest % numbers == 0]
    return f"keypoints (kpt_shape: {' or '.join(shapes)})" if shapes else f"{rest} further columns"


def _could_have_keypoints(values: list[float]) -> bool:
    """Whether the first four numbers may be a box, and the others keypoints in it.

    Keypoints at the edge of the image or beyond it do not count: they are not visible.
    """
    cx, cy, w, h = values[:4]
    if w <= 0 or h <= 0:
        return False
    rest = values[4:]
    for numbers in (2, 3):
        if len(rest) % numbers or (numbers == 3 and not set(rest[2::3]) <= {0, 1, 2}):
            continue
        points = zip(rest[::numbers], rest[1::numbers], strict=True)
        if all(abs(x - cx) <= REACH * w and abs(y - cy) <= REACH * h for x, y in points if 0 < x < 1 and 0 < y < 1):
            return True
    return False


def _is_near(values: list[float]) -> bool:
    """Whether the second point of a row is not farther from the others than these extend."""
    xs, ys = [values[0], *values[4::2]], [values[1], *values[5::2]]
    x1, x2, y1, y2 = min(xs), max(xs), min(ys), max(ys)
    margin = max(x2 - x1, y2 - y1)
    return x1 - margin <= values[2] <= x2 + margin and y1 - margin <= values[3] <= y2 + margin


def _are_drawn(columns: int, outlines: Iterable[tuple[float, ...]]) -> bool:
    """Whether rows with some number of columns have points in the order in which an outline is drawn.

    Outlines of at least five points hardly ever cross themselves, and the second point is near the others. A box and
    its keypoints, joined in their order, do cross, or its width and height are a point elsewhere. Not so the corners of
    cards in the middle of images, but these fill their box, as the points of small objects do not.
    """
    sample = list(islice((outline for outline in outlines if len(outline) == columns - 1), MAX_SAMPLE))
    if columns < 11 or len(sample) < MIN_SAMPLE:
        return False
    return sum(map(_is_drawn, sample)) >= MIN_DRAWN * len(sample) and sum(
        map(_is_far_from_filling, sample)
    ) >= MIN_NOT_FILLED * len(sample)


def _is_far_from_filling(outline: tuple[float, ...]) -> bool:
    """Whether all points but the first two extend less than half of the box that these two would be."""
    return all(max(outline[4 + i :: 2]) - min(outline[4 + i :: 2]) < 0.5 * outline[2 + i] for i in (0, 1))


def _is_drawn(outline: tuple[float, ...]) -> bool:
    points = list(zip(outline[::2], outline[1::2], strict=True))
    for axis in (0, 1):
        others = [point[axis] for point in (points[0], *points[2:])]
        margin = 0.5 * (max(others) - min(others))
        if not min(others) - margin <= points[1][axis] <= max(others) + margin:
            return False
    points = points[:MAX_POINTS]
    edges = list(zip(points, [*points[1:], points[0]], strict=True))
    last = len(edges) - 1
    return not any(_cross(edges[i], edges[j]) for i in range(last) for j in range(i + 2, last + (i > 0)))


def _cross(one: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    """Whether two edges cross at a point inside both."""
    return _side(*one, other[0]) * _side(*one, other[1]) < 0 and _side(*other, one[0]) * _side(*other, one[1]) < 0


def _side(start: Point, end: Point, point: Point) -> float:
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def _is_rectangle(xs: list[float], ys: list[float]) -> bool:
    """Whether four points, in pixels, are the corners of a rectangle, turned or not; the first may be repeated."""
    if len(xs) == 5 and (xs[0], ys[0]) == (xs[4], ys[4]):
        xs, ys = xs[:4], ys[:4]
    if len(xs) != 4:
        return False
    one, other = (xs[1] - xs[0], ys[1] - ys[0]), (xs[3] - xs[0], ys[3] - ys[0])
    lengths = math.hypot(*one), math.hypot(*other)
    slack = max(2.0, 0.05 * max(lengths))
    closes = math.hypot(xs[0] + xs[2] - xs[1] - xs[3], ys[0] + ys[2] - ys[1] - ys[3]) <= slack
    return closes and abs(one[0] * other[0] + one[1] * other[1]) <= slack * max(lengths)
