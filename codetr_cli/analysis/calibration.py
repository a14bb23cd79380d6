"""Are scores probabilities? Of the detections with a score around 0.8, 80 % should be right.

Expected calibration error: Guo et al., arXiv 1706.04599; a detection is right if it finds an object of its class at IoU
0.50. A detector with 300 queries gives every image some hundred detections with scores close to 0, all of them wrong
and well calibrated: with them, every error would be close to 0. So only detections from `MIN_SCORE` on count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches

BINS = 10
MIN_SCORE = 0.05


@dataclass(frozen=True)
class Bin:
    """Detections with scores between two limits; NaN where there are none.

    Attributes:
        low: smallest score that counts.
        high: largest score; it belongs to the next bin, except in the last one.
        confidence: mean of the scores.
        accuracy: share of the detections that are right.
        count: of the detections.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class ClassCalibration:
    """Calibration of one class; NaN without detections that count.

    Attributes:
        name: of the class.
        category_id: original id.
        count: detections that count.
        confidence: mean of their scores.
        accuracy: share of them that are right; lower than `confidence`: scores are too high.
        ece: expected calibration error, in the same bins.
    """

    name: str
    category_id: int
    count: int
    confidence: float
    accuracy: float
    ece: float


@dataclass(frozen=True)
class Calibration:
    """Scores beside how often they are right, at IoU 0.50.

    Attributes:
        bins: of equal width, ascending.
        ece: expected calibration error: mean difference of confidence and accuracy over the bins, weighted by their
            detections; NaN without detections.
        mce: maximum calibration error: the largest difference of a bin.
        per_class: in the order of the category ids.
        min_score: detections with lower scores do not count.
        count: detections that count.
    """

    bins: list[Bin]
    ece: float
    mce: float
    per_class: list[ClassCalibration] = field(default_factory=list)
    min_score: float = MIN_SCORE
    count: int = 0


def calibration(
    inputs: AnalysisInputs, matches: Matches, bins: int = BINS, min_score: float = MIN_SCORE
) -> Calibration:
    """Compares the scores of detections with how often these are right.

    Args:
        inputs: names the classes.
        matches: detections in crowds, which are ignored, do not count.
        bins: of equal width in [0, 1].
        min_score: the lowest score that counts.
    """
    counted = ~matches.ignored[0] & (matches.scores >= min_score)
    scores, right, labels = matches.scores[counted], matches.hits()[counted], matches.labels[counted]
    edges = np.arange(bins + 1) / bins
    number = (np.searchsorted(edges, scores, side="right") - 1).clip(0, bins - 1)
    cells = labels * bins + number
    size = matches.num_classes * bins
    counts, score_sums, right_sums = (
        np.bincount(cells, weights=weights, minlength=size).reshape(-1, bins).astype(np.float64)
        for weights in (None, scores, right)
    )
    of_bins = _means(counts.sum(axis=0), score_sums.sum(axis=0), right_sums.sum(axis=0))
    gaps = np.abs(of_bins[0] - of_bins[1])
    ground_truth = inputs.ground_truth
    classes = zip(ground_truth.class_names, ground_truth.category_ids, counts, score_sums, right_sums, strict=True)
    return Calibration(
        bins=[
            Bin(max(low, min(min_score, high)), high, confidence, accuracy, int(count))
            for low, high, confidence, accuracy, count in zip(
                edges[:-1].tolist(),
                edges[1:].tolist(),
                *(values.tolist() for values in of_bins),
                counts.sum(axis=0).tolist(),
                strict=True,
            )
        ],
        ece=_expected_error(counts.sum(axis=0), score_sums.sum(axis=0), right_sums.sum(axis=0)),
        mce=float(np.nanmax(gaps)) if len(scores) else math.nan,
        per_class=[
            ClassCalibration(
                name, category_id, int(count.sum()), *_mean_of(count, score, hit), _expected_error(count, score, hit)
            )
            for name, category_id, count, score, hit in classes
        ],
        min_score=min_score,
        count=len(scores),
    )


def _means(
    counts: NDArray[np.float64], score_sums: NDArray[np.float64], right_sums: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean score and share of right detections, NaN where there are none."""
    undefined = np.full(counts.shape, math.nan)
    confidence = np.divide(score_sums, counts, out=undefined.copy(), where=counts > 0)
    return confidence, np.divide(right_sums, counts, out=undefined, where=counts > 0)


def _mean_of(*sums: NDArray[np.float64]) -> tuple[float, float]:
    """Mean score and share of right detections of all bins; see `_means`."""
    confidence, accuracy = _means(*(values.sum(keepdims=True) for values in sums))
    return float(confidence[0]), float(accuracy[0])


def _expected_error(
    counts: NDArray[np.float64], score_sums: NDArray[np.float64], right_sums: NDArray[np.float64]
) -> float:
    total = counts.sum()
    return float(np.abs(score_sums - right_sums).sum() / total) if total else math.nan
