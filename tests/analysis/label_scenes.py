"""Annotations and detections for tests of suspected label errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_errors import LabelError, find_label_errors
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.formats.resolve import DataPaths
from codetr_cli.inference.detections import DetectionTable

Xywh = tuple[float, float, float, float]


def table_of(records: Sequence[dict[str, Any]]) -> DetectionTable:
    return DetectionTable(
        np.array([record["image_id"] for record in records], np.int64),
        np.array([record["category_id"] for record in records], np.int64),
        np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4),
        np.array([record["score"] for record in records], np.float64),
    )


def inputs_of(tmp_path: Path, content: dict[str, Any], records: Sequence[dict[str, Any]]) -> AnalysisInputs:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    paths = DataPaths(tmp_path, path, NameRule.of(tmp_path, allow_outside=False))
    return AnalysisInputs.of(read_annotations(path, with_outlines=True), table_of(records), paths)


class Scene:
    """Forty images with an object each that is found surely, and one with what a test puts there."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.content = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "width": 400, "height": 300} for n in range(1, 42)],
            "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "plate"}],
            "annotations": [],
        }
        self.records: list[dict[str, Any]] = []
        for image_id in range(1, 41):
            category_id = (3, 7)[image_id % 2]
            self.annotate((50, 50, 100, 80), category_id, image_id=image_id)
            self.detect((51, 49, 100, 81), category_id, 0.9, image_id=image_id)

    def annotate(self, box: Xywh, category_id: int = 3, *, crowd: int = 0, image_id: int = 41) -> int:
        self.content["annotations"].append(
            {
                "id": len(self.content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
        )
        return len(self.content["annotations"]) - 1

    def detect(self, box: Xywh, category_id: int = 3, score: float = 0.9, *, image_id: int = 41) -> int:
        self.records.append({"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score})
        return len(self.records) - 1

    def inputs(self) -> AnalysisInputs:
        return inputs_of(self._tmp_path, self.content, self.records)

    def errors(self, **options: Any) -> list[LabelError]:
        return find_label_errors(self.inputs(), **options)
