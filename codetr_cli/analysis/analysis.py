"""Everything that a report says about the detections of one evaluation, in one value."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import interval, resampled_ap
from codetr_cli.analysis.classes import ClassRow, FrequencyGroup, class_rows, frequency_groups
from codetr_cli.analysis.confusion import Confusion, confusion_matrix
from codetr_cli.analysis.errors import ErrorTypes, FoundErrors, error_types, find_errors
from codetr_cli.analysis.image_properties import groups_of_images, image_properties
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_errors import LabelError, find_label_errors
from codetr_cli.analysis.masks import Masks, masks_beside_boxes
from codetr_cli.analysis.matches import Matches, match_detections
from codetr_cli.analysis.slices import SliceGroup, image_slices, object_slices
from codetr_cli.evaluation.scoring import Scores

logger = logging.getLogger(__name__)

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
        threshold: score with the best F1-score over all classes; 0 without a hit.
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
        worst_images: images with the most errors at `threshold`.
        label_errors: suspected errors of the annotations.
        queries: recall and AP by the number of detections of an image.
        data: statistics of the annotations.
        reasons: by the name of a field, or "slices." and the key of a group, why it does not apply, a clause.
    """

    inputs: AnalysisInputs
    matches: Matches
    scores: Scores
    counts: Counts
    class_names: list[str]
    is_lvis: bool
    threshold: float = 0.0
    ap_interval: tuple[float, float] | None = None
    ap50_interval: tuple[float, float] | None = None
    classes: list[ClassRow] = field(default_factory=list)
    overall_curve: Any | None = None
    curves: list[Any] | None = None
    errors: ErrorTypes | None = None
    found_errors: FoundErrors | None = None
    confusion: Confusion | None = None
    calibration: Any | None = None
    slices: list[SliceGroup] = field(default_factory=list)
    groups: list[FrequencyGroup] | None = None
    masks: Masks | None = None
    worst_images: list[Any] | None = None
    label_errors: list[LabelError] | None = None
    queries: list[Any] | None = None
    data: Any | None = None
    reasons: dict[str, str] = field(default_factory=dict)


def analyse(inputs: AnalysisInputs, scores: Scores, *, show: Show | None = None) -> Analysis:
    """Computes all parts.

    Args:
        inputs: detections and objects; with outlines for masks.
        scores: of these detections, from `score_detections`.
        show: called with the name of each part before it is computed.

    Raises:
        DatasetError: an object's outline is broken.
    """
    show = show or (lambda name: logger.debug("Analysing: %s", name))
    show("matches")
    matches = match_detections(inputs)
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
        threshold=_best_threshold(matches),
    )
    reasons = {}
    if analysis.groups is None:
        reasons["groups"] = "only LVIS has groups of rare, common and frequent classes"
    if analysis.counts.objects:
        analysis = _with_intervals(analysis, show)
        analysis = _with_errors(analysis, show)
        analysis = _with_slices(analysis, reasons, show)
    else:
        none = "the evaluated images have no annotated object to find"
        reasons |= dict.fromkeys(("errors", "slices"), none)
    show("confusion")
    analysis = replace(analysis, confusion=confusion_matrix(inputs, matches, analysis.threshold))
    show("label errors")
    analysis = replace(analysis, label_errors=find_label_errors(inputs, LABEL_ERRORS))
    show("masks")
    masks = masks_beside_boxes(inputs, scores, matches, analysis.threshold)
    if masks is None:
        reasons["masks"] = "masks were not scored: the detections or the annotations have none"
    return replace(analysis, masks=masks, reasons=reasons)


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


def _best_threshold(matches: Matches) -> float:
    """The score with the best F1-score over all classes; 0 without a hit."""
    counted = ~matches.ignored[0]
    order = np.argsort(-matches.scores[counted], kind="stable")
    hits, ranked = matches.hits()[counted][order], matches.scores[counted][order]
    if not hits.any():
        return 0.0
    f1 = 2 * np.cumsum(hits) / (np.arange(1, len(hits) + 1) + matches.class_objects.sum())
    return float(ranked[int(f1.argmax())])


def _with_intervals(analysis: Analysis, show: Show) -> Analysis:
    show("intervals")
    resampled = resampled_ap(analysis.matches)
    classes = [
        replace(row, ap_interval=_interval(resampled.class_ap[:, label])) if row.objects else row
        for label, row in enumerate(analysis.classes)
    ]
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


def _with_slices(analysis: Analysis, reasons: dict[str, str], show: Show) -> Analysis:
    """AP of parts of the data; adds to `reasons` for parts that cannot be."""
    inputs = analysis.inputs
    show("parts of the data")
    of_objects = object_slices(inputs)
    if not any(group.key == "position" for group in of_objects):
        reasons |= dict.fromkeys(("slices.position", "slices.border"), "the annotations have no size of some images")
    show("images")
    groups, missing = groups_of_images(inputs, image_properties(inputs))
    reasons |= {f"slices.{key}": reason for key, reason in missing.items()}
    return replace(analysis, slices=[*of_objects, *image_slices(inputs, groups)])
