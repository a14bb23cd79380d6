"""What the writers of all layouts are given, and what they report.

Boxes are (x1, y1, x2, y2) in pixels; (0, 0) is the image's upper left corner, edges have no width.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from codetr_cli.data.writers.polygons import Corners, cut_polygon, extent, is_polygon
from codetr_cli.errors import DatasetError, shown
from codetr_cli.images.tile_grid import Tile

CLIPPED_PX = 1e-3
"""A box that is clipped by less is not counted as clipped: readers round to this."""
_FORMS = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

NOTES = {
    "unlisted": "annotation[|s] of images that the annotation file does not list [is|are] skipped",
    "other_class": "object[|s] of other classes [is|are] skipped (--classes)",
    "without_class": "image[|s] without an object of the classes [is|are] skipped; --keep-empty keeps [it|them]",
    "empty": "image[|s] or tile[|s] without objects [is|are] skipped (--drop-empty)",
    "not_sampled": "image[|s] [is|are] not in the sample (--sample)",
    "unusable": "image[|s] cannot be read and [is|are] skipped (data.bad_files=skip)",
    "crowd": "crowd region[|s], difficult [or|and] ignored object[|s] [is|are] skipped: the layout cannot mark them",
    "outside": "box[|es] outside of [its|their] image [is|are] skipped",
    "no_extent": "box[|es] without width or height [is|are] skipped",
    "under_one_pixel": "box[|es] narrower than one pixel [is|are] skipped: the layout counts whole pixels",
    "thin": "box[|es] narrower than one pixel [is|are] skipped",
    "clipped": "box[|es] [is|are] clipped to [its|their] image",
    "outlines": "outline[|s] [is|are] not written, only the box[|es]",
    "cut_outlines": "outline[|s] [is|are] cut at the edges of [its|their] image",
    "outlines_outside": "outline[|s] without an area in [its|their] image [is|are] written as [a box|boxes]",
    "complex_outlines": "outline[|s] of several parts or run lengths [is|are] written as [a box|boxes]",
    "unused_classes": "class[|es] [has|have] no object, and the layout has no list of classes: [it is|they are] lost",
    "renamed": "image[|s] [is|are] written under another name, since the layout, or another image, has [its|theirs]",
    "rotated": "image[|s] [is|are] rotated by EXIF: boxes are of the upright image, which some tools ignore",
    "rare_format": "image[|s] [has|have] a suffix that some trainers skip: all read JPEG, PNG, BMP, WebP and TIFF",
    "size_differs": "image[|s] [has|have] another size than the annotations state: `codetr prepare` lists [it|them]",
    "cut": "object[|s] [is|are] cut by the edges of tiles",
    "small_parts": "part[|s] of objects [is|are] skipped: the tile shows too little of [it|them]",
    "in_no_tile": "object[|s] [is|are] in no tile",
    "broken_outlines": "outline[|s] that cannot be cut [is|are] skipped; [its box is|their boxes are] written",
}
"""What is counted -> the text that follows the number, with [one|several] where it depends on it."""


def counted(kind: str, count: int) -> str:
    """The sentence of a key of `NOTES`, with its number."""
    return f"{count:,} {_FORMS.sub(lambda found: found[1 if count == 1 else 2], NOTES[kind])}"


@dataclass(frozen=True)
class WrittenObject:
    """One object.

    Args:
        label: index of its class.
        box: its corners.
        crowd: a region of many objects, or one that is difficult or to be ignored.
        outline: polygons or a run-length code as in COCO, if there is one; bytes: its JSON text.
        entry: COCO's record, without its outline.
        score: of a detection, in [0, 1]; None: it is none.
        note: why somebody should look at it, a phrase, in layouts with a place for it; empty if nothing asks for it.
        is_proposed: whether it is the proposal of a program, beside objects that are not.
    """

    label: int
    box: Corners
    crowd: bool = False
    outline: Any = None
    entry: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None
    note: str = ""
    is_proposed: bool = False


@dataclass(frozen=True)
class WrittenImage:
    """One image.

    Args:
        split: train, val or test; empty: there are no parts, and no folders of parts.
        name: within the folder of the split.
        width: in pixels.
        height: in pixels.
        objects: in their order.
        record: COCO's.
        is_suggestion: whether the objects are a model's, and nobody has checked them.
        review: why somebody should check them, a phrase; empty if nothing asks for it.
        file: path of the image file relative to its label file, in layouts with a place for it; empty: beside it.
    """

    split: str
    name: str
    width: int
    height: int
    objects: list[WrittenObject]
    record: Mapping[str, Any] = field(default_factory=dict)
    is_suggestion: bool = False
    review: str = ""
    file: str = ""


@dataclass(frozen=True)
class WrittenClasses:
    """The classes, by label: names, COCO ids, and COCO's records of each split."""

    names: list[str]
    ids: list[int]
    records: Mapping[str, list[dict[str, Any]]]


class LayoutWriter:
    """Writes one layout into a folder.

    Args:
        folder: where to.
        classes: of all objects.
        counts: of `NOTES`.
        outlines: whether polygons are written, where the layout has them.
    """

    def __init__(self, folder: Path, classes: WrittenClasses, counts: Counter[str], *, outlines: bool = False) -> None:
        self.folder, self.classes, self.counts, self.outlines = folder, classes, counts, outlines

    def image_path(self, split: str, name: str) -> str:
        """Where the file of an image is, relative to the folder."""
        raise NotImplementedError

    def add(self, image: WrittenImage) -> int:
        """Writes the objects of an image; returns how many are written."""
        raise NotImplementedError

    def finish(self) -> None:
        """Writes what is of all images."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes files, finished or not."""


def clipped_objects(image: WrittenImage, counts: Counter[str]) -> Iterator[tuple[WrittenObject, Corners]]:
    """The objects with a box in the image, with it; others, and those that extend beyond the edge, are counted."""
    for item in image.objects:
        x1, y1, x2, y2 = item.box
        if x2 <= x1 or y2 <= y1:
            counts["no_extent"] += 1
            continue
        if x1 >= image.width or y1 >= image.height or x2 <= 0 or y2 <= 0:
            counts["outside"] += 1
            continue
        if max(-x1, -y1, x2 - image.width, y2 - image.height) > CLIPPED_PX:
            counts["clipped"] += 1
        yield item, (max(x1, 0.0), max(y1, 0.0), min(x2, float(image.width)), min(y2, float(image.height)))


def one_polygon(item: WrittenObject, image: WrittenImage, counts: Counter[str], *, wanted: bool) -> list[float]:
    """The polygon x, y, x, y, ... of an object whose outline is one and shall be written; empty otherwise.

    It is cut at the edges of the image; one that has no area in the image is counted, and its box is written.
    """
    if not item.outline:
        return []
    if not wanted:
        counts["outlines"] += 1
        return []
    polygon: Any = item.outline[0] if isinstance(item.outline, list) and len(item.outline) == 1 else None
    if not is_polygon(polygon):
        counts["complex_outlines"] += 1
        return []
    x1, y1, x2, y2 = extent(polygon)
    if max(-x1, -y1, x2 - image.width, y2 - image.height) > CLIPPED_PX:
        polygon = cut_polygon(polygon, Tile(0, 0, image.width, image.height))
        counts["cut_outlines" if polygon else "outlines_outside"] += 1
        return polygon
    sides = (image.width, image.height) * (len(polygon) // 2)
    return [min(max(float(value), 0.0), float(side)) for value, side in zip(polygon, sides, strict=True)]


def place(*parts: str) -> str:
    """A path of names, without those that are empty."""
    return "/".join(part for part in parts if part)


def number(value: float, digits: int = 6) -> str:
    """A number as text, without zeros at its end."""
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
    return "0" if text == "-0" else text


def xml_text(text: str) -> str:
    """Text for an element or an attribute in double quotes.

    Raises:
        DatasetError: it has a character that XML cannot have.
    """
    if found := _NOT_XML.search(text):
        raise DatasetError(
            f"the name {shown(text)} has the character {found[0]!r}, which XML cannot have: rename it, or write "
            "another layout, e.g. coco"
        )
    return escape(text, {'"': "&quot;", "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})
