"""Small datasets in the published layouts of LVIS and Objects365."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ADDRESS = "http://images.cocodataset.org/"


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((48, 64, 3), 90, np.uint8))


def annotation(number: int, image_id: int, category_id: int, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [5, 5, 20, 20],
        "area": 400.0,
        "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]],
    } | more


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def lvis_content(split: str, first_id: int) -> dict[str, Any]:
    """Four images, one of the other split's folder; class 3 is in one of them, class 2 in none."""
    other = {"train": "val", "val": "train"}[split]
    images = [
        {
            "id": first_id + i,
            "coco_url": f"{ADDRESS}{(other if i == 3 else split)}2017/{first_id + i:012d}.jpg",
            "height": 48,
            "width": 64,
            "neg_category_ids": [2],
            "not_exhaustive_category_ids": [1] if i == 0 else [],
        }
        for i in range(4)
    ]
    categories = [
        {"id": 3, "name": "zucchini", "frequency": "r", "synset": "z.n.01", "image_count": 1},
        {"id": 1, "name": "aerosol_can", "frequency": "f"},
        {"id": 2, "name": "air_conditioner", "frequency": "c"},
    ]
    objects = [annotation(i + 1, first_id + i, 1) for i in range(3)] + [annotation(9, first_id + 1, 3)]
    return {"images": images, "annotations": objects, "categories": categories}
