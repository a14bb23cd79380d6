"""The images with the most errors, with what is annotated and what is detected in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches

HOW_RANKED = (
    "Images are ranked by their number of missed objects plus the summed scores of their false alarms: a false alarm "
    "with a score of 0.9 counts nearly as much as a missed object."
)
"""For the report, beside the images."""


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """Errors of each evaluated image at IoU 0.50 and a threshold for each class.

    Attributes:
        hits: (I,) int64 objects found.
        misses: (I,) int64 objects not found, without crowds.
        false_alarms: (I,) int64 detections that find nothing; those in crowds are ignored.
        loss: (I,) float64 misses plus the summed scores of the false alarms.
        f1: (I,) float64 F1-score of the image; NaN where it has neither objects to find nor false alarms.
        is_shown: (N,) bool of the matches: whether a detection reaches the threshold of its class.
    """

    hits: NDArray[np.int64]
    misses: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    loss: NDArray[np.float64]
    f1: NDArray[np.float64]
    is_shown: NDArray[np.bool_]


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


def image_errors(matches: Matches, thresholds: NDArray[np.float64]) -> ImageErrors:
    """Counts the errors of each image.

    Detections of a class choose their objects best score first: those above a threshold find what they would find if
    the others did not exist.

    Args:
        matches: the detections that count.
        thresholds: (K,) the lowest score that counts, for each class; see `curves.suggested_thresholds`.
    """
    is_shown = matches.scores >= thresholds[matches.labels]
    size = matches.num_images
    hits = np.bincount(matches.images[is_shown & matches.hits()], minlength=size)
    objects = np.bincount(matches.object_images[~matches.object_ignored], minlength=size)
    alarms = is_shown & matches.false_alarms()
    false_alarms = np.bincount(matches.images[alarms], minlength=size)
    scores = np.bincount(matches.images[alarms], weights=matches.scores[alarms], minlength=size).astype(np.float64)
    loss = (objects - hits) + scores
    counted = objects + hits + false_alarms
    f1 = np.divide(2 * hits, counted, out=np.full(size, math.nan), where=counted > 0)
    return ImageErrors(hits, objects - hits, false_alarms, loss, f1, is_shown)


def worst_images(
    inputs: AnalysisInputs, matches: Matches, thresholds: NDArray[np.float64], limit: int = 40
) -> list[WorstImage]:
    """The images with the largest `loss`, of equal ones the lower F1-score, then the lower number; none without errors.

    Args:
        inputs: names the images.
        matches: of these inputs.
        thresholds: (K,) as `image_errors`.
        limit: so many images at most.
    """
    errors = image_errors(matches, thresholds)
    order = np.lexsort((np.nan_to_num(errors.f1), -errors.loss.round(9)))
    return [_worst_image(inputs, matches, errors, image) for image in order[:limit].tolist() if errors.loss[image] > 0]


def _worst_image(inputs: AnalysisInputs, matches: Matches, errors: ImageErrors, image: int) -> WorstImage:
    here = np.flatnonzero((matches.images == image) & errors.is_shown)
    here = here[np.argsort(-matches.scores[here], kind="stable")]
    objects = np.flatnonzero(matches.object_images == image)
    hits = here[matches.hits()[here]]
    taken = matches.objects[0, hits]
    to_find = objects[~matches.object_ignored[objects]]
    return WorstImage(
        image=image,
        image_id=int(inputs.image_ids[image]),
        file_name=inputs.file_name(image),
        f1=float(errors.f1[image]),
        hits=int(errors.hits[image]),
        misses=int(errors.misses[image]),
        false_alarms=int(errors.false_alarms[image]),
        loss=float(errors.loss[image]),
        hit_rows=matches.rows[hits],
        found_rows=matches.object_rows[taken],
        alarm_rows=matches.rows[here[matches.false_alarms()[here]]],
        missed_rows=matches.object_rows[np.setdiff1d(to_find, taken)],
        crowd_rows=matches.object_rows[objects[matches.object_ignored[objects]]],
        ignored_rows=matches.rows[here[matches.ignored[0, here]]],
    )
