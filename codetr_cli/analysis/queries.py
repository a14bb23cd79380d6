"""How many detections of an image are worth keeping? Recall and AP against their number.

A DETR gives at most one detection for each query and class: where recall still rises at the end of the curve, more
queries may find more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import average_precision
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import IOU_THRESHOLDS, Matches, match_detections, matches_of_ap50
from codetr_cli.analysis.pairs import group_ranks
from codetr_cli.evaluation.scoring import LVIS_MAX_DETS


class RecallAt(NamedTuple):
    """What the best detections of each image find.

    Attributes:
        detections: of each image, over all classes, that are kept.
        recall: share of all objects that are found, mean over IoU 0.50:0.95; NaN without objects.
        ap: AP over IoU 0.50:0.95 of the kept detections; NaN without objects.
        recall50: `recall` at IoU 0.50.
    """

    detections: int
    recall: float
    ap: float
    recall50: float


def recall_by_detections(
    inputs: AnalysisInputs, matches: Matches | None = None, of_ap50: Matches | None = None
) -> list[RecallAt]:
    """Recall and AP of the best 1, 3, 10, 30, ... detections of each image, up to the most that an image has.

    For AP, of the kept detections those of `Matches` count, as in every AP, so that the last point is the AP of the
    evaluation: by COCO's rules 100 of an image and class. For recall 1000 of them count, as otherwise it would stay the
    same from the 100th detection of a single class on. By LVIS's rules the 300 best of an image count for both; there
    are no points beyond.

    Args:
        inputs: detections and objects; empty without any detection.
        matches: of the boxes of these inputs; None: they are computed.
        of_ap50: from `matches_of_ap50`; None: they are computed.
    """
    matches = match_detections(inputs) if matches is None else matches
    of_recall = matches_of_ap50(inputs, matches) if of_ap50 is None else of_ap50
    ranks = _ranks_in_image(inputs)
    most = int(ranks.max(initial=-1)) + 1
    if inputs.ground_truth.is_lvis:
        most = min(most, LVIS_MAX_DETS)
    objects = int(matches.class_objects.sum())
    found = [np.sort(ranks[of_recall.rows[of_recall.hits(level)]]) for level in range(len(IOU_THRESHOLDS))]
    points = []
    for number in _numbers(most):
        kept = [int(np.searchsorted(of_level, number)) for of_level in found]
        ap = average_precision(matches.select(ranks[matches.rows] < number))
        recall, recall50 = (sum(kept) / len(kept) / objects, kept[0] / objects) if objects else (math.nan, math.nan)
        points.append(RecallAt(number, recall, ap, recall50))
    return points


def _ranks_in_image(inputs: AnalysisInputs) -> NDArray[np.int64]:
    """(N,) how many detections of its image are better than each; of equal scores, earlier rows are."""
    detections = inputs.detections
    order = np.argsort(-detections.scores, kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = group_ranks(detections.image_ids[order])
    return ranks


def _numbers(most: int) -> list[int]:
    """1, 3, 10, 30, 100, ... below `most`, and `most`; empty for 0."""
    steps = [digit * 10**power for power in range(len(str(most))) for digit in (1, 3)]
    return [number for number in steps if number < most] + [most] * (most > 0)
