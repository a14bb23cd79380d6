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
from codetr_cli.analysis.image_outcomes import ImageOutcomes
from codetr_cli.analysis.run_numbers import RunNumbers
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
        ap: AP50 that they cost, without an interval; less is better.
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


def compare_runs(first: RunNumbers, second: RunNumbers, names: tuple[str, str] = ("A", "B")) -> RunComparison:
    """The second run beside the first, on the same images.

    Args:
        first: of one run.
        second: of the other, with the same annotations, images and number of resamples.
        names: of both, for sentences.
    """
    images = len(first.inputs.image_ids)
    metrics = {
        name: paired_difference(
            _known(first.scores.metrics[name]), _known(second.scores.metrics[name]), values, second.samples[name]
        )
        for name, values in first.samples.items()
        if name in second.samples
    }
    classes = _classes(first, second)
    improved, worsened, changed = _changed_images(first, second)
    same = same_detections(first.inputs.detections, second.inputs.detections)
    verdict = [
        sentence(metrics[name], images, first=names[0], second=names[1], metric=METRICS[name])
        for name in ("AP", MASK_PREFIX + "AP")
        if name in metrics
    ]
    return RunComparison(
        verdict=verdict,
        metrics=metrics,
        classes=classes,
        errors=_errors(first, second),
        images=images,
        changed=changed,
        better_images=improved,
        worse_images=worsened,
        cautions=_cautions(metrics["AP"], images, same=same),
        same_detections=same,
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


def _classes(first: RunNumbers, second: RunNumbers) -> list[ClassDifference]:
    found = [
        (left, paired_difference(left.AP, right.AP, first.class_samples[:, index], second.class_samples[:, index]))
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
    images, samples = len(first.inputs.image_ids), len(first.samples["AP"])
    weights = image_weights(images, samples, 0)
    before, after = (100 * each.error_counts / max(images, 1) for each in (first, second))
    resampled = [weights @ each for each in (before, after)]  # (S, 6)
    if images < FEWEST_IMAGES:
        resampled = [np.full_like(each, math.nan) for each in resampled]
    return [
        ErrorDifference(
            name,
            Difference(first.error_ap[name], second.error_ap[name], is_good=False),
            paired_difference(
                float(before[:, kind].sum()),
                float(after[:, kind].sum()),
                resampled[0][:, kind],
                resampled[1][:, kind],
                is_good=False,
            ),
        )
        for kind, name in enumerate(ERROR_TYPES)
    ]


def _changed_images(first: RunNumbers, second: RunNumbers) -> tuple[int, int, list[ChangedImage]]:
    """How many images have fewer errors, how many more, and those of both kinds that changed most."""
    change = second.outcomes.errors - first.outcomes.errors
    order = np.argsort(change, kind="stable")
    half = MOST_CHANGED // 2
    better = [image for image in order[:half].tolist() if change[image] < 0]
    worse = [image for image in order[::-1][:half].tolist() if change[image] > 0]
    inputs = first.inputs
    changed = [
        ChangedImage(
            image,
            int(inputs.image_ids[image]),
            inputs.file_name(image),
            _counts(first.outcomes, image),
            _counts(second.outcomes, image),
        )
        for image in (*better, *worse)
    ]
    return int((change < 0).sum()), int((change > 0).sum()), changed


def _counts(outcomes: ImageOutcomes, image: int) -> Counts:
    return Counts(int(outcomes.hits[image]), int(outcomes.misses[image]), int(outcomes.alarms[image]))


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
