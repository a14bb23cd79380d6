"""Objects and detections that a test places itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codetr_cli.analysis.inputs import AnalysisInputs
from tests.analysis.input_samples import inputs_of
from tests.analysis.tide_samples import table_of


class Scene:
    """Images of 400 x 300 pixels with the ids 1, 2, ..., and the classes "cup" (3) and "plate" (7).

    Attributes:
        content: of the annotation file.
        records: of the detections.
    """

    def __init__(self, folder: Path, images: int = 1) -> None:
        self._folder = folder
        self.content: dict[str, Any] = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "width": 400, "height": 300} for n in range(1, images + 1)],
            "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "plate"}],
            "annotations": [],
        }
        self.records: list[dict[str, Any]] = []

    def annotate(self, box: Sequence[float], category: int = 3, *, crowd: int = 0, image: int = 1) -> None:
        """Adds an object; `box` is (x, y, width, height)."""
        self.content["annotations"].append(
            {
                "id": len(self.content["annotations"]) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
        )

    def detect(self, box: Sequence[float], category: int = 3, score: float = 0.9, *, image: int = 1) -> None:
        """Adds a detection."""
        self.records.append({"image_id": image, "category_id": category, "bbox": list(box), "score": score})

    def inputs(self) -> AnalysisInputs:
        """The inputs of an analysis of it."""
        path = self._folder / "annotations.json"
        path.write_text(json.dumps(self.content))
        return inputs_of(path, table_of(self.records))
