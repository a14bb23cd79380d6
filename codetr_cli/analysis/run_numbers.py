"""What is measured of a run to compare it with others: metrics, their resamples, types of errors, images.

Shape letters: S resamples, I images, K classes, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import SAMPLES, Resampled, interval, resampled_ap
from codetr_cli.analysis.curves import class_curves, overall_curve, suggested_thresholds
from codetr_cli.analysis.errors import FoundErrors, error_counts_per_image, error_types, find_errors, resampled_costs
from codetr_cli.analysis.image_outcomes import ImageOutcomes, image_outcomes
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import MAX_AREA, Matches, inside_area, match_detections, match_pairs, matches_of_ap50
from codetr_cli.analysis.pairs import AP50_MAX_DETS, PairedDetections, pair_detections
from codetr_cli.evaluation.scoring import MASK_PREFIX, Scores, score_detections

STEPS = 4
"""Of the measurement of a run."""
AREAS = {"APs": (0.0, 32.0**2), "APm": (32.0**2, 96.0**2), "APl": (96.0**2, MAX_AREA)}
"""COCO's sizes of objects, in square pixels."""


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """What is right and wrong in each image, at the best threshold of each class.

    Attributes:
        image_ids: (I,) in the annotations, ascending.
        file_names: I names in the annotations.
        hits: (I,) objects found.
        misses: (I,) objects not found, crowds not counted.
        alarms: (I,) false alarms.
        types: (I, 6) errors of each type of `errors.ERROR_TYPES`.
    """

    image_ids: NDArray[np.int64]
    file_names: list[str]
    hits: NDArray[np.int64]
    misses: NDArray[np.int64]
    alarms: NDArray[np.int64]
    types: NDArray[np.int64]

    @property
    def errors(self) -> NDArray[np.int64]:
        """(I,) misses and false alarms."""
        return self.misses + self.alarms


@dataclass(frozen=True, eq=False)
class RunNumbers:
    """What is compared of a run.

    Attributes:
        scores: metrics on all images.
        error_ap: AP50 that the errors of a type cost, by the names of `errors.ERROR_TYPES`; empty: not known.
        samples: by metric, (S,) its value in each resample; NaN where it has none. Empty: there are no resamples.
        class_samples: (S, K) AP of each class in each resample; None: not known.
        error_samples: by type, (S,) AP50 that its errors cost in each resample; empty: not known.
        ap_interval: 95 % interval of AP itself; None: not known.
        images: of each image; None: not known.
        is_lvis: whether LVIS's rules apply.
        max_detections: of an image; None: not known.
        inputs: detections and objects; None: the numbers are those of a report.
        outcomes: which detections and objects are right and wrong; None where `inputs` is.
    """

    scores: Scores
    error_ap: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    class_samples: NDArray[np.float64] | None = None
    error_samples: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    ap_interval: tuple[float, float] | None = None
    images: ImageErrors | None = None
    is_lvis: bool = False
    max_detections: int | None = None
    inputs: AnalysisInputs | None = None
    outcomes: ImageOutcomes | None = None


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
    paired = pair_detections(inputs)
    matches = match_pairs(paired, *inside_area(inputs))
    found = resampled_ap(matches, samples, of_ap50=matches_of_ap50(inputs, matches))
    done()
    by_metric = dict(metric_samples(paired, found, samples))
    if MASK_PREFIX + "AP" in scores.metrics:
        matched_masks = match_detections(inputs, "segm")
        of_masks = resampled_ap(matched_masks, samples, of_ap50=matches_of_ap50(inputs, matched_masks, "segm"))
        by_metric |= {MASK_PREFIX + "AP": of_masks.ap, MASK_PREFIX + "AP50": of_masks.ap50}
    done()
    errors = find_errors(inputs, matches)
    thresholds = suggested_thresholds(class_curves(inputs, matches), overall_curve(inputs, matches))
    costs = error_types(matches, errors).delta_ap
    numbers = replace(
        run_numbers(inputs, scores, matches, errors, thresholds),
        error_ap=costs,
        samples=by_metric,
        class_samples=found.class_ap,
        ap_interval=interval(found.ap),
        error_samples=resampled_costs(matches, errors, costs, samples),
    )
    done()
    return numbers


def metric_samples(paired: PairedDetections, found: Resampled, samples: int) -> Mapping[str, NDArray[np.float64]]:
    """(S,) resampled AP and AP50, and by COCO's rules AP by size, by name.

    Args:
        paired: boxes, by the rules of AP.
        found: AP and AP50.
        samples: S.
    """
    by_metric = {"AP": found.ap, "AP50": found.ap50}
    inputs = paired.inputs
    if inputs.ground_truth.is_lvis:
        return by_metric
    if len(paired.counted.rows) < len(inputs.detections):
        paired = pair_detections(inputs, max_dets=AP50_MAX_DETS)
    for metric, area in AREAS.items():
        of_size = match_pairs(paired, *inside_area(inputs, area)).without_ignored()
        by_metric[metric] = resampled_ap(of_size, samples).ap
    return by_metric


def run_numbers(
    inputs: AnalysisInputs,
    scores: Scores,
    matches: Matches,
    errors: FoundErrors,
    thresholds: NDArray[np.float64],
) -> RunNumbers:
    """The numbers that need no resamples, but for the costs of errors.

    Args:
        inputs: detections and objects.
        scores: of them.
        matches: of them.
        errors: of them.
        thresholds: (K,) the best score of each class; NaN where nothing is found.
    """
    outcomes = image_outcomes(matches, thresholds)
    # At a threshold of its own for each class: a score of 1 for what is shown, 0 for the rest.
    shown = replace(matches, scores=outcomes.shown.astype(np.float64))
    return RunNumbers(
        scores=scores,
        images=ImageErrors(
            image_ids=inputs.image_ids,
            file_names=[inputs.file_name(image) for image in range(len(inputs.image_ids))],
            hits=outcomes.hits,
            misses=outcomes.misses,
            alarms=outcomes.alarms,
            types=error_counts_per_image(inputs, shown, errors, threshold=0.5),
        ),
        is_lvis=inputs.ground_truth.is_lvis,
        max_detections=int(np.unique(inputs.detections.image_ids, return_counts=True)[1].max(initial=0)),
        inputs=inputs,
        outcomes=outcomes,
    )
