"""Which detections of an image become labels, under which classes, and which of them somebody should look at.

An image is to be reviewed if a detection has a score in the band. Detections in the band that are too weak to become
labels count, too, as objects that may have been missed; but not where they overlap a label with a score above the band
by `KNOWN_OBJECT_IOU` or more: then the object is known, and the weak detection is another reading of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from codetr_cli.inference.detector import Detector
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.labels.class_map import ClassMap, box_iou
from codetr_cli.prediction.labels.options import Band, LabelOptions

__all__ = ["LabelOptions", "LabelSelection"]

KNOWN_OBJECT_IOU = 0.5
MAX_REASONS = 20
"""Detections that are listed as reasons of an image; all are counted."""
BOX_DIGITS = 2
SCORE_DIGITS = 4


class LabelSelection:
    """Chooses the labels among the detections of a network.

    Args:
        detector: the network.
        options: how images are detected.
        labels: which detections become labels.

    Attributes:
        options: what the network must be asked with: lower scores where the band starts below them.
        class_names: of the labels.
        category_ids: of the labels.

    Raises:
        ConfigError: scores or class map name a class that the network does not have.
    """

    def __init__(self, detector: Detector, options: DetectOptions, labels: LabelOptions) -> None:
        options.check_classes(detector.class_names)
        self._wanted, self._band = options, labels.review
        self._limits = np.array(options.scores_of(detector.class_names), np.float32)
        classes = ClassMap.of(detector.class_names, detector.category_ids, labels.class_map)
        self._classes = classes if labels.class_map else None
        self.class_names, self.category_ids = classes.names, classes.ids
        self.options = options
        if labels.review is not None:
            low = labels.review[0]
            self.options = replace(
                options,
                score=min(options.score, low),
                class_scores={name: min(score, low) for name, score in options.class_scores.items()},
            )
            if options.max_dets is not None and options.max_dets <= detector.loaded.postprocess.max_detections:
                self.options = replace(self.options, max_dets=None)

    def select(self, prediction: Prediction) -> tuple[Prediction, dict[str, Any] | None]:
        """The labels, and why the image is to be reviewed: `count` and `detections`; None without a reason."""
        if self._band is None:
            return (self._mapped(prediction), None)
        strong = prediction.scores >= self._limits[prediction.labels]
        kept = self._mapped(prediction[strong][: self._wanted.max_dets])  # as without a band: the map comes last
        return kept, _reasons(kept, self._mapped(prediction[~strong]), self._band)

    def _mapped(self, prediction: Prediction) -> Prediction:
        return prediction if self._classes is None else self._classes.apply(prediction)


def _reasons(kept: Prediction, weak: Prediction, band: Band) -> dict[str, Any] | None:
    low, high = band
    known = kept.boxes[kept.scores >= high]
    weak = weak[(weak.scores >= low) & (weak.scores < high)]
    if len(known) and len(weak):
        weak = weak[box_iou(weak.boxes, known).max(1) < KNOWN_OBJECT_IOU]
    doubtful = kept[(kept.scores >= low) & (kept.scores < high)]
    rows = [(one, True) for one in doubtful] + [(one, False) for one in weak]
    if not rows:
        return None
    rows.sort(key=lambda row: -row[0].score)
    reasons = []
    for one, is_label in rows[:MAX_REASONS]:
        x1, y1, x2, y2 = one.box
        box = [round(value, BOX_DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]
        reasons.append(
            {"class": one.class_name, "score": round(one.score, SCORE_DIGITS), "bbox": box, "is_label": is_label}
        )
    return {"count": len(rows), "detections": reasons}
