"""One annotation file of a Pascal VOC folder.

Pixels: the upper left one is (1, 1), and xmax, ymax are inside the box, as in the published development kit. So
x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax, whichever tool wrote the file. Objects of other tools that have no
`bndbox` have the bounding box of their `robndbox` (roLabelImg, labelImg2: cx, cy, w, h, angle in radians) or `polygon`
(Roboflow: x1, y1, x2, y2, ...; LabelMe: pt with x, y), whose coordinates count from 0 and are not shifted. An attribute
`rotation` in degrees (CVAT) turns a box about its centre. `part`, `pose`, `truncated` and `occluded` are not used.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple, TypeAlias
from xml.parsers import expat

from codetr_cli.errors import DatasetError
from codetr_cli.formats.intermediate import MAX_CORNER, MAX_LETTERS, MAX_OBJECTS, MAX_SIDE
from codetr_cli.formats.xml_text import MAX_DEPTH, decode_xml, new_parser, root_of_file
from codetr_cli.images.image_header import Size
from codetr_cli.reading import read_bytes

ROOT = "annotation"
MAX_BYTES = 8 << 20
MAX_ELEMENTS = 1_000_000
MAX_ALL_POINTS = 100_000
"""Of all outlines of a file."""
Corners: TypeAlias = tuple[float, float, float, float]
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ROTATED = ("cx", "cy", "w", "h", "angle")
_SIDES = ("height", "width")
_POINT = re.compile(r"[xy](\d*|_\w+)")


class VocObject(NamedTuple):
    """A box: corners in pixels, edges without width, from the image's upper left corner.

    `outline` is its polygon x, y, x, y, ..., if it has one; `counts_from_one` whether its file's numbers count pixels.
    """

    name: str
    corners: Corners
    difficult: bool
    outline: tuple[float, ...] = ()
    counts_from_one: bool = True


class VocFile(NamedTuple):
    """One annotation file; `size` is (0, 0) if the file does not state a possible one.

    Args:
        size: of the image.
        objects: with boxes.
        names: of the image, by the file: its `filename` and `path`, as far as it has them.
        boxless: names of the objects without a box.
        deleted: number of objects that are marked as deleted.
        root: the file's first element; for any other than `ROOT`, nothing else of it is read.
    """

    size: Size
    objects: list[VocObject]
    names: tuple[str, ...] = ()
    boxless: tuple[str, ...] = ()
    deleted: int = 0
    root: str = ROOT

    @property
    def is_annotation(self) -> bool:
        """Whether it is a file of this format."""
        return self.root == ROOT


def read_file(path: Path) -> VocFile:
    """Reads an annotation file.

    Raises:
        DatasetError: it is not a regular file, too large, or not XML; or an object lacks a name or a possible box.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
    except OSError as error:
        other = root_of_file(path)
        if other and other.lower() != ROOT:
            return VocFile((0, 0), [], root=other)
        raise DatasetError(
            f"cannot read {path}: {error.strerror}. Replace it, or remove it, and its name from lists of images"
        ) from error
    parser = _Parser()
    try:
        parser.parse(decode_xml(content))
    except _OtherRootError as other_root:
        return VocFile((0, 0), [], root=str(other_root))
    except (expat.ExpatError, ValueError) as error:
        raise DatasetError(
            f"{path} is not valid XML: {error}. Export it again, or remove it, and its name from lists of images"
        ) from error
    height, width = (_number(parser.size.get(side, "")) for side in _SIDES)
    known = 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE  # not if either is NaN
    kept = [(index, fields) for index, fields in enumerate(parser.objects, 1) if fields.texts.get("deleted") != "1"]
    found = [_object(fields, f"{path}: object {index}") for index, fields in kept]
    return VocFile(
        size=(int(height), int(width)) if known else (0, 0),
        objects=[item for item in found if isinstance(item, VocObject)],
        names=tuple(name for key in ("filename", "path") if (name := parser.names.get(key))),
        boxless=tuple(item for item in found if isinstance(item, str)),
        deleted=len(parser.objects) - len(kept),
    )


class _OtherRootError(Exception):
    """The file is XML of another kind; the message is the name of its first element."""


class _Fields:
    """The texts of one object's elements by their names, the first of each, and the coordinates of its outline."""

    __slots__ = ("texts", "xs", "ys")

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.xs: list[str] = []
        self.ys: list[str] = []


class _Parser:
    """Collects the texts of the elements that matter.

    Attributes:
        size: texts of the image's height and width.
        names: texts of the image's file name and path.
        objects: each object's texts.
    """

    def __init__(self) -> None:
        self.size: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.objects: list[_Fields] = []
        self._path: list[str] = []
        self._open: list[_Fields] = []
        self._text: list[str] = []
        self._kept: dict[str, str] | list[str] | None = None
        self._elements = 0
        self._points = 0
        self._attribute = ""

    def parse(self, text: str) -> None:
        """Reads a whole document.

        Raises:
            ExpatError: not well-formed.
            ValueError: it declares entities or exceeds a limit.
            _OtherRootError: it is of another kind.
        """
        parser = new_parser(self._start, self._end, self._characters)
        parser.Parse(text, True)  # at once: in pieces, a token that spans them is scanned again for each

    def _start(self, tag: str, _attributes: dict[str, str]) -> None:
        if not self._path and tag.lower() != ROOT:
            raise _OtherRootError(tag[:100])
        self._elements += 1
        self._path.append(tag)
        self._text = []
        if len(self._path) > MAX_DEPTH or self._elements > MAX_ELEMENTS or len(self.objects) > MAX_OBJECTS:
            raise ValueError(
                f"it has more than {MAX_DEPTH} levels, {MAX_ELEMENTS:,} elements or {MAX_OBJECTS:,} objects, the limit"
            )
        if tag == "object":
            self._open.append(_Fields())
            self.objects.append(self._open[-1])
        self._kept = self._owner(tag)

    def _owner(self, tag: str) -> dict[str, str] | list[str] | None:
        """The table or list that an element's text belongs to; None for most."""
        parents = self._path[:-1]
        if tag in _SIDES and parents[1:] == ["size"]:
            return self.size
        if tag in ("filename", "path") and len(parents) == 1:
            return self.names
        if not self._open:
            return None
        fields = self._open[-1]
        above = parents[-1]
        if above == "object":
            if tag == "bndbox":
                fields.texts.setdefault("bndbox", "")
            return fields.texts if tag in ("name", "difficult", "deleted") else None
        if above == "bndbox":
            return fields.texts if tag in _CORNERS and parents[-2] == "object" else None
        if above in ("robndbox", "polygon", "pt"):
            if above == "robndbox" and tag in _ROTATED and parents[-2] == "object":
                return fields.texts
            if _POINT.fullmatch(tag) and (parents[-2] == "object" or parents[-3:] == ["object", "polygon", "pt"]):
                self._points += 1
                if self._points > 2 * MAX_ALL_POINTS:
                    raise ValueError(f"its outlines have more than {MAX_ALL_POINTS:,} points, the limit")
                return fields.xs if tag[0] == "x" else fields.ys
        if above == "attribute" and tag in ("name", "value") and parents[-3:] == ["object", "attributes", "attribute"]:
            return []
        return None

    def _characters(self, text: str) -> None:
        if self._kept is not None:
            self._text.append(text)

    def _end(self, tag: str) -> None:
        self._path.pop()
        if self._kept is not None:
            text = "".join(self._text).strip()
            if isinstance(self._kept, dict):
                self._kept.setdefault(tag, text)
            elif tag == "name":
                self._attribute = text
            elif tag != "value":
                self._kept.append(text)
            elif self._attribute == "rotation":
                self._open[-1].texts.setdefault("rotation", text)
            self._kept = None
        if tag == "object":
            self._open.pop()


def _object(fields: _Fields, where: str) -> VocObject | str:
    """An object, or its name if it has no box.

    Raises:
        DatasetError: it has no name, or not a possible box.
    """
    texts = fields.texts
    name = texts.get("name", "")
    if not name:
        raise DatasetError(f"{where} has no <name>. Name its class, or remove it")
    if len(name) > MAX_LETTERS:
        raise DatasetError(f"{where} has a <name> of {len(name):,} letters: {name:.80}. Shorten it")
    difficult = _number(texts.get("difficult", "")) == 1
    outline = _outline(fields)
    turned = [_number(texts.get(key, "")) for key in _ROTATED]
    if all(map(math.isfinite, turned)):
        cx, cy, w, h, angle = turned
        corners = turned_box((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), angle)
        return VocObject(name, _possible(corners, f"{where} ({name})"), difficult, outline, counts_from_one=False)
    if "bndbox" in texts:
        return VocObject(name, _box(texts, f"{where} ({name})"), difficult, outline)
    if outline:
        corners = (min(outline[::2]), min(outline[1::2]), max(outline[::2]), max(outline[1::2]))
        return VocObject(name, _possible(corners, f"{where} ({name})"), difficult, outline, counts_from_one=False)
    return name


def _box(texts: dict[str, str], where: str) -> Corners:
    """The corners of a `bndbox`."""
    corners = [_number(texts.get(key, "")) for key in _CORNERS]
    if not all(map(math.isfinite, corners)):
        raise DatasetError(f"{where} lacks a number of <bndbox> (xmin, ymin, xmax, ymax). Add or remove it")
    x1, y1, x2, y2 = _possible((corners[0], corners[1], corners[2], corners[3]), where)
    rotation = _number(texts.get("rotation", ""))
    shifted = (x1 - 1, y1 - 1, x2, y2)
    return turned_box(shifted, math.radians(rotation)) if math.isfinite(rotation) and rotation % 360 else shifted


def _possible(corners: Corners, where: str) -> Corners:
    """The corners, if they are in order and near an image.

    Raises:
        DatasetError: otherwise.
    """
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1 or max(map(abs, corners)) > MAX_CORNER:
        problem = "swapped corners" if max(map(abs, corners)) <= MAX_CORNER else "corners outside of any image"
        raise DatasetError(f"{where} has {problem}: {x1:g}, {y1:g}, {x2:g}, {y2:g}. Redraw it")
    return corners


def _outline(fields: _Fields) -> tuple[float, ...]:
    """The polygon x, y, x, y, ... of an object; empty if it has none of three points or more."""
    if len(fields.xs) != len(fields.ys) or len(fields.xs) < 3:
        return ()
    points = tuple(_number(text) for pair in zip(fields.xs, fields.ys, strict=True) for text in pair)
    return points if all(abs(value) <= MAX_CORNER for value in points) else ()


def turned_box(corners: Corners, angle: float) -> Corners:
    """The bounding box of a box that is turned about its centre by an angle in radians, in either direction."""
    x1, y1, x2, y2 = corners
    cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    half_width, half_height = (w * cosine + h * sine) / 2, (w * sine + h * cosine) / 2
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def _number(text: str) -> float:
    """The number in a text; NaN if there is none."""
    try:
        return float(text) if len(text) <= MAX_LETTERS else math.nan
    except ValueError:
        return math.nan
