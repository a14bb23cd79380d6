"""Detections of two networks in the same image, matched one to one, and how they differ.

Element by element, the outputs of two correct networks may differ at will: queries with nearly equal scores swap their
places. The detections that they stand for must not.
Shape letters: N, M detections of the two, P matched pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from codetr_cli.export.tolerances import BEST, MIN_IOU, MIN_SCORE, Tolerance
from codetr_cli.inference.prediction import Prediction

IMPOSSIBLE = 10.0  # more than any possible cost


@dataclass(frozen=True)
class Agreement:
    """Two predictions of an image, matched.

    Attributes:
        reference: of the checkpoint, all of it.
        other: of the file.
        rows: (P, 2) int64, rows of the reference and of the other that are the same detection.
        missing: rows of the reference, above `floor` and the tolerance, without counterpart.
        extra: rows of the other, likewise.
        score_differences: (P,) of the other minus the reference.
        box_differences: (P, 4) likewise, in pixels of the network's input.
        mask_ious: (P,); empty without masks.
        floor: lowest score that is compared.
        outliers: pairs that differ by more than the tolerance.
    """

    reference: Prediction
    other: Prediction
    rows: NDArray[np.int64]
    missing: NDArray[np.int64]
    extra: NDArray[np.int64]
    score_differences: NDArray[np.float64]
    box_differences: NDArray[np.float64]
    mask_ious: NDArray[np.float64]
    floor: float
    outliers: int

    @property
    def compared(self) -> int:
        """Detections that were compared, matched or not."""
        return len(self.rows) + len(self.missing) + len(self.extra)

    @property
    def wrong(self) -> int:
        """Pairs that differ by more than the tolerance, and detections without counterpart."""
        return self.outliers + len(self.missing) + len(self.extra)


def lowest_score(scores: NDArray[np.float32]) -> float:
    """The lowest score, of those of the checkpoint in an image (N,), best first, that is compared."""
    if len(scores) and scores[0] >= MIN_SCORE:
        return MIN_SCORE
    return float(scores[:BEST][-1]) if len(scores) else MIN_SCORE


def compare(
    reference: Prediction,
    other: Prediction,
    tolerance: Tolerance,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    any_class: bool = False,
) -> Agreement:
    """Matches the detections of an image one to one, by IoU, class and score, so that the total difference is least.

    Args:
        reference: of the checkpoint, with all scores.
        other: of the file, with all scores.
        tolerance: for `outliers`.
        scale: pixels (w, h) of the network's input for one of the image.
        any_class: match detections of different classes, too.
    """
    floor = lowest_score(reference.scores)
    ious = box_ious(reference.boxes, other.boxes)
    apart = np.abs(reference.scores[:, None].astype(np.float64) - other.scores[None])
    possible = ious >= MIN_IOU
    if not any_class:
        possible &= reference.labels[:, None] == other.labels[None]
    rows = np.stack(linear_sum_assignment(np.where(possible, 1 - ious + apart, IMPOSSIBLE)), axis=1)
    rows = rows[possible[rows[:, 0], rows[:, 1]]]
    limit = tolerance.score * max(MIN_SCORE, float(reference.scores.max(initial=0)))
    # One that is only just above the floor on one side may be the first below it, or below the least of NMS, on the
    # other.
    missing = np.setdiff1d(np.flatnonzero(reference.scores > floor + limit), rows[:, 0])
    extra = np.setdiff1d(np.flatnonzero(other.scores > floor + limit), rows[:, 1])
    rows = rows[(reference.scores[rows[:, 0]] >= floor) | (other.scores[rows[:, 1]] > floor + limit)]
    first, second = rows[:, 0], rows[:, 1]
    score_differences = other.scores[second].astype(np.float64) - reference.scores[first]
    in_input = np.array([*scale, *scale])
    box_differences = (other.boxes[second].astype(np.float64) - reference.boxes[first]) * in_input
    beyond = (np.abs(score_differences) > limit) | (np.abs(box_differences) > tolerance.box_px).any(axis=1)
    return Agreement(
        reference=reference,
        other=other,
        rows=rows,
        missing=missing,
        extra=extra,
        score_differences=score_differences,
        box_differences=box_differences,
        mask_ious=_mask_ious(reference, other, rows),
        floor=floor,
        outliers=int(beyond.sum()),
    )


def box_ious(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """IoU (N, M) of boxes (N, 4) and (M, 4), xyxy; 1 for two equal boxes without area."""
    a, b = first[:, None].astype(np.float64), second[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(0).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    ious = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return np.where((np.abs(a - b) < 1e-3).all(axis=-1), 1.0, ious)


def _mask_ious(reference: Prediction, other: Prediction, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    if reference.masks is None or other.masks is None or not len(rows):
        return np.zeros(0)
    pairs = (
        (reference[[int(first)]].bitmaps(), other[[int(second)]].bitmaps()) for first, second in rows
    )  # one after the other: the masks of a large image fill the memory
    return np.array([(a & b).sum() / max((a | b).sum(), 1) if (a | b).any() else 1.0 for a, b in pairs])
