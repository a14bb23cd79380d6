"""Annotations and detections with everything that evaluators differ in: crowds, ties, empty images, federated lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from codetr_cli.annotations.objects import Annotations
from codetr_cli.inference.detections import DetectionTable

CATEGORY_IDS = [2, 5, 9, 90]
IMAGE_IDS = [7, 5, 900, 12, 13, 14, 15, 16, 17, 18]


def write_material(path: Path, *, seed: int, lvis: bool = False, masks: bool = False) -> DetectionTable:
    """Writes an annotation file with objects of all sizes, crowds, and two images without objects.

    Returns:
        Detections with many equal scores, some of a wrong class or image, some exactly right.
    """
    generator = np.random.default_rng(seed)
    sizes = {image_id: generator.integers(60, 220, 2).tolist() for image_id in IMAGE_IDS}
    objects = [_object(generator, number, sizes, masks=masks) for number in range(60)]
    images: list[dict[str, Any]] = [
        {"id": image_id, "file_name": f"{image_id}.jpg", "height": h, "width": w} for image_id, (h, w) in sizes.items()
    ]
    categories: list[dict[str, Any]] = [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS]
    if lvis:
        for image in images:
            image["neg_category_ids"] = _some(generator, 0.4)
            image["not_exhaustive_category_ids"] = _some(generator, 0.25)
        for category, frequency in zip(categories, "rcff", strict=True):
            category["frequency"] = frequency
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return _detections(generator, objects, sizes, masks=masks)


def without_objects(*, lvis: bool) -> Annotations:
    """Annotations of one class and one image without objects."""
    none = np.zeros(0, np.int64)
    return Annotations(
        class_names=["a"],
        category_ids=[1],
        image_ids=np.array([1]),
        file_names=["1.jpg"],
        sizes=np.array([[10, 10]]),
        image_rows=none,
        labels=none,
        boxes_xywh=np.zeros((0, 4)),
        area=np.zeros(0),
        iscrowd=none,
        ignore=none != 0,
        frequencies=["f"] if lvis else [],
        neg_category_ids=[[]] if lvis else [],
        not_exhaustive_category_ids=[[]] if lvis else [],
    )


def make_lvis(path: Path) -> None:
    """Turns an annotation file of three classes into one of LVIS's, every class annotated exhaustively."""
    table = json.loads(path.read_text())
    for image in table["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    for category, frequency in zip(table["categories"], "rcf", strict=True):
        category["frequency"] = frequency
    path.write_text(json.dumps(table))


def _some(generator: np.random.Generator, share: float) -> list[int]:
    return [category_id for category_id in CATEGORY_IDS if generator.random() < share]


def _object(generator: np.random.Generator, number: int, sizes: dict[int, list[int]], *, masks: bool) -> dict[str, Any]:
    image_id = int(generator.choice(IMAGE_IDS[:-2]))
    x, y = generator.uniform(0, 60, 2).round(2).tolist()
    w, h = (generator.uniform(1, 60, 2) * generator.choice([0.3, 1, 3])).round(2).tolist()
    crowd = int(number % 7 == 0)
    outline: Any = [[x, y, x + w, y, x + 0.9 * w, y + 0.7 * h, x + 0.5 * w, y + h, x, y + 0.8 * h]]
    if crowd:
        outline = _mask(generator, (x, y, w, h), sizes[image_id])
    return {
        "id": number,  # from 0, which pycocotools takes for no match
        "image_id": image_id,
        "category_id": int(generator.choice(CATEGORY_IDS)),
        "bbox": [x, y, w, h],
        "area": round(w * h * float(generator.uniform(0.5, 1)), 3),
        "iscrowd": crowd,
        **({"segmentation": outline} if masks else {}),
    }


def _mask(generator: np.random.Generator, box: Any, size: list[int]) -> dict[str, Any]:
    x, y, w, h = box
    pixels = np.zeros(size, np.uint8)
    pixels[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = 1
    pixels &= generator.random(size) < 0.9
    return {"size": size, "counts": mask_utils.encode(np.asfortranarray(pixels))["counts"].decode()}


def _detections(
    generator: np.random.Generator, objects: list[dict[str, Any]], sizes: dict[int, list[int]], *, masks: bool
) -> DetectionTable:
    count = 600
    source = [objects[index] for index in generator.integers(0, len(objects), count)]
    boxes = np.array([entry["bbox"] for entry in source])
    boxes[60:] *= generator.uniform(0.8, 1.2, (count - 60, 4))
    elsewhere, otherwise = generator.random(count) < 0.1, generator.random(count) < 0.2
    image_ids = np.where(elsewhere, generator.choice(IMAGE_IDS, count), [entry["image_id"] for entry in source])
    categories = np.where(otherwise, generator.choice(CATEGORY_IDS, count), [e["category_id"] for e in source])
    rle = [_mask(generator, box, sizes[int(i)]) for box, i in zip(boxes, image_ids, strict=True)] if masks else None
    return DetectionTable(
        image_ids=image_ids.astype(np.int64),
        category_ids=categories.astype(np.int64),
        boxes_xywh=boxes.round(4),
        scores=generator.random(count).round(1),
        masks=rle,
        mask_scores=generator.random(count).round(1) if masks else None,
    )
