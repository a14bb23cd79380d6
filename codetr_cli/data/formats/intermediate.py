"""Images and boxes of a folder in another layout than COCO's, on their way to COCO's tables.

Boxes are (x1, y1, x2, y2) in pixels, the left upper corner of the image at (0, 0), edges without width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.data.checks.findings import Findings

SHOWN = 5
MAX_SHARE = 0.1
"""More bad files than this share of the images mean that something else is wrong."""
EDGE_TOLERANCE = 2.0
"""Pixels over the edge that nobody wants to read about; as in the check of COCO's files."""


@dataclass(frozen=True)
class Box:
    """One object.

    Args:
        label: index into the folder's class names.
        corners: x1, y1, x2, y2.
        difficult: to be neither trained on nor counted in evaluation.
        outline: polygon x, y, x, y, ... if there is one.
    """

    label: int
    corners: tuple[float, float, float, float]
    difficult: bool = False
    outline: tuple[float, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One image: its name relative to the folder of images, size in pixels, where its boxes are written."""

    file_name: str
    height: int
    width: int
    source: str
    boxes: Sequence[Box]


@dataclass
class Contents:
    """What a folder holds.

    Args:
        title: how the layout is called.
        images_dir: what the names of images are relative to.
        class_names: by label.
        first_id: category id of label 0.
        splits: images by "train", "val" and perhaps "test"; absent where there are none.
        places: what stands for each split in the folder, for messages.
        val_is_test: whether the test images serve for evaluation, for want of others.
        left_out: images that cannot be used, with the reason, where that is allowed.
        notes: sentences about choices that were made.
        findings: what is odd.
    """

    title: str
    images_dir: Path
    class_names: list[str]
    first_id: int
    splits: dict[str, list[Picture]]
    places: dict[str, str]
    val_is_test: bool = False
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def choose_splits(lists: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
    """Settles what is trained on and what is evaluated on.

    Training is `train`, else `trainval` without what is in `val`, else `all`. Evaluation is `val`, else `test`, else
    a fifth of training: the images whose names have the smallest SHA-1, so that it is the same on every machine.

    Args:
        lists: names of images by "train", "val", "trainval", "test" and "all", as far as the folder has them.

    Returns:
        names by "train", "val" and, where it is a third set, "test"; the list that each was taken from; sentences.
    """
    held = {name: list(dict.fromkeys(names)) for name, names in lists.items() if names}
    chosen: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    notes: list[str] = []
    origin = next((name for name in ("train", "trainval", "all") if name in held), None)
    if origin is not None:
        apart = set(held.get("val", ())) if origin == "trainval" else set()
        chosen["train"], places["train"] = [name for name in held[origin] if name not in apart], origin
    if "val" in held:
        chosen["val"], places["val"] = held["val"], "val"
        if "test" in held:
            chosen["test"], places["test"] = held["test"], "test"
    elif "test" in held:
        chosen["val"], places["val"] = held["test"], "test"
        notes.append("there is no list of validation images: the test images are used for evaluation")
    elif len(chosen.get("train", ())) > 1:
        order = sorted(
            chosen["train"],
            key=lambda name: hashlib.sha1(name.encode(errors="surrogateescape"), usedforsecurity=False).digest(),
        )
        apart = set(order[: max(1, round(len(order) / 5))])
        chosen["val"], places["val"] = [name for name in chosen["train"] if name in apart], places["train"]
        chosen["train"] = [name for name in chosen["train"] if name not in apart]
        notes.append(
            f"there are neither validation nor test images: {len(apart):,} of the {len(order):,} images are kept for "
            "evaluation, chosen by the hash of their names and so always the same"
        )
    shared = set(chosen.get("train", ())) & set(chosen.get("val", ()))
    if shared:
        notes.append(f"{len(shared):,} images are in both train and {places['val']}: scores on them say little")
    return {name: names for name, names in chosen.items() if names}, places, notes


def to_coco(contents: Contents, split: str) -> dict[str, Any]:
    """COCO's table of one split, boxes clipped to their images; what is clipped or left out goes to the findings."""
    first_image = 1 + sum(len(contents.splits[name]) for name in list(contents.splits)[: _rank(contents, split)])
    where = contents.places[split]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(contents.splits[split], first_image):
        images.append(
            {"id": image_id, "file_name": picture.file_name, "width": picture.width, "height": picture.height}
        )
        for box in picture.boxes:
            x1, y1, x2, y2 = _clipped(box, picture, contents.findings, where)
            if box.corners[2] > box.corners[0] and box.corners[3] > box.corners[1] and (x2 <= x1 or y2 <= y1):
                continue  # wholly outside
            if box.difficult:
                contents.findings.add("difficult", where, count=1)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": contents.first_id + box.label,
                "bbox": [_short(x1), _short(y1), _short(x2 - x1), _short(y2 - y1)],
                "area": _short((x2 - x1) * (y2 - y1)),
                "iscrowd": int(box.difficult),
            }
            if box.outline:
                annotation["segmentation"] = [[_short(value) for value in box.outline]]
            annotations.append(annotation)
    categories = [{"id": contents.first_id + label, "name": name} for label, name in enumerate(contents.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _rank(contents: Contents, split: str) -> int:
    return list(contents.splits).index(split)


def _short(value: float) -> float:
    """A number as it should stand in a file: thousandths of a pixel, whole ones without a point."""
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _clipped(box: Box, picture: Picture, findings: Findings, where: str) -> tuple[float, float, float, float]:
    """The corners within the image; notes a box that reaches over the edge."""
    x1, y1, x2, y2 = box.corners
    width, height = picture.width, picture.height
    name = f"{picture.source} [{_short(x1)}, {_short(y1)}, {_short(x2)}, {_short(y2)}] in {width} x {height}"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        findings.add("box_outside", where, name)
    elif max(-x1, -y1, x2 - width, y2 - height) > EDGE_TOLERANCE:
        findings.add("box_beyond_edge", where, name)
    return min(max(x1, 0), width), min(max(y1, 0), height), max(min(x2, width), 0), max(min(y2, height), 0)


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
