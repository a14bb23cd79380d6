"""The parsed content of a Pascal VOC or YOLO folder, and its conversion to COCO's tables.

Boxes are (x1, y1, x2, y2) in pixels; (0, 0) is the image's upper left corner, edges have no width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.data.checks.findings import EDGE_TOLERANCE_PX, Findings

THREADS = 16
"""Readers of the files of a folder: on network disks each file costs milliseconds of waiting."""
SHOWN = 5
"""Names listed in a message."""
MAX_SHARE = 0.1
"""Largest share of bad images that may be skipped; more mean that something else is wrong."""


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
        skipped: unusable images with the reason, where skipping is allowed.
    """

    title: str
    images_dir: Path
    class_names: list[str]
    first_id: int
    splits: dict[str, list[ParsedImage]]
    places: dict[str, str]
    val_is_test: bool = False
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def to_coco(parsed: ParsedDataset, split: str) -> dict[str, Any]:
    """COCO's table of one split, boxes clipped to their images; clipped and skipped boxes are added to the findings."""
    names = list(parsed.splits)
    first_image = 1 + sum(len(parsed.splits[name]) for name in names[: names.index(split)])
    where = parsed.places[split]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(parsed.splits[split], first_image):
        images.append({"id": image_id, "file_name": image.file_name, "width": image.width, "height": image.height})
        for box in image.boxes:
            x1, y1, x2, y2 = _clipped(box, image, parsed.findings, where)
            if box.corners[2] > box.corners[0] and box.corners[3] > box.corners[1] and (x2 <= x1 or y2 <= y1):
                continue  # completely outside
            if box.difficult:
                parsed.findings.add("difficult", where, count=1)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": parsed.first_id + box.label,
                "bbox": [_short(x1), _short(y1), _short(x2 - x1), _short(y2 - y1)],
                "area": _short((x2 - x1) * (y2 - y1)),
                "iscrowd": int(box.difficult),
            }
            if box.outline:
                annotation["segmentation"] = [[_short(value) for value in box.outline]]
            annotations.append(annotation)
    categories = [{"id": parsed.first_id + label, "name": name} for label, name in enumerate(parsed.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _short(value: float) -> float:
    """A number for a file, rounded to thousandths of a pixel; whole numbers as integers."""
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _clipped(box: ParsedBox, image: ParsedImage, findings: Findings, where: str) -> tuple[float, float, float, float]:
    """The corners, clipped to the image; adds a finding for a box that extends beyond the edge."""
    x1, y1, x2, y2 = box.corners
    width, height = image.width, image.height
    name = f"{image.label_file} [{_short(x1)}, {_short(y1)}, {_short(x2)}, {_short(y2)}] in {width} x {height}"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        findings.add("box_outside", where, name)
    elif max(-x1, -y1, x2 - width, y2 - height) > EDGE_TOLERANCE_PX:
        findings.add("box_beyond_edge", where, name)
    return min(max(x1, 0), width), min(max(y1, 0), height), max(min(x2, width), 0), max(min(y2, height), 0)
