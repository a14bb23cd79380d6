"""What is measured of a run to compare it with others: metrics, their resamples, types of errors, images.

Shape letters: S resamples, I images, K classes, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import SAMPLES, resampled_ap
from codetr_cli.analysis.curves import class_curves, overall_curve, suggested_thresholds
from codetr_cli.analysis.errors import error_counts_per_image, error_types, find_errors
from codetr_cli.analysis.image_outcomes import ImageOutcomes, image_outcomes
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import MAX_AREA, inside_area, match_detections, match_pairs, matches_of_ap50
from codetr_cli.analysis.pairs import AP50_MAX_DETS, pair_detections
from codetr_cli.evaluation.scoring import MASK_PREFIX, Scores, score_detections

STEPS = 4
"""Of the measurement of a run."""
AREAS = {"APs": (0.0, 32.0**2), "APm": (32.0**2, 96.0**2), "APl": (96.0**2, MAX_AREA)}
"""COCO's sizes of objects, in square pixels."""


@dataclass(frozen=True, eq=False)
class RunNumbers:
    """What is compared of a run.

    Attributes:
        inputs: detections and objects.
        scores: metrics on all images.
        samples: by metric, (S,) its value in each resample; NaN where it has none.
        class_samples: (S, K) AP of each class.
        error_ap: AP50 that the errors of a type cost, by the names of `errors.ERROR_TYPES`.
        error_counts: (I, 6) errors of each type at the thresholds of `outcomes`.
        outcomes: of each image, at the best threshold of each class of this run.
        max_detections: of an image.
    """

    inputs: AnalysisInputs
    scores: Scores
    samples: Mapping[str, NDArray[np.float64]]
    class_samples: NDArray[np.float64]
    error_ap: Mapping[str, float]
    error_counts: NDArray[np.int64]
    outcomes: ImageOutcomes
    max_detections: int


def measure_run(
    inputs: AnalysisInputs, *, samples: int = SAMPLES, masks: bool = True, done: Callable[[], object] = lambda: None
) -> RunNumbers:
    """Measures a run; the same images give the same resamples for every run.

    Args:
        inputs: with outlines and masks where masks are compared.
        samples: resamples of the images.
        masks: whether masks are measured, if both sides of the inputs have them.
        done: is called after each of the `STEPS`.

    Raises:
        DatasetError: an outline is broken, or a mask has not the size of its image.
    """
    truth, images = inputs.ground_truth, inputs.image_ids.tolist()
    if not masks:
        inputs = replace(inputs, ground_truth=replace(truth, outlines=None))
    scores = score_detections(inputs.ground_truth, inputs.detections, images, where=str(inputs.paths.annotations_path))
    done()
    matches = match_detections(inputs)
    found = resampled_ap(matches, samples, of_ap50=matches_of_ap50(inputs, matches))
    done()
    by_metric = {"AP": found.ap, "AP50": found.ap50}
    if not truth.is_lvis:
        paired = pair_detections(inputs, max_dets=AP50_MAX_DETS)
        for metric, area in AREAS.items():
            of_size = match_pairs(paired, *inside_area(inputs, area)).without_ignored()
            by_metric[metric] = resampled_ap(of_size, samples).ap
    if MASK_PREFIX + "AP" in scores.metrics:
        matched_masks = match_detections(inputs, "segm")
        of_masks = resampled_ap(matched_masks, samples, of_ap50=matches_of_ap50(inputs, matched_masks, "segm"))
        by_metric |= {MASK_PREFIX + "AP": of_masks.ap, MASK_PREFIX + "AP50": of_masks.ap50}
    done()
    errors = find_errors(inputs, matches)
    thresholds = suggested_thresholds(class_curves(inputs, matches), overall_curve(inputs, matches))
    outcomes = image_outcomes(matches, thresholds)
    # At a threshold of its own for each class: a score of 1 for what is shown, 0 for the rest.
    shown = replace(matches, scores=outcomes.shown.astype(np.float64))
    numbers = RunNumbers(
        inputs=inputs,
        scores=scores,
        samples=by_metric,
        class_samples=found.class_ap,
        error_ap=error_types(matches, errors).delta_ap,
        error_counts=error_counts_per_image(inputs, shown, errors, threshold=0.5),
        outcomes=outcomes,
        max_detections=int(np.unique(inputs.detections.image_ids, return_counts=True)[1].max(initial=0)),
    )
    done()
    return numbers
