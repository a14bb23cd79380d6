"""One file of CVAT's XML 1.1, "CVAT for images": all images of a task, job or project with their shapes.

Coordinates are in pixels from the image's upper left corner. The box of a shape is its bounding box: of a `box` or
`ellipse` after its rotation in degrees, of a `polygon`, which is its outline, too, of the eight corners of a `cuboid`,
and of a `mask`, whose run-length code is not read. Tags, points, polylines and skeletons have no box. A shape whose
attribute `is_crowd` is true is a crowd region: Datumaro, CVAT's converter, keeps COCO's mark there.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from codetr_cli.annotations.annotation_json import MAX_FILE_NAME
from codetr_cli.errors import DatasetError
from codetr_cli.formats.intermediate import (
    MAX_CLASSES,
    MAX_CORNER,
    MAX_LETTERS,
    MAX_OBJECTS,
    MAX_POINTS,
    MAX_SIDE,
)
from codetr_cli.formats.voc_xml import Corners, turned_box
from codetr_cli.formats.xml_text import MAX_DEPTH, decode_xml, new_parser
from codetr_cli.images.image_header import Size
from codetr_cli.reading import check_regular, open_file, read_bytes

ROOT = "annotations"
MAX_BYTES = 1 << 30
WHOLE_BYTES = 64 << 20
"""Larger files are read in pieces, and must be UTF-8, UTF-16 or Latin-1."""
PIECE_BYTES = 1 << 20
MAX_TAG_BYTES = 16 << 20
"""Of one tag with its attributes, in a file that is read in pieces: expat scans it again with each piece."""
MAX_ELEMENTS = 20_000_000
MAX_SHAPES = 5_000_000
MAX_IMAGES = 1_000_000
CROWD = "is_crowd"
"""The attribute of a crowd region."""
MAX_ALL_POINTS = 20_000_000
_BOXLESS_TYPES = ("tag", "points", "polyline", "skeleton")


class Shape(NamedTuple):
    """An object: its label, box (x1, y1, x2, y2), and outline x, y, x, y, ..., empty if it has none; crowd or not."""

    label: str
    corners: Corners
    outline: Sequence[float] = ()
    is_crowd: bool = False


@dataclass(slots=True)
class CvatImage:
    """One image: its name, its subset or "", its size, (0, 0) if it is not stated, and its shapes.

    `boxless` are the shapes without a box, such as "polyline of road"; `masks` is the number of shapes that were masks.
    """

    name: str
    subset: str
    size: Size
    shapes: list[Shape] = field(default_factory=list)
    boxless: list[str] = field(default_factory=list)
    masks: int = 0


@dataclass
class CvatFile:
    """The content of a file: the labels of its task in their order, and its images.

    `boxless_labels` are those of `labels` that are for shapes without a box.
    """

    labels: list[str] = field(default_factory=list)
    boxless_labels: set[str] = field(default_factory=set)
    images: list[CvatImage] = field(default_factory=list)


def is_cvat(head: str, root: str) -> bool:
    """Whether the start of a file, and its first element, are those of CVAT's XML."""
    return root == ROOT and any(f"<{tag}" in head for tag in ("meta>", "image ", "track ", "version>"))


def read_file(path: Path) -> CvatFile:
    """Reads a file.

    Raises:
        DatasetError: it is not a regular file, too large, not XML, of CVAT's format for video, or has a shape without a
            possible box.
    """
    parser = _Parser(path)
    try:
        parser.parse(check_regular(path).st_size)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}. Replace or remove it") from error
    except (expat.ExpatError, ValueError) as error:
        raise DatasetError(f"{path} is not valid XML: {error}. Export it again") from error
    return parser.file


class _Parser:
    """Collects the labels and images of a file."""

    def __init__(self, path: Path) -> None:
        self.file = CvatFile()
        self._path = path
        self._depth = 0
        self._elements = 0
        self._open: list[str] = []
        self._image: CvatImage | None = None
        self._label: dict[str, str] | None = None
        self._text: list[str] | None = None
        self._shapes = 0
        self._has_box = False
        self._points = 0
        self._known: dict[str, str] = {}
        """Labels of shapes, each kept once."""

    def parse(self, size: int) -> None:
        """Reads the whole file of `size` bytes.

        Raises:
            ExpatError: not well-formed.
            ValueError: it declares entities or exceeds a limit.
            OSError: it cannot be read, or is too large.
            DatasetError: see `read_file`.
        """
        parser = new_parser(self._start, self._end, self._characters)
        if size <= WHOLE_BYTES:
            parser.Parse(decode_xml(read_bytes(self._path, WHOLE_BYTES)), True)
            return
        fed = 0
        with open_file(self._path) as file:
            while piece := file.read(PIECE_BYTES):
                fed += len(piece)
                if fed > MAX_BYTES:
                    raise ValueError(f"it has more than {MAX_BYTES:,} bytes, the limit for such a file")
                parser.Parse(piece, False)
                if fed - parser.CurrentByteIndex > MAX_TAG_BYTES + PIECE_BYTES:
                    raise ValueError(f"it has a tag of more than {MAX_TAG_BYTES:,} bytes, the limit")
        parser.Parse(b"", True)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise ValueError(f"it has more than {MAX_DEPTH} levels or {MAX_ELEMENTS:,} elements, the limit")
        if self._image is not None:
            if self._depth == 3:
                self._add_shape(tag, attributes)
            elif self._depth == 4 and tag == "attribute" and attributes.get("name") == CROWD:
                self._text = []
            return
        self._open.append(tag)
        if self._depth == 1 and tag != ROOT:
            raise ValueError(f"its first element is <{tag:.100}>, not <{ROOT}>")
        if self._depth == 2 and tag == "image":
            self._image = self._new_image(attributes)
        elif self._depth == 2 and tag == "track":
            raise DatasetError(
                f"{self._path} is of CVAT's format for video, whose tracks name frames instead of image files. Export "
                'the task as "CVAT for images 1.1" or as COCO, with its images'
            )
        elif tag == "label" and self._open[-2:] == ["labels", "label"]:
            self._label = {}
        elif self._label is not None and self._open[-2] == "label" and tag in ("name", "type", "parent"):
            self._text = []

    def _end(self, tag: str) -> None:
        self._depth -= 1
        if self._image is not None and self._depth > 1:
            if self._text is not None and self._depth == 3:
                self._mark_crowd(self._image, "".join(self._text).strip())
                self._text = None
            return
        self._image = None
        self._open.pop()
        if self._text is not None and self._label is not None:
            self._label[tag] = "".join(self._text)
            self._text = None
        elif tag == "label" and self._label is not None:
            self._add_label(self._label)
            self._label = None

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _add_label(self, label: Mapping[str, str]) -> None:
        name = _label_name(label.get("name", ""))
        if not name or "parent" in label or len(name) > MAX_LETTERS:  # a point of a skeleton has a parent
            return
        self.file.labels.append(name)
        if len(self.file.labels) > MAX_CLASSES:
            raise ValueError(f"it has more than {MAX_CLASSES:,} labels, the limit")
        if label.get("type", "").strip() in _BOXLESS_TYPES:
            self.file.boxless_labels.add(name)

    def _new_image(self, attributes: Mapping[str, str]) -> CvatImage:
        name = attributes.get("name", "")
        if not name or len(name) > MAX_FILE_NAME:
            number = len(self.file.images) + 1
            raise DatasetError(
                f"{self._path}: image {number} has no possible name: {name!r:.80}. Export the file again"
            )
        height, width = (_number(attributes.get(side, "")) for side in ("height", "width"))
        known = 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE  # not if either is NaN
        size = (int(height), int(width)) if known else (0, 0)
        image = CvatImage(name, attributes.get("subset", "")[:MAX_LETTERS], size)
        self.file.images.append(image)
        if len(self.file.images) > MAX_IMAGES:
            raise ValueError(f"it has more than {MAX_IMAGES:,} images, the limit")
        return image

    def _mark_crowd(self, image: CvatImage, value: str) -> None:
        """Reads the attribute of the shape that was added last, if it has a box."""
        if value.lower() in ("true", "1") and self._has_box:
            image.shapes[-1] = image.shapes[-1]._replace(is_crowd=True)

    def _add_shape(self, tag: str, attributes: dict[str, str]) -> None:
        image = self._image
        assert image is not None
        self._shapes += 1
        if self._shapes > MAX_SHAPES or len(image.shapes) + len(image.boxless) >= MAX_OBJECTS:
            raise ValueError(f"it has more than {MAX_SHAPES:,} shapes, or {MAX_OBJECTS:,} in one image, the limit")
        label = _label_name(attributes.get("label", ""))
        where = f"{self._path}: {image.name:.200}, shape {len(image.shapes) + len(image.boxless) + 1} (<{tag:.40}>)"
        if not label or len(label) > MAX_LETTERS:
            raise DatasetError(f"{where} has no possible label: {label!r:.80}. Label or remove it")
        measure = _SHAPES.get(tag)
        self._has_box = measure is not None
        if measure is None:
            image.boxless.append(f"{tag:.40} of {label:.100}")
            return
        try:
            points = measure(attributes)
        except ValueError as error:
            raise DatasetError(f"{where} lacks a number: {error}. Redraw or remove it") from error
        corners = _bounding_box(points)
        if tag == "box" and (corners[0] != points[0] or corners[1] != points[1]) and not _rotation(attributes):
            raise DatasetError(f"{where} has swapped corners: {', '.join(f'{value:g}' for value in points)}. Redraw it")
        if max(map(abs, corners)) > MAX_CORNER:
            raise DatasetError(f"{where} has corners outside of any image. Redraw or remove it")
        image.masks += tag == "mask"
        outline = array("d", points) if tag == "polygon" and len(points) >= 6 else ()
        self._points += len(outline) // 2
        if self._points > MAX_ALL_POINTS:
            raise ValueError(f"its outlines have more than {MAX_ALL_POINTS:,} points, the limit")
        image.shapes.append(Shape(self._known.setdefault(label, label), corners, outline))


# ------------------------------------------------------------------------------------------------------------- shapes


def _label_name(text: str) -> str:
    """The name of a label, in the list of labels and in a shape: files that were formatted have blanks around it."""
    return text.strip()


def _bounding_box(points: Sequence[float]) -> Corners:
    """The bounding box of points x, y, x, y, ..."""
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _box(attributes: Mapping[str, str]) -> Sequence[float]:
    x1, y1, x2, y2 = _numbers(attributes, "xtl", "ytl", "xbr", "ybr")
    rotation = _rotation(attributes)
    return turned_box((x1, y1, x2, y2), math.radians(rotation)) if rotation else (x1, y1, x2, y2)


def _ellipse(attributes: Mapping[str, str]) -> Sequence[float]:
    cx, cy, rx, ry = _numbers(attributes, "cx", "cy", "rx", "ry")
    angle = math.radians(_rotation(attributes))
    half_width = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
    half_height = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def _polygon(attributes: Mapping[str, str]) -> Sequence[float]:
    text = attributes.get("points", "")
    pairs = text.split(";", MAX_POINTS)
    if len(pairs) > MAX_POINTS:
        raise ValueError(f"more than {MAX_POINTS:,} points")
    parts = text.replace(";", ",").split(",")
    if any(pair.count(",") != 1 for pair in pairs) or max(map(len, parts)) > MAX_LETTERS:
        raise ValueError(f"points {text!r:.60}")
    try:
        points = list(map(float, parts))
    except ValueError:
        points = [math.nan]
    if not math.isfinite(sum(points)):
        raise ValueError(f"points {text!r:.60}")
    return points


def _cuboid(attributes: Mapping[str, str]) -> Sequence[float]:
    names = (f"{axis}{corner}{side}" for side in "12" for corner in ("tl", "bl", "tr", "br") for axis in "xy")
    return _numbers(attributes, *names)


def _mask(attributes: Mapping[str, str]) -> Sequence[float]:
    left, top, width, height = _numbers(attributes, "left", "top", "width", "height")
    return left, top, left + width, top + height


_SHAPES = {"box": _box, "ellipse": _ellipse, "polygon": _polygon, "cuboid": _cuboid, "mask": _mask}
"""Points x, y, x, y, ... whose bounding box is the shape's, by its element."""


def _rotation(attributes: Mapping[str, str]) -> float:
    """The rotation in degrees, 0 to 360."""
    return _finite(attributes.get("rotation", "0")) % 360


def _numbers(attributes: Mapping[str, str], *names: str) -> list[float]:
    return [_finite(attributes.get(name, "")) for name in names]


def _finite(text: str) -> float:
    """The number in a text.

    Raises:
        ValueError: there is none, or it is not finite.
    """
    value = _number(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r:.60} is none" if text else "it is missing")
    return value


def _number(text: str) -> float:
    try:
        return float(text) if len(text) <= MAX_LETTERS else math.nan
    except ValueError:
        return math.nan
