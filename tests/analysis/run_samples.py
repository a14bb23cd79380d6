"""Small data sets with random objects, and detections of a detector of a chosen quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import Annotations
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.detections import DetectionTable

SIDE = 400
"""Pixels of each image."""
NAMES = ("disc", "ring", "star")


def annotations(images: int = 40, *, classes: Sequence[str] = NAMES, seed: int = 0, crowds: int = 0) -> Annotations:
    """Images with one to six objects each; the first objects are crowds."""
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(images), random.integers(1, 7, images))
    sides = np.exp(random.uniform(np.log(12), np.log(150), (len(rows), 2)))
    corners = random.uniform(0, 1, (len(rows), 2)) * (SIDE - sides)
    return Annotations(
        class_names=list(classes),
        category_ids=[2 * number + 1 for number in range(len(classes))],
        image_ids=np.arange(images) + 10,
        file_names=[f"{number:04d}.jpg" for number in range(images)],
        sizes=np.full((images, 2), SIDE),
        image_rows=rows,
        labels=random.integers(0, len(classes), len(rows)),
        boxes_xywh=np.concatenate([corners, sides], axis=1),
        area=sides.prod(axis=1),
        iscrowd=(np.arange(len(rows)) < crowds).astype(np.int64),
        ignore=np.zeros(len(rows), bool),
    )


def detections(truth: Annotations, *, seed: int, found: float = 0.7, noise: float = 0.08) -> DetectionTable:
    """Detections of a share of the objects with moved boxes, and as many false alarms with lower scores.

    Args:
        truth: the objects.
        seed: of this detector.
        found: share of the objects.
        noise: of the boxes, as a share of their sides.
    """
    random = np.random.default_rng(seed)
    rows = np.flatnonzero(random.uniform(size=len(truth.labels)) < found)
    boxes = truth.boxes_xywh[rows]
    moved = boxes + random.normal(0, noise, (len(rows), 4)) * boxes[:, [2, 3, 2, 3]]
    moved[:, 2:] = moved[:, 2:].clip(2)
    alarms = len(rows)
    wrong = np.concatenate([random.uniform(0, 300, (alarms, 2)), random.uniform(10, 90, (alarms, 2))], axis=1)
    ids, categories = np.asarray(truth.image_ids), np.asarray(truth.category_ids)
    return DetectionTable(
        image_ids=np.concatenate([ids[truth.image_rows[rows]], random.choice(ids, alarms)]),
        category_ids=np.concatenate([categories[truth.labels[rows]], random.choice(categories, alarms)]),
        boxes_xywh=np.concatenate([moved, wrong]).round(4),
        scores=np.concatenate([random.beta(4, 2, len(rows)), random.beta(2, 4, alarms)]).round(8),
    )


def inputs(truth: Annotations, table: DetectionTable, images: Sequence[int] | None = None) -> AnalysisInputs:
    """Detections with the annotations that they are compared with; the images are nowhere."""
    return AnalysisInputs.of(truth, table, DataPaths(Path("images"), Path("val.json"), NameRule.of(Path())), images)


def copied_images(truth: Annotations, table: DetectionTable, rows: np.ndarray) -> tuple[Annotations, DetectionTable]:
    """A data set in which images, by their rows, are as often as they are listed."""
    objects = [np.flatnonzero(truth.image_rows == row) for row in rows]
    found = [np.flatnonzero(table.image_ids == truth.image_ids[row]) for row in rows]
    chosen = np.concatenate(objects)
    columns = {name: getattr(truth, name)[chosen] for name in ("labels", "boxes_xywh", "area", "iscrowd", "ignore")}
    copy = replace(
        truth,
        **columns,
        image_ids=np.arange(len(rows)) + 1,
        file_names=[str(number) for number in range(len(rows))],
        image_rows=np.repeat(np.arange(len(rows)), [len(each) for each in objects]),
    )
    ids = np.repeat(np.arange(len(rows)) + 1, [len(each) for each in found])
    return copy, replace(table.select(np.concatenate(found)), image_ids=ids)
