"""What became of the objects and detections of each image at one threshold per class: found, missed, false alarms.

Shape letters: I images, N counted detections, G objects, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.curves import DEFAULT_THRESHOLD
from codetr_cli.analysis.matches import Matches


@dataclass(frozen=True, eq=False)
class ImageOutcomes:
    """The outcomes of all images, at IoU 0.5.

    Attributes:
        matches: that they are from.
        thresholds: (K,) lowest score of a detection that counts.
        shown: (N,) bool: which detections reach the threshold of their class.
        hits: (I,) number of objects found.
        misses: (I,) of objects not found, crowds not counted.
        alarms: (I,) of detections without an object.
    """

    matches: Matches
    thresholds: NDArray[np.float64]
    shown: NDArray[np.bool_]
    hits: NDArray[np.int64]
    misses: NDArray[np.int64]
    alarms: NDArray[np.int64]

    @property
    def errors(self) -> NDArray[np.int64]:
        """(I,) misses and false alarms."""
        return self.misses + self.alarms

    def rows_of(self, image: int) -> ImageRows:
        """The detections and objects of one image by what became of them."""
        matches = self.matches
        here = np.flatnonzero(self.shown & (matches.images == image))
        is_hit, is_alarm = matches.hits()[here], matches.false_alarms()[here]
        objects = np.flatnonzero(matches.object_images == image)
        crowds = matches.object_ignored[objects]
        found = np.isin(objects, matches.objects[0, here[is_hit]])
        return ImageRows(
            hits=matches.rows[here[is_hit]].tolist(),
            alarms=matches.rows[here[is_alarm]].tolist(),
            found=matches.object_rows[objects[found & ~crowds]].tolist(),
            misses=matches.object_rows[objects[~found & ~crowds]].tolist(),
            crowds=matches.object_rows[objects[crowds]].tolist(),
        )


@dataclass(frozen=True)
class ImageRows:
    """Rows of one image: `hits` and `alarms` in the detections, `found`, `misses` and `crowds` in the annotations."""

    hits: list[int]
    alarms: list[int]
    found: list[int]
    misses: list[int]
    crowds: list[int]


def image_outcomes(matches: Matches, thresholds: Sequence[float] | NDArray[np.float64]) -> ImageOutcomes:
    """The outcomes at given thresholds.

    Args:
        matches: detections of a class are matched best first, so those above a threshold are matched as if the others
            did not exist.
        thresholds: (K,) of each class; NaN: `DEFAULT_THRESHOLD`.
    """
    limits = np.asarray(thresholds, np.float64)
    limits = np.where(np.isnan(limits), DEFAULT_THRESHOLD, limits)
    shown = matches.scores >= limits[matches.labels]
    hit = shown & matches.hits()
    to_find = np.bincount(matches.object_images[~matches.object_ignored], minlength=matches.num_images)
    hits = np.bincount(matches.images[hit], minlength=matches.num_images)
    alarms = np.bincount(matches.images[shown & matches.false_alarms()], minlength=matches.num_images)
    return ImageOutcomes(matches, limits, shown, hits, to_find - hits, alarms)
