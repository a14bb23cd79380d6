"""One row of numbers for each class, and for LVIS's groups of rare, common and frequent classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches
from codetr_cli.evaluation.scoring import Scores

FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
FREQUENCY_HINTS = {
    "r": "in 1 to 10 training images",
    "c": "in 11 to 100 training images",
    "f": "in more than 100 training images",
}


@dataclass(frozen=True)
class ClassRow:
    """Numbers of one class, None where it has no object to find.

    Attributes:
        name: of the class.
        category_id: original id.
        objects: to find, without crowds.
        images: evaluated images with such an object.
        detections: that count, of any score.
        ap: over IoU 0.50:0.95, in [0, 1].
        ap50: at IoU 0.50.
        ar: mean share of the objects found at IoU 0.50:0.95 by the detections that count.
        ap_interval: 95 % interval of `ap`; None if it was not computed.
        best_threshold: score with the best F1-score; None without a hit.
        best_f1: F1-score there.
        precision: there.
        recall: there.
        frequency: LVIS's "r", "c" or "f"; None for other data sets.
        mask_ap: `ap` of masks; None if masks were not scored.
        mask_ap50: `ap50` of masks.
    """

    name: str
    category_id: int
    objects: int
    images: int
    detections: int
    ap: float | None
    ap50: float | None
    ar: float | None
    ap_interval: tuple[float, float] | None = None
    best_threshold: float | None = None
    best_f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    frequency: str | None = None
    mask_ap: float | None = None
    mask_ap50: float | None = None


@dataclass(frozen=True)
class FrequencyGroup:
    """LVIS's classes of one frequency.

    Attributes:
        key: "r", "c" or "f".
        name: "rare", "common" or "frequent".
        hint: which classes those are.
        classes: of this frequency.
        scored: of these, classes with an object to find.
        unfound: of these, classes of which nothing was found.
        objects: to find.
        ap: mean over the scored classes, None without any.
        mask_ap: as `ap`, of masks; None if masks were not scored.
    """

    key: str
    name: str
    hint: str
    classes: int
    scored: int
    unfound: int
    objects: int
    ap: float | None
    mask_ap: float | None = None


def known(value: float | None) -> float | None:
    """A score, None where COCO has -1 or NaN for "no object to find"."""
    return None if value is None or not value >= 0 else float(value)


def class_rows(inputs: AnalysisInputs, scores: Scores, matches: Matches) -> list[ClassRow]:
    """A row for each class, in the order of the category ids."""
    single = ~matches.object_ignored
    labels, images = matches.object_labels[single], matches.object_images[single]
    pairs = np.unique(images * matches.num_classes + labels)
    with_class = np.bincount(pairs % matches.num_classes, minlength=matches.num_classes) if len(pairs) else None
    detections = np.bincount(matches.labels, minlength=matches.num_classes).tolist()
    objects, recall = matches.class_objects.tolist(), average_recall(matches)
    return [
        ClassRow(
            name=score.name,
            category_id=score.category_id,
            objects=objects[label],
            images=0 if with_class is None else int(with_class[label]),
            detections=detections[label],
            ap=known(score.AP),
            ap50=known(score.AP50),
            ar=known(float(recall[label])),
            frequency=score.frequency,
            mask_ap=known(score.mask_AP),
            mask_ap50=known(score.mask_AP50),
        )
        for label, score in enumerate(scores.per_class)
    ]


def average_recall(matches: Matches) -> NDArray[np.float64]:
    """(K,) share of the objects of each class that are found, mean over IoU 0.50:0.95; NaN without objects."""
    found = np.zeros(matches.num_classes)
    for level in range(len(matches.objects)):
        found += np.bincount(matches.labels[matches.hits(level)], minlength=matches.num_classes)
    totals = matches.class_objects
    recall = np.full(matches.num_classes, np.nan)
    np.divide(found / len(matches.objects), totals, out=recall, where=totals > 0)
    return recall


def frequency_groups(rows: Sequence[ClassRow]) -> list[FrequencyGroup] | None:
    """LVIS's groups of classes; None for other data sets."""
    if not any(row.frequency for row in rows):
        return None
    groups = []
    for key, name in FREQUENCY_NAMES.items():
        members = [row for row in rows if row.frequency == key]
        scored = [row.ap for row in members if row.ap is not None]
        masks = [row.mask_ap for row in members if row.mask_ap is not None]
        groups.append(
            FrequencyGroup(
                key=key,
                name=name,
                hint=FREQUENCY_HINTS[key],
                classes=len(members),
                scored=len(scored),
                unfound=scored.count(0.0),
                objects=sum(row.objects for row in members),
                ap=float(np.mean(scored)) if scored else None,
                mask_ap=float(np.mean(masks)) if masks else None,
            )
        )
    return groups
