"""What kind of error costs how much AP: TIDE (arXiv 2008.08115) at IoU 0.50, by the rules of tidecv 1.0.1.

Each detection that finds nothing gets the first type that applies, in the order of `ERROR_TYPES`; an object that no
detection finds is missed if none of the "loose box" and "wrong class" detections would find it. A type costs the AP50
that is gained when its errors are fixed: the best detection of a loose box or a wrong class becomes a hit, every other
error is removed, a missed object is not counted. The gains do not add up to what is missing.

hotcoco's `tide_errors` has the same numbers where nothing is a crowd, but takes a detection that overlaps a crowd of
its class a little for a loose box; here, as in tidecv, crowds only ignore what is in them. It has no numbers by image,
and needs to match all detections again.
tidecv counts the 100 best detections of an image; here 100 of an image and class count, as in AP, and classes without
objects, whose AP is 0 there, are not in its mean. In release 1.0.1 it also looks for errors among ignored detections.
Shape letters: N detections, G objects, I images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import (
    FEWEST_IMAGES,
    SAMPLES,
    around,
    image_weights,
    mean_of_classes,
    weighted_average_precision,
)
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches
from codetr_cli.analysis.overlaps import PlacedBoxes, best_overlaps

ERROR_TYPES = {
    "loose box": "Loc",
    "wrong class": "Cls",
    "duplicate": "Dupe",
    "background": "Bkg",
    "wrong class and loose box": "Both",
    "missed": "Miss",
}
"""Our names of the types with TIDE's, in the order of the columns of `error_counts_per_image`."""
LOOSE, WRONG_CLASS, DUPLICATE, BACKGROUND, BOTH, MISSED = range(len(ERROR_TYPES))

HIT_IOU, BACKGROUND_IOU = 0.5, 0.1
RECALLS = np.linspace(0, 1, 101)
"""As COCO has them. tidecv divides by 100, which moves a few of them by one unit in the last place."""


@dataclass(frozen=True)
class ErrorTypes:
    """Errors by type, under the names of `ERROR_TYPES`.

    Attributes:
        ap50: AP at IoU 0.50 of the detections as they are.
        delta_ap: AP50 that is gained if the errors of a type are fixed, in [0, 1].
        counts: errors of detections of every score.
        delta_false_alarms: AP50 that is gained if every false alarm is removed (TIDE's FP).
        delta_misses: AP50 that is gained if objects that are not found do not count (TIDE's FN).
        missed_classes: classes all of whose objects are missed. Without objects they have no AP, so that TIDE has no
            gain for them in `delta_ap` and `delta_misses`.
        threshold: score from which detections count in `counts_at_threshold`.
        counts_at_threshold: errors if only detections from that score on are used.
    """

    ap50: float
    delta_ap: dict[str, float]
    counts: dict[str, int]
    delta_false_alarms: float
    delta_misses: float
    missed_classes: int
    threshold: float
    counts_at_threshold: dict[str, int]


@dataclass(frozen=True, eq=False)
class FoundErrors:
    """The type of each error.

    Attributes:
        types: (N,) int8 index into `ERROR_TYPES` of the detections in `Matches`; -1: none.
        targets: (N,) int64 index into `Matches.object_rows` of the object that a loose box or a wrong class is about;
            -1 for others.
    """

    types: NDArray[np.int8]
    targets: NDArray[np.int64]


def find_errors(inputs: AnalysisInputs, matches: Matches) -> FoundErrors:
    """The type of error of each detection that finds nothing and is not ignored, at IoU 0.50."""
    wrong = np.flatnonzero(matches.false_alarms())
    countable = np.flatnonzero(~matches.object_ignored)
    boxes = PlacedBoxes(inputs.detections.boxes_xywh[matches.rows[wrong]], matches.images[wrong], matches.labels[wrong])
    objects = PlacedBoxes(
        inputs.ground_truth.boxes_xywh[matches.object_rows], matches.object_images, matches.object_labels
    )
    best = best_overlaps(boxes, objects.select(countable))
    own, other = best.own_iou, best.other_iou
    is_loose = (own >= BACKGROUND_IOU) & (own <= HIT_IOU)
    is_wrong_class = other >= HIT_IOU
    conditions = [is_loose, is_wrong_class, own >= HIT_IOU, np.maximum(own, other) <= BACKGROUND_IOU]
    types = np.full(len(matches.rows), -1, np.int8)
    types[wrong] = np.select(conditions, [LOOSE, WRONG_CLASS, DUPLICATE, BACKGROUND], BOTH)
    # Without an object of the classes that count, -1 indexes an empty array.
    rows = np.append(countable, -1)
    targets = np.full(len(matches.rows), -1, np.int64)
    targets[wrong] = np.select([is_loose, is_wrong_class], [rows[best.own_object], rows[best.other_object]], -1)
    return FoundErrors(types, targets)


def error_types(matches: Matches, errors: FoundErrors, threshold: float = 0.0) -> ErrorTypes:
    """Counts and costs of each type.

    Args:
        matches: detections and objects.
        errors: of these detections.
        threshold: score for `ErrorTypes.counts_at_threshold`.
    """
    is_hit, everything, totals = matches.hits(), ~matches.ignored[0], matches.class_objects
    base = _mean_ap(matches.labels, is_hit, everything, totals)

    def gain(hits: NDArray[np.bool_], counted: NDArray[np.bool_], objects: NDArray[np.int64] = totals) -> float:
        # A fix that costs AP does so by the steps of recall; tidecv counts it as none.
        return max(_mean_ap(matches.labels, hits, counted, objects, totals > 0) - base, 0.0)

    unfound = _unfound(matches, 0.0)
    missed = unfound & ~_recoverable(matches, errors, 0.0)
    fixable = _first_of_each_object(matches, errors, unfound)
    is_loose = errors.types == LOOSE
    delta = {
        LOOSE: gain(is_hit | (fixable & is_loose), everything & ~(is_loose & ~fixable)),
        WRONG_CLASS: _gain_of_classes(matches, errors, is_hit, fixable, totals, base),
        MISSED: gain(is_hit, everything, totals - _by_class(matches, missed, totals)),
    }
    delta |= {kind: gain(is_hit, everything & (errors.types != kind)) for kind in (DUPLICATE, BACKGROUND, BOTH)}
    return ErrorTypes(
        ap50=base,
        delta_ap={name: delta[kind] for kind, name in enumerate(ERROR_TYPES)},
        counts=_counts(matches, errors, 0.0),
        delta_false_alarms=gain(is_hit, is_hit),
        delta_misses=gain(is_hit, everything, totals - _by_class(matches, unfound, totals)),
        missed_classes=int(((totals > 0) & (_by_class(matches, missed, totals) == totals)).sum()),
        threshold=threshold,
        counts_at_threshold=_counts(matches, errors, threshold),
    )


def resampled_costs(
    matches: Matches, errors: FoundErrors, costs: Mapping[str, float], samples: int = SAMPLES, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """(S,) AP50 that the errors of each type cost in each resample of the images, around the costs on all images.

    What finds what is decided within an image, so a fix is the same in every resample: detections with fixed errors are
    resampled as any others. All is NaN where objects are in fewer than `FEWEST_IMAGES`.

    Args:
        matches: detections and objects.
        errors: of these detections.
        costs: AP50 that each type costs on all images, by the names of `ERROR_TYPES`.
        samples: S.
        seed: as of `resampled_ap`.
    """
    if len(np.unique(matches.object_images[~matches.object_ignored])) < FEWEST_IMAGES:
        return {name: np.full(samples, np.nan) for name in ERROR_TYPES}
    weights = image_weights(matches.num_images, samples, seed)

    def class_ap(of: Matches) -> NDArray[np.float64]:
        return weighted_average_precision(of.without_ignored(), weights)[:, 0]  # (S, K)

    at_50 = replace(matches, objects=matches.objects[:1], ignored=matches.ignored[:1])
    before = class_ap(at_50)
    found = {}
    for kind, name in enumerate(ERROR_TYPES):
        after = class_ap(_fixed(at_50, errors, kind))
        # A class all of whose objects are missed has no AP without them, and no gain.
        after = np.where(np.isnan(after) & ~np.isnan(before), 0.0, after)
        gains = (mean_of_classes(after) - mean_of_classes(before)).clip(min=0)
        found[name] = around(gains, np.array([costs[name]]))
    return found


def _fixed(at_50: Matches, errors: FoundErrors, kind: int) -> Matches:
    """The detections at IoU 0.50 without errors of a type, as `error_types` fixes them."""
    of_kind, unfound = errors.types == kind, _unfound(at_50, 0.0)
    if kind == MISSED:
        missed = unfound & ~_recoverable(at_50, errors, 0.0)
        return replace(at_50, object_ignored=at_50.object_ignored | missed)
    fixed = of_kind & _first_of_each_object(at_50, errors, unfound)  # of loose boxes and wrong classes
    objects = np.where(fixed, errors.targets, at_50.objects)
    labels = at_50.labels.copy()
    labels[fixed] = at_50.object_labels[errors.targets[fixed]]
    order = np.arange(len(labels)) if kind != WRONG_CLASS else np.lexsort((at_50.rows, -at_50.scores, labels))
    return replace(
        at_50,
        rows=at_50.rows[order],
        images=at_50.images[order],
        labels=labels[order],
        scores=at_50.scores[order],
        objects=objects[:, order],
        ignored=(at_50.ignored | (of_kind & ~fixed))[:, order],
    )


def error_counts_per_image(
    inputs: AnalysisInputs, matches: Matches, errors: FoundErrors | None = None, threshold: float = 0.0
) -> NDArray[np.int64]:
    """(I, 6) number of errors of each type, in the order of `ERROR_TYPES`, in each evaluated image.

    Args:
        inputs: of `matches`.
        matches: detections and objects.
        errors: of these detections; None: they are found.
        threshold: score from which detections are used.
    """
    errors = find_errors(inputs, matches) if errors is None else errors
    counts = np.zeros((len(inputs.image_ids), len(ERROR_TYPES)), np.int64)
    used = (errors.types >= 0) & (matches.scores >= threshold)
    np.add.at(counts, (matches.images[used], errors.types[used]), 1)
    missed = _unfound(matches, threshold) & ~_recoverable(matches, errors, threshold)
    np.add.at(counts[:, MISSED], matches.object_images[missed], 1)
    return counts


def _counts(matches: Matches, errors: FoundErrors, threshold: float) -> dict[str, int]:
    used = (errors.types >= 0) & (matches.scores >= threshold)
    counts = np.bincount(errors.types[used], minlength=len(ERROR_TYPES))
    counts[MISSED] = (_unfound(matches, threshold) & ~_recoverable(matches, errors, threshold)).sum()
    return dict(zip(ERROR_TYPES, counts.tolist(), strict=True))


def _unfound(matches: Matches, threshold: float) -> NDArray[np.bool_]:
    """(G,) objects that count and that no detection from a score on finds.

    Detections of lower scores do not change what those of higher ones find, nor what kind of error they are.
    """
    found = matches.objects[0][matches.scores >= threshold]
    unfound: NDArray[np.bool_] = ~matches.object_ignored
    unfound[found[found >= 0]] = False
    return unfound


def _recoverable(matches: Matches, errors: FoundErrors, threshold: float) -> NDArray[np.bool_]:
    """(G,) objects that a loose box or a wrong class would find."""
    targets = errors.targets[matches.scores >= threshold]
    recoverable = np.zeros(len(matches.object_rows), bool)
    recoverable[targets[targets >= 0]] = True
    return recoverable


def _first_of_each_object(matches: Matches, errors: FoundErrors, unfound: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) the best detection among the loose boxes and wrong classes of each object that is not found."""
    about = np.flatnonzero(errors.targets >= 0)
    about = about[unfound[errors.targets[about]]]
    order = about[np.lexsort((matches.rows[about], -matches.scores[about]))]
    _, first = np.unique(errors.targets[order], return_index=True)
    chosen = np.zeros(len(errors.types), bool)
    chosen[order[first]] = True
    return chosen


def _gain_of_classes(
    matches: Matches,
    errors: FoundErrors,
    is_hit: NDArray[np.bool_],
    fixable: NDArray[np.bool_],
    totals: NDArray[np.int64],
    base: float,
) -> float:
    """AP50 gained if the best detection of a wrong class had the class of its object, and the others were removed."""
    is_wrong_class = errors.types == WRONG_CLASS
    moved = is_wrong_class & fixable
    labels = matches.labels.copy()
    labels[moved] = matches.object_labels[errors.targets[moved]]
    counted = ~matches.ignored[0] & ~(is_wrong_class & ~fixable)
    order = np.lexsort((matches.rows, -matches.scores, labels)) if moved.any() else np.arange(len(labels))
    fixed = _mean_ap(labels[order], (is_hit | moved)[order], counted[order], totals)
    return max(fixed - base, 0.0)


def _by_class(matches: Matches, objects: NDArray[np.bool_], totals: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(matches.object_labels[objects], minlength=len(totals))


def _mean_ap(
    labels: NDArray[np.int64],
    is_hit: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    totals: NDArray[np.int64],
    classes: NDArray[np.bool_] | None = None,
) -> float:
    """COCO's AP at one IoU, over the classes with objects; NaN without any.

    Precision has its maxima at the hits: they are all that is needed of a million detections.

    Args:
        labels: (N,) of detections that are sorted by class, then by score.
        is_hit: (N,) whether each finds an object.
        counted: (N,) whether each counts.
        totals: (K,) objects of each class.
        classes: (K,) classes to average over; None: those with objects.
    """
    classes = totals > 0 if classes is None else classes
    if not classes.any():
        return float("nan")
    rank = np.cumsum(counted)
    hits = np.flatnonzero(is_hit & counted)
    starts = np.searchsorted(labels, np.arange(len(totals) + 1))
    before = np.concatenate([[0], rank])[starts]
    bounds = np.searchsorted(labels[hits], np.arange(len(totals) + 1))
    total = 0.0
    for label in np.flatnonzero(classes & (totals > 0)).tolist():
        positions = rank[hits[bounds[label] : bounds[label + 1]]] - before[label]
        number = np.arange(1, len(positions) + 1)
        precision = np.maximum.accumulate((number / positions)[::-1])[::-1]
        reached = np.searchsorted(number / totals[label], RECALLS, "left")
        total += float(np.append(precision, 0.0)[reached.clip(max=len(precision))].sum())
    return total / len(RECALLS) / int(classes.sum())
