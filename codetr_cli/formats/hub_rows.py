"""Rows of Hugging Face's object detection data sets: an image, and its objects as a table of lists or a list of tables.

What the four numbers of a box are is not stated in the files: they are COCO's x, y, width and height, as in most sets,
unless `data.box_format` says otherwise. Boxes that contradict this, and fit their images as corners, are refused.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codetr_cli.config.data_settings import BoxFormat
from codetr_cli.errors import DatasetError, shown
from codetr_cli.formats.assembly import AnnotatedImage, Content, NamedBox, class_name
from codetr_cli.formats.intermediate import MAX_CORNER, MAX_OBJECTS

OBJECTS = ("objects", "object", "annotations", "annotation", "instances")
BOXES = ("bbox", "bboxes", "boxes", "box")
LABELS = (
    "category", "categories", "label", "labels", "class", "classes", "class_label", "class_labels", "category_name",
    "class_name", "category_id", "class_id",
)  # fmt: skip
CROWDS = ("iscrowd", "is_crowd")
TOLERANCE_PX = 2.0
MAX_SHARE_BEYOND = 0.01
"""Share of boxes that may end outside of their image before their format is doubted."""


@dataclass
class HubImage:
    """An image and its objects, as the row has them.

    Args:
        name: relative to the folder of the images.
        where: words that name the row.
        labels: names of the classes.
        numbers: four a box.
        crowds: 0 or 1 a box.
    """

    name: str
    where: str
    split: str
    labels: list[str] = field(default_factory=list)
    numbers: array[float] = field(default_factory=lambda: array("d"))
    crowds: bytearray = field(default_factory=bytearray)

    def boxes(self) -> Iterator[tuple[float, ...]]:
        """The four numbers of each box."""
        return zip(*[iter(self.numbers)] * 4, strict=True)


def add_objects(image: HubImage, row: Mapping[str, Any], class_names: Sequence[str] | None, content: Content) -> None:
    """Adds the objects of a row to its image; those without a class are counted.

    Args:
        image: of the row.
        row: its values by the names of columns.
        class_names: of classes that are numbers; None if they are not known.
        content: whose findings are added to.

    Raises:
        DatasetError: boxes or classes are not what they have to be.
    """
    table = next((row[key] for key in OBJECTS if row.get(key) is not None), row)
    for number, (box, label, crowd) in enumerate(_objects(table, image.where), 1):
        where = f"{image.where}: object {number}"
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(type(n) in (int, float) for n in box):
            raise DatasetError(f"{where} has the box {shown(box)} instead of four numbers. Fix or remove it")
        if not all(abs(value) <= MAX_CORNER for value in box):  # False for NaN
            raise DatasetError(f"{where} has a box that is not finite or outside of any image. Fix or remove it")
        if label is None or label == -1:  # as the library writes it
            content.findings.add("object_without_class", content.place, where)
            continue
        image.labels.append(_label(label, class_names, where))
        image.numbers.extend(box)
        image.crowds.append(bool(crowd))


def _objects(table: Any, where: str) -> Iterator[tuple[Any, Any, Any]]:
    """The box, class and crowd flag of each object."""
    if isinstance(table, list):
        if len(table) > MAX_OBJECTS or not all(isinstance(each, dict) for each in table):
            raise DatasetError(f"{where} has the objects {shown(table)} instead of a list of tables. Fix the row")
        for each in table:
            yield _first(each, BOXES), _first(each, LABELS), _first(each, CROWDS)
        return
    if not isinstance(table, dict):
        raise DatasetError(f"{where} has the objects {shown(table)} instead of a table. Fix the row")
    boxes, labels, crowds = (_first(table, keys) for keys in (BOXES, LABELS, CROWDS))
    if boxes is None:
        boxes = []
    if labels is None and boxes:
        raise DatasetError(f"{where} has boxes, but no classes (category, label, ...). Add them")
    for values in (boxes, labels or [], crowds or []):
        if not isinstance(values, list) or len(values) > MAX_OBJECTS:
            raise DatasetError(f"{where} has {shown(values)} instead of a list for its objects. Fix the row")
    if len(labels or []) != len(boxes) or (crowds and len(crowds) != len(boxes)):
        raise DatasetError(f"{where} has {len(boxes):,} boxes, but {len(labels or []):,} classes. Fix the row")
    yield from zip(boxes, labels or [], crowds or [0] * len(boxes), strict=True)


def _first(table: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((table[key] for key in keys if table.get(key) is not None), None)


def _label(label: Any, class_names: Sequence[str] | None, where: str) -> str:
    if isinstance(label, int) and not isinstance(label, bool) and class_names is not None:
        if not 0 <= label < len(class_names):
            raise DatasetError(f"{where} has the class {label}, but there are {len(class_names)}, from 0. Fix the row")
        return class_names[label]
    return class_name(label, where)


# --------------------------------------------------------------------------------------------------------------- boxes


def place_boxes(
    images: Sequence[HubImage], annotated: Sequence[AnnotatedImage], stated: BoxFormat | None, place: str
) -> str:
    """Gives images their boxes, in pixels or relative to the image's size.

    Args:
        images: with the numbers of the rows.
        annotated: the same images with their sizes, (0, 0) for unknown ones; they get the boxes.
        stated: the setting.
        place: of the rows, for messages.

    Returns:
        a note on what was assumed; empty if it was stated.

    Raises:
        DatasetError: the numbers contradict the format, or may mean several things.
    """
    if stated is None:
        _check(images, annotated, place)
    form = (stated or "xywh").removeprefix("relative-")
    for image, target in zip(images, annotated, strict=True):
        target.relative = (stated or "").startswith("relative-")
        target.boxes = [
            NamedBox(label, _corners(box, form, f"{image.where}: object {number}"), bool(crowd))
            for number, (label, box, crowd) in enumerate(zip(image.labels, image.boxes(), image.crowds, strict=True), 1)
        ]
    return "" if stated else "boxes are read as x, y, width and height in pixels; state another with data.box_format"


def _corners(box: tuple[float, ...], form: str, where: str) -> tuple[float, float, float, float]:
    a, b, c, d = box
    if form == "xyxy":
        if c < a or d < b:
            raise DatasetError(f"{where} has swapped corners: {a:g}, {b:g}, {c:g}, {d:g}. Check data.box_format")
        return a, b, c, d
    if c < 0 or d < 0:
        raise DatasetError(f"{where} has width {c:g} and height {d:g}, which cannot be negative. Check data.box_format")
    return (a, b, a + c, b + d) if form == "xywh" else (a - c / 2, b - d / 2, a + c / 2, b + d / 2)


def _check(images: Sequence[HubImage], annotated: Sequence[AnnotatedImage], place: str) -> None:
    """Raises a DatasetError if the boxes can hardly be x, y, width and height in pixels."""
    total = beyond = 0
    largest, are_corners = 0.0, True
    for image, target in zip(images, annotated, strict=True):
        height, width = target.size if min(target.size) > 0 else (math.inf, math.inf)
        height, width = height + TOLERANCE_PX, width + TOLERANCE_PX
        for a, b, c, d in image.boxes():
            total += 1
            largest = max(largest, abs(a), abs(b), abs(c), abs(d))
            beyond += a + c > width or b + d > height
            are_corners &= a <= c <= width and b <= d <= height
    if total and largest <= 1:
        raise DatasetError(
            f"{place}: all numbers of boxes are between 0 and 1. State what they are with --set "
            "data.box_format=relative-xywh (upper left corner and size), relative-xyxy (corners) or relative-cxcywh "
            "(centre and size)"
        )
    if beyond > MAX_SHARE_BEYOND * total and are_corners:
        raise DatasetError(
            f"{place}: as x, y, width and height, {beyond:,} of {total:,} boxes end outside of their images, while all "
            "fit as corners. If they are corners, state it with --set data.box_format=xyxy, else with "
            "--set data.box_format=xywh"
        )
