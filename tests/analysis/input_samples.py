"""Small inputs of analyses, with everything that evaluators differ in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.detections import DetectionTable
from tests.evaluation.annotation_samples import write_material


def inputs_of(path: Path, detections: DetectionTable, *, masks: bool = False, images: Any = None) -> AnalysisInputs:
    """The inputs of an annotation file; `images` chooses some."""
    paths = DataPaths(path.parent, path, NameRule((str(path.parent),)))
    return AnalysisInputs.of(read_annotations(path, with_outlines=masks), detections, paths, images)


def material(folder: Path, *, seed: int = 0, lvis: bool = False, masks: bool = False) -> AnalysisInputs:
    """Crowds, equal scores and equal IoUs, images without objects, and detections in classes that are not there."""
    detections = write_material(folder / "a.json", seed=seed, lvis=lvis, masks=masks)
    return inputs_of(folder / "a.json", detections, masks=masks)


def all_found(folder: Path, *, seed: int) -> AnalysisInputs:
    """One class whose objects are all found, each by a detection with a random score, beside false alarms."""
    generator = np.random.default_rng(seed)
    objects = [(number, _score(generator.beta(4, 2))) for number in range(40)]
    alarms = [(None, _score(generator.beta(2, 4))) for _ in range(80)]
    return scattered(folder, objects=40, detections=[*objects, *alarms])


def scattered(folder: Path, *, objects: int, detections: Sequence[tuple[int | None, float]]) -> AnalysisInputs:
    """One class with an object in each image; detections (object or None, score) do not touch each other.

    The false alarms are in the images in turn.
    """
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 9000, "width": 100} for i in range(objects)]
    annotations = [
        {"id": i + 1, "image_id": i, "category_id": 7, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0}
        for i in range(objects)
    ]
    path = folder / "scattered.json"
    categories = [{"id": 7, "name": "seven"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    tables = []
    for number, (found, score) in enumerate(detections):
        y = 0 if found is not None else 30 * (number + 1)
        box = np.array([[0.0, y, 20, y + 20]])
        tables.append(DetectionTable.of_image(number % objects if found is None else found, box, [score], [7]))
    return inputs_of(path, DetectionTable.join(tables))


def crowded(folder: Path, *, images: int = 6, objects: int = 140) -> AnalysisInputs:
    """One class with more small objects in each image than AP counts detections; most are found, loosely in part."""
    generator = np.random.default_rng(0)
    found = [(image, number) for image in range(images) for number in range(objects)]
    annotations = [
        {"id": i + 1, "image_id": image, "category_id": 7, "bbox": [0, 30 * n, 20, 20], "area": 400, "iscrowd": 0}
        for i, (image, n) in enumerate(found)
    ]
    sizes = [{"id": image, "file_name": f"{image}.jpg", "height": 9000, "width": 100} for image in range(images)]
    path = folder / "crowded.json"
    categories = [{"id": 7, "name": "seven"}]
    path.write_text(json.dumps({"images": sizes, "annotations": annotations, "categories": categories}))
    tables = []
    for image, number in found:
        y = 30 * number + generator.choice([1, 4, 9], p=[0.6, 0.2, 0.2])
        box = np.array([[0.0, y, 20, y + 20]])
        tables.append(DetectionTable.of_image(image, box, [_score(generator.beta(4, 2))], [7]))
    return inputs_of(path, DetectionTable.join(tables))


def _score(value: float) -> float:
    """With four digits, and on no edge of a bin."""
    return round(min(value, 0.999) - value % 0.001 + 0.0005, 4)


def coarse(folder: Path, *, seed: int) -> AnalysisInputs:
    """Boxes of whole pixels in small images: IoUs exactly at the thresholds, equal IoUs, equal scores, equal objects.

    Some boxes have no width, or a larger area than COCO's largest; those of some detections have a negative height.
    """
    generator = np.random.default_rng(seed)

    def boxes(count: int, lowest: int) -> np.ndarray:
        sides = generator.integers(1, 12, (count, 2)) * np.array([1, 2])
        found = np.concatenate([generator.integers(0, 6, (count, 2)), sides], axis=1).astype(float)
        odd = generator.random(count)
        found[odd < 0.03, 2] = 0
        found[(odd >= 0.03) & (odd < 0.06), 3] *= lowest
        found[(odd >= 0.06) & (odd < 0.09)] = [0, 0, 200_000, 100_000]
        return found

    images = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 40} for i in (3, 1, 2)]
    annotations = [
        {
            "id": number + 1,
            "image_id": int(generator.integers(1, 4)),
            "category_id": int(generator.integers(4, 6)),
            "bbox": box,
            "area": abs(box[2] * box[3]),
            "iscrowd": int(generator.random() < 0.2),
        }
        for number, box in enumerate(boxes(60, 1).tolist())
    ]
    path = folder / "coarse.json"
    categories = [{"id": i, "name": str(i)} for i in (4, 5)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    count = 900
    table = DetectionTable(
        image_ids=generator.integers(1, 4, count),
        category_ids=generator.integers(4, 6, count),
        boxes_xywh=boxes(count, -1),
        scores=generator.random(count).round(2),
    )
    return inputs_of(path, table)
