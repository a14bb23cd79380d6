from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

SIZES = [(48, 64), (64, 48), (50, 50), (31, 64), (40, 60)]
"""(height, width) of the images of `mixed_coco`."""


def annotation(number: int, image_id: int, category_id: int, bbox: list[float], **others: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0}
    return entry | {"area": bbox[2] * bbox[3], "segmentation": [[1.5, 2, 3, 4e-2, 5, 6]]} | others


def mixed_content() -> dict[str, Any]:
    """Images of every kind: wide, high, square, thin, without objects; category ids with holes, out of order."""
    images = [
        {"id": 10 * i + 7, "file_name": f"{i}.png", "height": height, "width": width}
        for i, (height, width) in enumerate(SIZES)
    ]
    annotations = [
        annotation(1, 17, 90, [1.5, 2.5, 20.25, 30]),
        annotation(2, 7, 3, [10, 10, 30, 20]),
        annotation(3, 7, 90, [0, 0, 60, 40], iscrowd=1, segmentation={"counts": [1, 2], "size": [48, 64]}),
        annotation(4, 7, 0, [5, 5, 0.5, 10]),
        annotation(5, 7, 0, [70, 5, 10, 10]),
        annotation(6, 7, 0, [5, 5, 10, 10], area=0),
        annotation(7, 7, 0, [5, 5, 10, 10], ignore=1),
        annotation(8, 7, 0, [-5, -5, 10, 10]),
        annotation(9, 37, 0, [5, 5, 10, 10]),
        annotation(10, 999, 0, [5, 5, 10, 10]),
    ]
    categories = [{"id": 90, "name": "last"}, {"id": 0, "name": "first"}, {"id": 3, "name": "middle"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write_split(root: Path, split: str, content: dict[str, Any]) -> None:
    (root / f"{split}2017").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    for i, image in enumerate(content["images"]):
        pixels = np.random.default_rng(i).integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        assert cv2.imwrite(str(root / f"{split}2017" / image["file_name"]), pixels)


@pytest.fixture
def mixed_coco(tmp_path: Path) -> Path:
    """A COCO-layout folder with five images a split."""
    root = tmp_path / "mixed"
    write_split(root, "train", mixed_content())
    write_split(root, "val", mixed_content())
    return root


@pytest.fixture
def rewrite(mixed_coco: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes other annotations to the training split of `mixed_coco` and returns their path."""
    path = mixed_coco / "annotations" / "instances_train2017.json"

    def write(content: dict[str, Any]) -> Path:
        path.write_text(json.dumps(content))
        return path

    return write
