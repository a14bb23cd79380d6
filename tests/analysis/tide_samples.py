"""Detections with every type of error, the same in every release of Python, for figures of tidecv.

The figures in `tests/golden/tide` are of tidecv 1.0.1 for these samples; each file has the program that made them.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.inference.detections import DetectionTable
from tests.analysis.input_samples import inputs_of


@dataclass(frozen=True)
class Sample:
    """How a set of images, objects and detections is made.

    Attributes:
        seed: of the random numbers.
        images: number of images.
        classes: number of classes.
        objects: largest number of objects of an image.
        found: share of the objects that get detections.
        crowds: share of the objects that are crowds.
        others: largest number of detections of an image that are not of an object.
    """

    seed: int
    images: int = 60
    classes: int = 5
    objects: int = 8
    found: float = 0.7
    crowds: float = 0.0
    others: int = 4


SAMPLES = {
    "noisy": Sample(1),
    "dense": Sample(2, images=30, classes=3, objects=30),
    "sparse": Sample(3, images=80, classes=7, objects=3, found=0.5),
    "one_class": Sample(4, images=25, classes=1),
    "crowds": Sample(5, crowds=0.2),
    "many": Sample(6, images=12, others=300),
}


def records_of(sample: Sample) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Objects and detections in COCO's format; every class has objects, and scores differ."""
    numbers = random.Random(sample.seed)
    objects: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in range(1, sample.images + 1):
        for _ in range(numbers.randint(0, sample.objects)):
            category = numbers.randint(1, sample.classes)
            box = [numbers.uniform(0, 400), numbers.uniform(0, 300), numbers.uniform(10, 150), numbers.uniform(10, 150)]
            crowd = int(numbers.random() < sample.crowds)
            objects.append({"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd})
            if numbers.random() < sample.found:
                for _ in range(numbers.randint(1, 3)):
                    detections.append(_detection(numbers, sample, image, category, box))
        for _ in range(numbers.randint(0, sample.others)):
            box = [numbers.uniform(0, 400), numbers.uniform(0, 300), numbers.uniform(10, 150), numbers.uniform(10, 150)]
            detections.append(_detection(numbers, sample, image, numbers.randint(1, sample.classes), box))
    return objects, detections


def _detection(numbers: random.Random, sample: Sample, image: int, category: int, box: list[float]) -> dict[str, Any]:
    """A detection near a box, of its class or of another."""
    spread = numbers.choice([0.02, 0.1, 0.25])
    moved = [side + numbers.gauss(0, spread) * box[2 + place % 2] for place, side in enumerate(box)]
    moved[2:] = [max(1.0, side) for side in moved[2:]]
    if numbers.random() < 0.2:
        category = numbers.randint(1, sample.classes)
    return {"image_id": image, "category_id": category, "bbox": moved, "score": numbers.random()}


def inputs_of_sample(folder: Path, name: str) -> AnalysisInputs:
    """The inputs of an analysis of one of `SAMPLES`."""
    sample = SAMPLES[name]
    objects, detections = records_of(sample)
    content = {
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "height": 480, "width": 640}
            for image in range(1, sample.images + 1)
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, sample.classes + 1)],
        "annotations": [
            {"id": number, "area": record["bbox"][2] * record["bbox"][3], **record}
            for number, record in enumerate(objects, start=1)
        ],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return inputs_of(path, table_of(detections))


def table_of(records: list[dict[str, Any]]) -> DetectionTable:
    """Records of detections as a table."""
    return DetectionTable(
        image_ids=np.array([record["image_id"] for record in records], np.int64),
        category_ids=np.array([record["category_id"] for record in records], np.int64),
        boxes_xywh=np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4),
        scores=np.array([record["score"] for record in records], np.float64),
    )
