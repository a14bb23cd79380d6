"""The images with the most errors, with what is annotated and what is detected in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.image_outcomes import ImageOutcomes, image_outcomes
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches

HOW_RANKED = (
    "Images are ranked by their number of missed objects plus the summed scores of their false alarms: a false alarm "
    "with a score of 0.9 counts nearly as much as a missed object."
)
"""For the report, beside the images."""


@dataclass(frozen=True, eq=False)
class WorstImage:
    """An image with errors, at IoU 0.50 and a threshold for each class.

    Attributes:
        image: number of the evaluated image.
        image_id: in the annotations.
        file_name: in the annotations.
        f1: F1-score of this image.
        hits: number of objects found.
        misses: number of objects not found.
        false_alarms: number of detections that find nothing.
        loss: misses plus the summed scores of the false alarms.
        hit_rows: (hits,) int64 rows of the detections that find an object, best score first.
        found_rows: (hits,) int64 rows in the annotations of the objects that they find, in the same order.
        alarm_rows: (false_alarms,) int64 rows of the detections that find nothing, best score first.
        missed_rows: (misses,) int64 rows in the annotations of the objects not found.
        crowd_rows: int64 rows in the annotations of crowds.
        ignored_rows: int64 rows of detections that are neither right nor wrong.
    """

    image: int
    image_id: int
    file_name: str
    f1: float
    hits: int
    misses: int
    false_alarms: int
    loss: float
    hit_rows: NDArray[np.int64]
    found_rows: NDArray[np.int64]
    alarm_rows: NDArray[np.int64]
    missed_rows: NDArray[np.int64]
    crowd_rows: NDArray[np.int64]
    ignored_rows: NDArray[np.int64]


def worst_images(
    inputs: AnalysisInputs, matches: Matches, thresholds: NDArray[np.float64], limit: int = 40
) -> list[WorstImage]:
    """The images with the largest `loss`, of equal ones the lower F1-score, then the lower number; none without errors.

    Args:
        inputs: names the images.
        matches: of these inputs.
        thresholds: (K,) the lowest score that counts, for each class; see `curves.suggested_thresholds`.
        limit: so many images at most.
    """
    outcomes = image_outcomes(matches, thresholds)
    alarms = outcomes.shown & matches.false_alarms()
    scores = np.bincount(matches.images[alarms], weights=matches.scores[alarms], minlength=matches.num_images)
    loss = outcomes.misses + scores
    total = 2 * outcomes.hits + outcomes.errors
    f1 = np.divide(2 * outcomes.hits, total, out=np.full(len(total), math.nan), where=total > 0)
    order = np.lexsort((np.nan_to_num(f1), -loss.round(9)))
    return [
        _worst_image(inputs, outcomes, image, float(f1[image]), float(loss[image]))
        for image in order[:limit].tolist()
        if loss[image] > 0
    ]


def _worst_image(inputs: AnalysisInputs, outcomes: ImageOutcomes, image: int, f1: float, loss: float) -> WorstImage:
    matches = outcomes.matches
    here = np.flatnonzero((matches.images == image) & outcomes.shown)
    here = here[np.argsort(-matches.scores[here], kind="stable")]
    objects = np.flatnonzero(matches.object_images == image)
    hits = here[matches.hits()[here]]
    taken = matches.objects[0, hits]
    to_find = objects[~matches.object_ignored[objects]]
    return WorstImage(
        image=image,
        image_id=int(inputs.image_ids[image]),
        file_name=inputs.file_name(image),
        f1=f1,
        hits=int(outcomes.hits[image]),
        misses=int(outcomes.misses[image]),
        false_alarms=int(outcomes.alarms[image]),
        loss=loss,
        hit_rows=matches.rows[hits],
        found_rows=matches.object_rows[taken],
        alarm_rows=matches.rows[here[matches.false_alarms()[here]]],
        missed_rows=matches.object_rows[np.setdiff1d(to_find, taken)],
        crowd_rows=matches.object_rows[objects[matches.object_ignored[objects]]],
        ignored_rows=matches.rows[here[matches.ignored[0, here]]],
    )
