"""Everything that a report says about the detections of one evaluation, in one value."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import FEWEST_IMAGES, SAMPLES, Resampled, interval, resampled_ap
from codetr_cli.analysis.calibration import Calibration, calibration
from codetr_cli.analysis.classes import ClassRow, FrequencyGroup, class_rows, frequency_groups, known
from codetr_cli.analysis.confusion import Confusion, confusion_matrix
from codetr_cli.analysis.curves import DEFAULT_THRESHOLD, ClassCurve, class_curves, overall_curve, suggested_thresholds
from codetr_cli.analysis.data.input_size import NetworkLimits
from codetr_cli.analysis.data.statistics import DataStatistics, data_statistics
from codetr_cli.analysis.errors import ErrorTypes, FoundErrors, error_types, find_errors
from codetr_cli.analysis.image_properties import groups_of_images, image_properties
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_errors import LabelError, find_label_errors
from codetr_cli.analysis.masks import Masks, masks_beside_boxes
from codetr_cli.analysis.matches import Matches, inside_area, match_pairs, matches_of_ap50
from codetr_cli.analysis.pairs import PairedDetections, pair_detections
from codetr_cli.analysis.queries import RecallAt, recall_by_detections
from codetr_cli.analysis.run_numbers import RunNumbers, metric_samples, run_numbers
from codetr_cli.analysis.slices import SliceGroup, image_slices, object_slices
from codetr_cli.analysis.worst_images import WorstImage, worst_images
from codetr_cli.evaluation.scoring import Scores
from codetr_cli.formats.resolve import Split

logger = logging.getLogger(__name__)

WORST_IMAGES = 40
LABEL_ERRORS = 200
"""Suspected label errors, the most suspicious ones."""

Show = Callable[[str], None]
"""Called with the name of each part before it is computed."""


@dataclass(frozen=True, eq=False)
class Counts:
    """What was evaluated.

    Attributes:
        images: evaluated images.
        images_without_objects: of these.
        objects: to find, without crowds.
        crowds: objects that nobody has to find.
        detections: of the file, on these images.
        counted: of these, the detections that AP counts.
        classes: of the annotations.
        classes_with_objects: of these.
        classes_detected: of these, classes with a detection.
    """

    images: int
    images_without_objects: int
    objects: int
    crowds: int
    detections: int
    counted: int
    classes: int
    classes_with_objects: int
    classes_detected: int


@dataclass(frozen=True, eq=False)
class Analysis:
    """All numbers of one evaluation; None, or empty, where `reasons` says why a part does not apply.

    Attributes:
        inputs: the detections and objects; rows and image numbers of all parts refer to them.
        matches: which detection found which object.
        scores: as `codetr eval` prints them.
        counts: what was evaluated.
        class_names: of the annotations, in the order of the category ids.
        is_lvis: whether LVIS's rules apply.
        threshold: score with the best F1-score over all classes; 0.5 without a hit.
        class_thresholds: (K,) float64 the same for each class; `threshold` where nothing is found.
        ap_interval: 95 % interval of AP by resampling the images.
        ap50_interval: of AP50.
        classes: a row for each class.
        overall_curve: precision, recall and F1-score over all classes.
        curves: of each class.
        errors: TIDE's types of errors.
        found_errors: the type of each error, for numbers by image.
        confusion: which class is taken for which, at `threshold`.
        calibration: whether scores are probabilities.
        slices: AP of parts of the data.
        groups: LVIS's rare, common and frequent classes.
        masks: masks beside boxes.
        worst_images: images with the most errors at `class_thresholds`.
        label_errors: suspected errors of the annotations.
        queries: recall and AP by the number of detections that are kept of each image.
        data: statistics of the annotations of all images of the file.
        run: what a comparison with other evaluations needs; None without an object to find.
        reasons: by the name of a field, or "slices." and the key of a group, why it does not apply, a clause.
    """

    inputs: AnalysisInputs
    matches: Matches
    scores: Scores
    counts: Counts
    class_names: list[str]
    is_lvis: bool
    threshold: float = DEFAULT_THRESHOLD
    class_thresholds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    ap_interval: tuple[float, float] | None = None
    ap50_interval: tuple[float, float] | None = None
    classes: list[ClassRow] = field(default_factory=list)
    overall_curve: ClassCurve | None = None
    curves: list[ClassCurve] | None = None
    errors: ErrorTypes | None = None
    found_errors: FoundErrors | None = None
    confusion: Confusion | None = None
    calibration: Calibration | None = None
    slices: list[SliceGroup] = field(default_factory=list)
    groups: list[FrequencyGroup] | None = None
    masks: Masks | None = None
    worst_images: list[WorstImage] | None = None
    label_errors: list[LabelError] | None = None
    queries: list[RecallAt] | None = None
    data: DataStatistics | None = None
    run: RunNumbers | None = None
    reasons: dict[str, str] = field(default_factory=dict)


def analyse(
    inputs: AnalysisInputs,
    scores: Scores,
    *,
    show: Show | None = None,
    limits: NetworkLimits | None = None,
    split: Split = "val",
) -> Analysis:
    """Computes all parts.

    Args:
        inputs: detections and objects; with outlines for masks.
        scores: of these detections, from `score_detections`.
        show: called with the name of each part before it is computed.
        limits: of the network, for the statistics of the data; None: those of the default settings.
        split: name of the data, for the same.

    Raises:
        DatasetError: an object's outline is broken.
    """
    show = show or (lambda name: logger.debug("Analysing: %s", name))
    show("matches")
    paired = pair_detections(inputs)
    matches = match_pairs(paired, *inside_area(inputs))
    classes = class_rows(inputs, scores, matches)
    analysis = Analysis(
        inputs=inputs,
        matches=matches,
        scores=scores,
        counts=_counts(inputs, matches),
        class_names=list(inputs.ground_truth.class_names),
        is_lvis=inputs.ground_truth.is_lvis,
        classes=classes,
        groups=frequency_groups(classes),
    )
    if analysis.groups is None:
        analysis.reasons["groups"] = "only LVIS has groups of rare, common and frequent classes"
    of_ap50 = matches_of_ap50(inputs, matches)
    analysis = _with_curves(analysis, of_ap50, show)
    if analysis.counts.objects:
        show("intervals")
        resampled = resampled_ap(matches, of_ap50=of_ap50)
        samples = metric_samples(paired, resampled, SAMPLES)
        analysis = _with_intervals(analysis, resampled)
        analysis = _with_errors(analysis, show)
        analysis = _with_run(analysis, resampled, samples)
        analysis = _with_slices(analysis, paired, show)
    else:
        none = "the evaluated images have no annotated object to find"
        analysis.reasons.update(dict.fromkeys(("ap_interval", "errors", "slices"), none))
    analysis = _with_images(analysis, show)
    show("data")
    return replace(analysis, data=data_statistics(inputs.ground_truth, limits, split=split))


def _counts(inputs: AnalysisInputs, matches: Matches) -> Counts:
    objects, detected = matches.class_objects, np.bincount(matches.labels, minlength=matches.num_classes)
    crowds = int(matches.object_ignored.sum())
    with_objects = np.unique(matches.object_images[~matches.object_ignored])
    return Counts(
        images=len(inputs.image_ids),
        images_without_objects=len(inputs.image_ids) - len(with_objects),
        objects=len(matches.object_rows) - crowds,
        crowds=crowds,
        detections=len(inputs.detections),
        counted=len(matches.rows),
        classes=matches.num_classes,
        classes_with_objects=int((objects > 0).sum()),
        classes_detected=int(((detected > 0) & (objects > 0)).sum()),
    )


def _with_curves(analysis: Analysis, of_ap50: Matches, show: Show) -> Analysis:
    """Curves and thresholds, and what detections from these on confuse."""
    show("curves")
    inputs, matches = analysis.inputs, analysis.matches
    curves, overall = class_curves(inputs, matches), overall_curve(inputs, matches)
    rows = [
        replace(
            row,
            best_threshold=known(curve.best_threshold),
            best_f1=known(curve.best_f1),
            precision=known(curve.precision_at_best),
            recall=known(curve.recall_at_best),
        )
        for row, curve in zip(analysis.classes, curves, strict=True)
    ]
    threshold = DEFAULT_THRESHOLD if np.isnan(overall.best_threshold) else overall.best_threshold
    return replace(
        analysis,
        threshold=threshold,
        class_thresholds=suggested_thresholds(curves, overall),
        classes=rows,
        overall_curve=overall,
        curves=curves,
        calibration=calibration(inputs, matches),
        confusion=confusion_matrix(inputs, matches, threshold),
        queries=recall_by_detections(inputs, matches, of_ap50),
    )


def _with_intervals(analysis: Analysis, resampled: Resampled) -> Analysis:
    classes = [
        replace(row, ap_interval=_interval(resampled.class_ap[:, label])) if row.objects else row
        for label, row in enumerate(analysis.classes)
    ]
    if np.isnan(resampled.ap).all():
        analysis.reasons["ap_interval"] = f"objects are in fewer than {FEWEST_IMAGES} images"
    return replace(
        analysis,
        ap_interval=_interval(resampled.ap),
        ap50_interval=_interval(resampled.ap50),
        classes=classes,
    )


def _interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    low, high = interval(values)
    return None if np.isnan(low) else (low, high)


def _with_errors(analysis: Analysis, show: Show) -> Analysis:
    show("error types")
    errors = find_errors(analysis.inputs, analysis.matches)
    types = error_types(analysis.matches, errors, analysis.threshold)
    return replace(analysis, errors=types, found_errors=errors)


def _with_run(analysis: Analysis, resampled: Resampled, samples: Mapping[str, NDArray[np.float64]]) -> Analysis:
    """What a comparison needs."""
    assert analysis.found_errors is not None
    thresholds = analysis.class_thresholds
    numbers = run_numbers(analysis.inputs, analysis.scores, analysis.matches, analysis.found_errors, thresholds)
    return replace(analysis, run=replace(numbers, samples=samples, class_samples=resampled.class_ap))


def _with_slices(analysis: Analysis, paired: PairedDetections, show: Show) -> Analysis:
    """AP of parts of the data; adds to `reasons` for parts that cannot be."""
    inputs = analysis.inputs
    show("parts of the data")
    of_objects = object_slices(paired)
    if not any(group.key == "position" for group in of_objects):
        reason = "the annotations have no size of some images"
        analysis.reasons.update(dict.fromkeys(("slices.position", "slices.border"), reason))
    show("images")
    groups, missing = groups_of_images(inputs, image_properties(inputs))
    analysis.reasons.update({f"slices.{key}": reason for key, reason in missing.items()})
    return replace(analysis, slices=[*of_objects, *image_slices(analysis.matches, groups)])


def _with_images(analysis: Analysis, show: Show) -> Analysis:
    """Single images, objects and detections that are worth a look."""
    inputs, matches = analysis.inputs, analysis.matches
    show("label errors")
    label_errors = find_label_errors(inputs, LABEL_ERRORS)
    show("masks")
    masks = masks_beside_boxes(inputs, analysis.scores, matches, analysis.threshold)
    if masks is None:
        analysis.reasons["masks"] = "masks were not scored: the detections or the annotations have none"
    worst = worst_images(inputs, matches, analysis.class_thresholds, WORST_IMAGES)
    return replace(analysis, worst_images=worst, label_errors=label_errors, masks=masks)
