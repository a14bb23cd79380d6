"""Detections and objects as boxes over pictures, with their texts."""

from __future__ import annotations

from collections.abc import Iterable

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.report.pictures import Box, DrawnBox, Kind


class Boxes:
    """Boxes of the rows of an analysis.

    Args:
        inputs: detections and objects.
    """

    def __init__(self, inputs: AnalysisInputs) -> None:
        self._inputs = inputs
        truth = inputs.ground_truth
        self._names = dict(zip(truth.category_ids, truth.class_names, strict=True))

    def objects(self, rows: Iterable[int], kind: Kind) -> list[DrawnBox]:
        """Annotated objects, by their rows in the annotations."""
        truth = self._inputs.ground_truth
        return [
            DrawnBox(xyxy(truth.boxes_xywh[row]), kind, truth.class_names[int(truth.labels[row])])
            for row in map(int, rows)
        ]

    def detections(self, rows: Iterable[int], kind: Kind) -> list[DrawnBox]:
        """Detections, by their rows in the detections."""
        table = self._inputs.detections
        return [
            DrawnBox(
                xyxy(table.boxes_xywh[row]), kind, f"{self.name(int(table.category_ids[row]))} {table.scores[row]:.2f}"
            )
            for row in map(int, rows)
        ]

    def name(self, category_id: int) -> str:
        """Name of a class."""
        return self._names.get(category_id, str(category_id))


def xyxy(box_xywh: Iterable[float]) -> Box:
    """A box (x, y, width, height) as its corners."""
    x, y, width, height = (float(value) for value in box_xywh)
    return x, y, x + width, y + height
