"""Two runs on the same images: where they differ, by how much, and whether that is more than chance.

Not to be confused with `prediction.comparison`, which compares the detections in an image with its objects.
Shape letters: S resamples, I images, K classes, N detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.bootstrap import FEWEST_IMAGES, image_weights
from codetr_cli.analysis.differences import (
    FEW_IMAGES,
    LEVEL,
    Difference,
    clear_after_holm,
    images_needed,
    paired_difference,
    sentence,
)
from codetr_cli.analysis.errors import ERROR_TYPES
from codetr_cli.analysis.run_numbers import AREAS, ImageErrors, RunNumbers
from codetr_cli.evaluation.scoring import MASK_PREFIX
from codetr_cli.inference.detections import DetectionTable

MOST_CHANGED = 24
"""Images that are listed, half of them where the second side is better."""
METRICS = {"AP": "AP", "AP50": "AP50", "APs": "AP small", "APm": "AP medium", "APl": "AP large"}
METRICS |= {MASK_PREFIX + name: f"mask {METRICS[name]}" for name in ("AP", "AP50")}
"""Metrics that are compared -> their names for readers."""


@dataclass(frozen=True)
class ClassDifference:
    """AP of a class.

    Attributes:
        name: of the class.
        category_id: original id.
        objects: annotated in the compared images, crowds not counted.
        ap: in [0, 1].
        is_clear: whether it differs also in view of how many classes are compared.
    """

    name: str
    category_id: int
    objects: int
    ap: Difference
    is_clear: bool


@dataclass(frozen=True)
class ErrorDifference:
    """Errors of a type.

    Attributes:
        name: of the type.
        ap: AP50 that they cost; less is better.
        per_100_images: their number; less is better.
    """

    name: str
    ap: Difference
    per_100_images: Difference


@dataclass(frozen=True)
class Counts:
    """Objects found and missed, and false alarms, in an image."""

    hits: int
    misses: int
    alarms: int

    @property
    def errors(self) -> int:
        """Misses and false alarms."""
        return self.misses + self.alarms


@dataclass(frozen=True)
class ChangedImage:
    """An image in which the second side has more errors, or fewer.

    Attributes:
        image: number of the evaluated image.
        image_id: in the annotations.
        file_name: in the annotations.
        first: outcome of the first side.
        second: of the second side.
    """

    image: int
    image_id: int
    file_name: str
    first: Counts
    second: Counts

    @property
    def change(self) -> int:
        """Errors that the second side has more."""
        return self.second.errors - self.first.errors


@dataclass(frozen=True)
class RunComparison:
    """The second run beside the first.

    Attributes:
        verdict: sentences, on boxes and, where both have them, on masks.
        metrics: AP, AP50, APs, APm, APl, and the same of masks with "mask_".
        classes: with objects, those that differ most clearly first.
        errors: by type, in the order of `ERROR_TYPES`.
        images: the number compared.
        changed: images that changed most, those where the second side is better first.
        better_images: where the second side has fewer errors.
        worse_images: where it has more.
        cautions: on how far the numbers can be trusted, sentences.
        same_detections: whether both have exactly the same.
        has_images: whether the errors of each image are known of both; otherwise no image has changed.
    """

    verdict: list[str]
    metrics: dict[str, Difference]
    classes: list[ClassDifference]
    errors: list[ErrorDifference]
    images: int
    changed: list[ChangedImage] = field(default_factory=list)
    better_images: int = 0
    worse_images: int = 0
    cautions: list[str] = field(default_factory=list)
    same_detections: bool = False
    has_images: bool = True


def compare_runs(first: RunNumbers, second: RunNumbers, names: tuple[str, str] = ("A", "B")) -> RunComparison:
    """The second run beside the first, on the same images; what only one of them knows is not compared.

    Args:
        first: of one run.
        second: of the other, with the same annotations and images, and resamples of the same number if it has any.
        names: of both, for sentences.
    """
    images = first.scores.images
    metrics = {name: _metric(first, second, name) for name in METRICS if _has_metric(first, second, name)}
    improved, worsened, changed = _changed_images(first.images, second.images)
    same = (
        first.inputs is not None
        and second.inputs is not None
        and same_detections(first.inputs.detections, second.inputs.detections)
    )
    verdict = [
        sentence(metrics[name], images, first=names[0], second=names[1], metric=METRICS[name])
        for name in ("AP", MASK_PREFIX + "AP")
        if name in metrics
    ]
    return RunComparison(
        verdict=verdict,
        metrics=metrics,
        classes=_classes(first, second),
        errors=_errors(first, second),
        images=images,
        changed=changed,
        better_images=improved,
        worse_images=worsened,
        cautions=_own_intervals(first, second, names) or _cautions(metrics["AP"], images, same=same),
        same_detections=same,
        has_images=first.images is not None and second.images is not None,
    )


def same_detections(first: DetectionTable, second: DetectionTable) -> bool:
    """Whether two tables have the same boxes, classes and scores, in any order of the images."""

    def rows(table: DetectionTable) -> NDArray[np.float64]:
        columns = (table.image_ids, table.category_ids, table.scores, *table.boxes_xywh.T)
        return np.stack(columns, axis=1)[np.lexsort(columns)]

    if len(first) != len(second) or not np.array_equal(np.sort(first.scores), np.sort(second.scores)):
        return False  # at once: sorting a million rows takes seconds
    return np.array_equal(rows(first), rows(second))


def class_caution(classes: Sequence[ClassDifference]) -> str:
    """How many classes would look different by chance, a sentence; empty with one class."""
    known = [each for each in classes if not math.isnan(each.ap.low)]
    if len(known) < 2:
        return ""
    apart = sum(each.ap.conclusion in ("better", "worse") for each in known)
    clear = sum(each.is_clear for each in known)
    by_chance = round((1 - LEVEL) * len(known))
    expected = f"about {by_chance:,}" if by_chance > 1 else "one" if by_chance else "hardly one"
    found = f"{apart:,} {'has' if apart == 1 else 'have'} one" if apart else "none has one"
    text = (
        f"Of {len(known):,} classes, {expected} would have an interval without zero by chance alone, if nothing had "
        f"changed; {found}"
    )
    if not apart:
        return f"{text}."
    rest = f"{clear:,} {'is' if clear == 1 else 'are'}" if clear else "none is"
    return f"{text}, and {rest} clear also in view of how many are compared (Holm's method)."


def _known(value: float) -> float:
    """A metric; NaN for -1, where there is no object."""
    return math.nan if value < 0 else value


def _has_metric(first: RunNumbers, second: RunNumbers, name: str) -> bool:
    """Whether both have a metric; those by size are not compared by LVIS's rules."""
    is_compared = not first.is_lvis or name not in AREAS
    return is_compared and name in first.scores.metrics and name in second.scores.metrics


def _metric(first: RunNumbers, second: RunNumbers, name: str) -> Difference:
    sides = (first, second)
    return _difference(
        [_known(side.scores.metrics[name]) for side in sides], [side.samples.get(name) for side in sides]
    )


def _difference(
    values: Sequence[float], samples: Sequence[NDArray[np.float64] | None], *, is_good: bool = True
) -> Difference:
    """The difference of two values with its interval, where both sides have been resampled."""
    first, second = samples
    if first is None or second is None:
        return Difference(values[0], values[1], is_good=is_good, is_sampled=False)
    return paired_difference(values[0], values[1], first, second, is_good=is_good)


def _classes(first: RunNumbers, second: RunNumbers) -> list[ClassDifference]:
    def samples(side: RunNumbers, index: int) -> NDArray[np.float64] | None:
        return None if side.class_samples is None else side.class_samples[:, index]

    found = [
        (left, _difference([left.AP, _known(right.AP)], [samples(first, index), samples(second, index)]))
        for index, (left, right) in enumerate(zip(first.scores.per_class, second.scores.per_class, strict=True))
        if left.AP >= 0
    ]
    clear = clear_after_holm([difference.p for _, difference in found])
    classes = [
        ClassDifference(
            score.name,
            score.category_id,
            score.objects,
            difference,
            is_clear and difference.conclusion in ("better", "worse"),
        )
        for (score, difference), is_clear in zip(found, clear, strict=True)
    ]
    # By how clear they are: the largest differences are those of classes with a few objects.
    return sorted(classes, key=lambda each: (math.isnan(each.ap.p), each.ap.p, -abs(each.ap.value), each.name))


def _errors(first: RunNumbers, second: RunNumbers) -> list[ErrorDifference]:
    sides = (first, second)
    totals, resampled = [_per_100_images(side) for side in sides], _resampled_counts(first, second)
    return [
        ErrorDifference(
            name,
            _difference(
                [side.error_ap.get(name, math.nan) for side in sides],
                [side.error_samples.get(name) for side in sides],
                is_good=False,
            ),
            _difference(
                [side[kind] for side in totals],
                [None if each is None else each[:, kind] for each in resampled],
                is_good=False,
            ),
        )
        for kind, name in enumerate(ERROR_TYPES)
    ]


def _per_100_images(side: RunNumbers) -> list[float]:
    """Errors of each type."""
    if side.images is None:
        return [math.nan] * len(ERROR_TYPES)
    found: list[float] = (100 * side.images.types.sum(axis=0) / max(len(side.images.types), 1)).tolist()
    return found


def _resampled_counts(first: RunNumbers, second: RunNumbers) -> list[NDArray[np.float64] | None]:
    """(S, 6) errors of each type per 100 images in each resample, of both."""
    if first.images is None or second.images is None:
        return [None, None]
    images, samples = len(first.images.types), len(first.samples["AP"])
    if images < FEWEST_IMAGES:
        return [np.full((samples, len(ERROR_TYPES)), math.nan)] * 2
    weights = image_weights(images, samples, 0)
    return [100 * (weights @ side.types) / images for side in (first.images, second.images)]


def _changed_images(first: ImageErrors | None, second: ImageErrors | None) -> tuple[int, int, list[ChangedImage]]:
    """How many images have fewer errors, how many more, and those of both kinds that changed most."""
    if first is None or second is None:
        return 0, 0, []
    change = second.errors - first.errors
    order = np.argsort(change, kind="stable")
    half = MOST_CHANGED // 2
    better = [image for image in order[:half].tolist() if change[image] < 0]
    worse = [image for image in order[::-1][:half].tolist() if change[image] > 0]
    changed = [
        ChangedImage(
            image, int(first.image_ids[image]), first.file_names[image], _counts(first, image), _counts(second, image)
        )
        for image in (*better, *worse)
    ]
    return int((change < 0).sum()), int((change > 0).sum()), changed


def _counts(images: ImageErrors, image: int) -> Counts:
    return Counts(int(images.hits[image]), int(images.misses[image]), int(images.alarms[image]))


def _own_intervals(first: RunNumbers, second: RunNumbers, names: tuple[str, str]) -> list[str]:
    """What remains to be said where AP has not been resampled on both sides."""
    if first.samples and second.samples:
        return []
    shown = [
        f"{100 * side.ap_interval[0]:.1f} to {100 * side.ap_interval[1]:.1f} ({name})"
        for side, name in zip((first, second), names, strict=True)
        if side.ap_interval is not None and not math.isnan(side.ap_interval[0])
    ]
    cautions = ["The errors of each image are not known, so that the images that changed most are not listed."]
    if len(shown) == 2:
        cautions.insert(
            0,
            f"The 95 % intervals of the two APs themselves are {' and '.join(shown)}. They are no test of the "
            "difference: what is hard in an image is hard for both.",
        )
    return cautions


def _cautions(ap: Difference, images: int, *, same: bool) -> list[str]:
    if same:
        return ["Both have exactly the same detections."]
    cautions = []
    if images < FEW_IMAGES:
        cautions.append(f"{images:,} images are few: the interval is rough, and usually too narrow.")
    needed = images_needed(ap, images)
    if needed is not None:
        cautions.append(
            f"If this difference is real, about {needed:,} images of this kind would show it in four of five cases."
        )
    if ap.conclusion in ("better", "worse", "unclear"):
        cautions.append(
            "The interval is about the choice of the images. It does not contain what another seed of the training "
            "would change: train twice to see that."
        )
    return cautions
