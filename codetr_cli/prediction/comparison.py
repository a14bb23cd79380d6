"""Compares the detections in an image with its annotated objects: hits, misses and false alarms.

Detections and objects of a class are matched as COCO's evaluation does it at one overlap: the best detection first,
each with the free object that it overlaps most. Detections that are matched with a crowd, and those that cannot be
judged, do not count.
Shape letters: N detections, G annotated objects.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from codetr_cli.prediction.ground_truth import ImageTruth

MIN_IOU = 0.5
WORST = 50
"""Images that are listed with their errors."""


@dataclass(frozen=True)
class Comparison:
    """What became of the detections and the annotated objects of an image.

    Attributes:
        truth: the annotated objects.
        hits: pairs of a detection and its object.
        false_alarms: detections without object, best first.
        misses: objects without detection, crowds excepted.
        ignored: detections that do not count.
    """

    truth: ImageTruth
    hits: list[tuple[int, int]]
    false_alarms: list[int]
    misses: list[int]
    ignored: list[int]

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {"hits": len(self.hits), "misses": len(self.misses), "false_alarms": len(self.false_alarms)}


def compare(
    boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], truth: ImageTruth
) -> Comparison:
    """Matches the detections of an image.

    Args:
        boxes_xyxy: (N, 4) in pixels.
        scores: (N,).
        labels: (N,) of the network.
        truth: of the same image.
    """
    hits: list[tuple[int, int]] = []
    alarms: list[int] = []
    ignored = np.flatnonzero(~truth.judged[labels]).tolist()
    matched: set[int] = set()
    for label in np.unique(labels[truth.judged[labels]]).tolist():
        found = np.flatnonzero(labels == label)
        found = found[np.argsort(-scores[found], kind="stable")]
        objects = np.flatnonzero(truth.labels == label)
        pairs = _match(boxes_xyxy[found].astype(np.float64), truth.boxes[objects], truth.iscrowd[objects])
        for detection, number in zip(found.tolist(), pairs, strict=True):
            if number is None:
                (alarms if truth.exhaustive[label] else ignored).append(detection)
            elif truth.iscrowd[objects[number]]:
                ignored.append(detection)
            else:
                hits.append((detection, int(objects[number])))
                matched.add(int(objects[number]))
    misses = [i for i in range(len(truth.labels)) if i not in matched and not truth.iscrowd[i]]
    return Comparison(truth, sorted(hits), sorted(alarms, key=lambda i: (-scores[i], i)), misses, sorted(ignored))


def _match(boxes: NDArray[np.float64], objects: NDArray[np.float64], iscrowd: NDArray[np.bool_]) -> list[int | None]:
    """The object of each detection of one class, best first: any free one before crowds, which match any number."""
    if not len(boxes) or not len(objects):
        return [None] * len(boxes)
    overlaps = coco_mask.iou(_xywh(boxes), _xywh(objects), iscrowd.astype(np.uint8).tolist())
    free = ~iscrowd
    pairs: list[int | None] = []
    for row in overlaps:
        for among in (free, iscrowd):
            usable = np.where(among & (row >= MIN_IOU), row, -1.0)
            if usable.max() >= 0:
                best = len(usable) - 1 - int(np.argmax(usable[::-1]))  # of equal ones the last, as COCO has it
                break
        else:
            pairs.append(None)
            continue
        pairs.append(best)
        free[best] = False
    return pairs


def _xywh(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


@dataclass
class ComparisonTotals:
    """Sums over images, and the images with most errors.

    Attributes:
        hits: matched detections.
        misses: objects without detection.
        false_alarms: detections without object.
        compared: images with annotations.
        others: images without annotations, or of another size than annotated.
    """

    hits: int = 0
    misses: int = 0
    false_alarms: int = 0
    compared: int = 0
    others: int = 0
    _worst: list[tuple[int, int, str, dict[str, int]]] = field(default_factory=list)

    @property
    def is_used(self) -> bool:
        """Whether any image was compared, or should have been."""
        return self.compared + self.others > 0

    def add(self, image: dict[str, Any]) -> None:
        """Counts an image by what `--json` says of it, if detections are compared."""
        if "against" not in image:
            return
        counts = image["against"]
        if counts is None:
            self.others += 1
            return
        self.compared += 1
        for name in ("hits", "misses", "false_alarms"):
            setattr(self, name, getattr(self, name) + counts[name])
        errors = counts["misses"] + counts["false_alarms"]
        if errors:
            entry = (errors, -self.compared, image["file_name"], counts)
            (heapq.heappush if len(self._worst) < WORST else heapq.heappushpop)(self._worst, entry)

    def worst(self) -> list[dict[str, Any]]:
        """The images with most errors, most first."""
        return [{"file_name": name, **counts} for _, _, name, counts in sorted(self._worst, reverse=True)]

    def summary(self) -> dict[str, Any]:
        """What `--json` says of all images; precision and recall are null without detections or objects."""
        found, objects = self.hits + self.false_alarms, self.hits + self.misses
        return {
            "min_iou": MIN_IOU,
            "images": self.compared,
            "images_without_annotations": self.others,
            "hits": self.hits,
            "misses": self.misses,
            "false_alarms": self.false_alarms,
            "precision": round(self.hits / found, 4) if found else None,
            "recall": round(self.hits / objects, 4) if objects else None,
            "worst": self.worst(),
        }
