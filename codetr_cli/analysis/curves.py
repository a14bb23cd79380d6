"""Precision, recall and F1-score over recall and over the score from which detections count; the best threshold.

All at IoU 0.50, of the detections that `Matches` counts; ignored ones, such as those in crowds, are neither right nor
wrong. Shape letters: N detections of a class, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import RECALLS
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches

THRESHOLDS = np.arange(101) / 100
"""Scores of the curves over the threshold; each is the number nearest to its two digits."""
ALL_CLASSES = "all classes"
DEFAULT_THRESHOLD = 0.5
"""Where no threshold finds any object."""


@dataclass(frozen=True, eq=False)
class ClassCurve:
    """Curves of one class, or of all; undefined numbers are NaN.

    Attributes:
        name: of the class.
        category_id: original id; -1 for all classes together.
        objects: to find, without crowds.
        precision: (101,) of COCO's PR curve at the recalls 0, 0.01, ..., 1: the best precision at this recall or a
            higher one, 0 where no threshold reaches it; its mean is AP50. NaN without objects.
        f1: (101,) F1-score of the detections with scores from 0, 0.01, ..., 1 on; NaN without objects.
        precision_at: (101,) share of them that are right; NaN where no detection has this score.
        recall_at: (101,) share of the objects that they find; NaN without objects.
        best_threshold: score from which on detections have the best F1-score: the shortest number between the scores
            that it separates. Of thresholds with equal F1-scores the highest one. NaN where nothing is found.
        best_f1: F1-score at this threshold; 0 where nothing is found, NaN without objects.
        precision_at_best: precision there.
        recall_at_best: recall there.
    """

    name: str
    category_id: int
    objects: int
    precision: NDArray[np.float64]
    f1: NDArray[np.float64]
    precision_at: NDArray[np.float64]
    recall_at: NDArray[np.float64]
    best_threshold: float
    best_f1: float
    precision_at_best: float
    recall_at_best: float


def class_curves(inputs: AnalysisInputs, matches: Matches) -> list[ClassCurve]:
    """The curves of each class, in the order of the category ids."""
    counted = ~matches.ignored[0]
    scores, hits = matches.scores[counted], matches.hits()[counted]
    starts = np.searchsorted(matches.labels[counted], np.arange(matches.num_classes + 1)).tolist()
    classes = zip(
        inputs.ground_truth.class_names, inputs.ground_truth.category_ids, matches.class_objects.tolist(), strict=True
    )
    return [
        _curve(name, category_id, objects, scores[begin:end], hits[begin:end])
        for (name, category_id, objects), begin, end in zip(classes, starts[:-1], starts[1:], strict=True)
    ]


def overall_curve(inputs: AnalysisInputs, matches: Matches) -> ClassCurve:
    """The curves of all classes together, as if they were one: each object and each detection counts the same.

    A detection still has to have the class of its object. Classes with many objects decide; the mean of its precision
    is not the AP50 of all classes, in which each class counts the same.
    """
    del inputs  # as `class_curves`, which needs the names
    counted = np.flatnonzero(~matches.ignored[0])
    counted = counted[np.argsort(-matches.scores[counted], kind="stable")]
    objects = int(matches.class_objects.sum())
    return _curve(ALL_CLASSES, -1, objects, matches.scores[counted], matches.hits()[counted])


def suggested_thresholds(curves: Sequence[ClassCurve], overall: ClassCurve) -> NDArray[np.float64]:
    """(K,) threshold of each class; where it has none of its own, that of all classes, and else 0.5."""
    common = DEFAULT_THRESHOLD if math.isnan(overall.best_threshold) else overall.best_threshold
    own = np.array([curve.best_threshold for curve in curves], np.float64)
    return np.where(np.isnan(own), common, own)


def _curve(
    name: str, category_id: int, objects: int, scores: NDArray[np.float64], hits: NDArray[np.bool_]
) -> ClassCurve:
    """The curves of detections (N,) in falling order of their scores."""
    number = np.arange(1, len(scores) + 1)
    found = np.cumsum(hits, dtype=np.int64)
    cut = np.searchsorted(-scores, -THRESHOLDS, side="right")  # number of detections with this score or a higher one
    found_at = np.append(0, found)[cut]
    precision_at = np.divide(found_at, cut, out=np.full(len(cut), math.nan), where=cut > 0)
    if not objects:
        undefined = np.full(len(RECALLS), math.nan)
        return ClassCurve(
            name, category_id, 0, undefined, undefined, precision_at, undefined, math.nan, math.nan, math.nan, math.nan
        )
    best, threshold = _best_cut(scores, found, objects)
    return ClassCurve(
        name=name,
        category_id=category_id,
        objects=objects,
        precision=_interpolated(found / number, found / objects),
        f1=2 * found_at / (cut + objects),
        precision_at=precision_at,
        recall_at=found_at / objects,
        best_threshold=threshold,
        best_f1=2 * int(found[best - 1]) / (best + objects) if best else 0.0,
        precision_at_best=int(found[best - 1]) / best if best else math.nan,
        recall_at_best=int(found[best - 1]) / objects if best else math.nan,
    )


def _interpolated(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """(101,) COCO's interpolated precision, of (N,) precisions and recalls of falling thresholds."""
    best_from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    interpolated: NDArray[np.float64] = best_from_here[np.searchsorted(recall, RECALLS, side="left")]
    return interpolated


def _best_cut(scores: NDArray[np.float64], found: NDArray[np.int64], objects: int) -> tuple[int, float]:
    """How many detections have the best F1-score, and a threshold that separates them; (0, NaN) without a hit."""
    if not len(found) or not found[-1]:
        return 0, math.nan
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True)) + 1  # equal scores pass a threshold together
    best = int(ends[np.argmax(2 * found[ends - 1] / (ends + objects))])  # the first: the highest threshold
    below = float(scores[best]) if best < len(scores) else 0.0
    return best, shortest_between(below, float(scores[best - 1]))


def shortest_between(below: float, score: float) -> float:
    """The number with the fewest digits that is larger than `below` and not larger than `score`, both in [0, 1]."""
    for digits in range(1, 9):
        value = round(math.floor(score * 10**digits) / 10**digits, digits)
        if below < value <= score:
            return value
    return score
