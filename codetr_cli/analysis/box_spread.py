"""How far the sides of detections usually are from those of annotated boxes: further ones are loose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.label_evidence import ImageEvidence

SURE = 0.5
"""Share of annotated objects from which detections are used for what is usual."""


@dataclass(frozen=True)
class BoxSpread:
    """How far the sides of sure detections are from those of the objects that they have found.

    Attributes:
        sides: (4,) typical deviation of left, top, right and bottom, as parts of the object's width and height.
    """

    sides: NDArray[np.float64]

    @classmethod
    def of(cls, evidence: Sequence[ImageEvidence]) -> BoxSpread:
        """By the median of the deviations: a few wrong boxes do not change it."""
        found = [np.zeros((0, 4))]
        for each in evidence:
            objects = np.flatnonzero(each.detection_of >= 0)
            detections = each.detection_of[objects]
            sure = each.sureness[detections] >= SURE
            found.append(deviations(each.boxes[detections[sure]], each.object_boxes[objects[sure]]))
        joined = np.abs(np.concatenate(found))
        median = np.median(joined, axis=0) if len(joined) else np.full(4, 0.1)
        return cls(np.maximum(1.4826 * median, 0.005))

    def of_pair(self, box: NDArray[np.float64], annotated: NDArray[np.float64]) -> float:
        """The largest deviation of a side, in typical ones."""
        return float((np.abs(deviations(box[None], annotated[None]))[0] / self.sides).max())


def deviations(boxes: NDArray[np.float64], annotated: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) distances of left, top, right, bottom between boxes xywh, as parts of the annotated width and height."""
    sizes = np.maximum(annotated[:, 2:], 1.0)
    start = (boxes[:, :2] - annotated[:, :2]) / sizes
    end = (boxes[:, :2] + boxes[:, 2:] - annotated[:, :2] - annotated[:, 2:]) / sizes
    return np.concatenate([start, end], axis=1)
