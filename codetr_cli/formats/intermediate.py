"""The parsed content of a folder, and its conversion to COCO's tables.

Boxes are (x1, y1, x2, y2) in pixels; (0, 0) is the image's upper left corner, edges have no width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from codetr_cli.annotations.annotation_columns import PIXELS, UNIT_KEY
from codetr_cli.annotations.annotation_json import MAX_BOX
from codetr_cli.annotations.findings import EDGE_TOLERANCE_PX, MAX_SKIPPED_SHARE, Findings
from codetr_cli.errors import DatasetError
from codetr_cli.images.headers import ImageFileError, read_header
from codetr_cli.images.image_header import Size

THREADS = 16
"""Readers of the files of a folder: on network disks each file costs milliseconds of waiting."""
SHOWN = 5
"""Names listed in a message."""
MAX_SHARE = MAX_SKIPPED_SHARE
MAX_OBJECTS = 100_000
"""Objects in one image."""
MAX_POINTS = 100_000
"""Points in one outline."""
MAX_SIDE = 1_000_000
"""Pixels along a side of an image that a file states."""
MAX_CORNER = MAX_BOX
"""Pixels between an image's upper left corner and that of a box, which may be outside of the image."""
MAX_CLASSES = 50_000
"""Twice as many as any published data set of boxes has."""
MAX_LETTERS = 1_000
"""Letters in the name of a class, and in a number."""

PIECE = 10_000
"""Entries of a table that are made into text at once."""


@dataclass(frozen=True)
class ParsedBox:
    """One object; the outline is a polygon x, y, x, y, ... or empty. Difficult ones become crowds."""

    label: int
    corners: tuple[float, float, float, float]
    difficult: bool = False
    outline: tuple[float, ...] = ()


@dataclass(frozen=True)
class ParsedImage:
    """One image: its name relative to the image folder, size in pixels, the file of its boxes, and the boxes."""

    file_name: str
    height: int
    width: int
    label_file: str
    boxes: Sequence[ParsedBox]


@dataclass
class ParsedDataset:
    """The content of a folder.

    Args:
        images_dir: what the names of images are relative to.
        first_id: category id of label 0.
        splits: images by "train", "val" and perhaps "test"; absent where there are none.
        places: the file or folder that defines each split, for messages.
        val_is_test: whether the test images are used for evaluation, because there are no validation images.
        in_pixels: whether the user has stated that boxes are in pixels.
        skipped: unusable images with the reason, where skipping is allowed.
    """

    title: str
    images_dir: Path
    class_names: list[str]
    first_id: int
    splits: dict[str, list[ParsedImage]]
    places: dict[str, str]
    val_is_test: bool = False
    in_pixels: bool = False
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def to_coco(parsed: ParsedDataset, split: str) -> dict[str, Any]:
    """COCO's table of one split, boxes clipped to their images; clipped and skipped boxes are added to the findings."""
    images, annotations = list(_images(parsed, split)), list(_annotations(parsed, split))
    return {"images": images, "annotations": annotations, "categories": _categories(parsed)}


def coco_text(parsed: ParsedDataset, split: str) -> Iterator[str]:
    """The table of `to_coco` as JSON, in pieces: millions of objects need gigabytes as a table, and little as text."""
    yield '{"images": ['
    yield from _listed(_images(parsed, split))
    yield '], "annotations": ['
    yield from _listed(_annotations(parsed, split))
    unit = f', "{UNIT_KEY}": "{PIXELS}"' if parsed.in_pixels else ""
    yield f'], "categories": {json.dumps(_categories(parsed))}{unit}}}'


def _listed(entries: Iterator[dict[str, Any]]) -> Iterator[str]:
    separator = ""
    while piece := list(islice(entries, PIECE)):
        yield separator + json.dumps(piece)[1:-1]
        separator = ", "


def _numbered(parsed: ParsedDataset, split: str) -> Iterator[tuple[int, ParsedImage]]:
    names = list(parsed.splits)
    return enumerate(parsed.splits[split], 1 + sum(len(parsed.splits[name]) for name in names[: names.index(split)]))


def _images(parsed: ParsedDataset, split: str) -> Iterator[dict[str, Any]]:
    for image_id, image in _numbered(parsed, split):
        yield {"id": image_id, "file_name": image.file_name, "width": image.width, "height": image.height}


def _categories(parsed: ParsedDataset) -> list[dict[str, Any]]:
    return [{"id": parsed.first_id + label, "name": name} for label, name in enumerate(parsed.class_names)]


def _annotations(parsed: ParsedDataset, split: str) -> Iterator[dict[str, Any]]:
    where, number = parsed.places[split], 0
    for image_id, image in _numbered(parsed, split):
        for box in image.boxes:
            x1, y1, x2, y2 = _clipped(box, image, parsed.findings, where)
            if box.corners[2] > box.corners[0] and box.corners[3] > box.corners[1] and (x2 <= x1 or y2 <= y1):
                continue  # completely outside
            if box.difficult:
                parsed.findings.add("difficult", where, count=1)
            annotation = {
                "id": (number := number + 1),
                "image_id": image_id,
                "category_id": parsed.first_id + box.label,
                "bbox": [_short(x1), _short(y1), _short(x2 - x1), _short(y2 - y1)],
                "area": _short((x2 - x1) * (y2 - y1)),
                "iscrowd": int(box.difficult),
            }
            if box.outline:
                annotation["segmentation"] = [[_short(value) for value in box.outline]]
            yield annotation


def _short(value: float) -> float:
    """A number for a file, rounded to thousandths of a pixel; whole numbers as integers."""
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _clipped(box: ParsedBox, image: ParsedImage, findings: Findings, where: str) -> tuple[float, float, float, float]:
    """The corners, clipped to the image; adds a finding for a box that extends beyond the edge."""
    x1, y1, x2, y2 = box.corners
    width, height = image.width, image.height
    is_outside = x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0
    if is_outside or max(-x1, -y1, x2 - width, y2 - height) > EDGE_TOLERANCE_PX:
        name = f"{image.label_file} [{_short(x1)}, {_short(y1)}, {_short(x2)}, {_short(y2)}] in {width} x {height}"
        findings.add("box_outside" if is_outside else "box_beyond_edge", where, name)
    return min(max(x1, 0), width), min(max(y1, 0), height), max(min(x2, width), 0), max(min(y2, height), 0)


def size_of(stated: Size, image: Path) -> Size:
    """The (height, width) in pixels that an annotation states or, if it states none (0), that of the image's header.

    Raises:
        DatasetError: the size is needed, and the image cannot be read.
    """
    if min(stated) > 0:
        return stated
    try:
        return read_header(image).size
    except ImageFileError as error:
        raise DatasetError(f"{image} cannot be used: {error}. Copy it again") from error
