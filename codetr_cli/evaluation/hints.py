"""Hints at files of detections that are probably in another convention than COCO's; nothing is changed by them.

A hint needs evidence that no correct file gives: values that cannot be meant otherwise, or objects of the annotations
that the detections fit far better when they are read in the other way.
Shape letters: N detections, S of them in a sample, P pairs of a detection and an object of its image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.annotation_json import ID
from codetr_cli.annotations.objects import Annotations
from codetr_cli.annotations.row_finders import number_rows
from codetr_cli.errors import listed, shown
from codetr_cli.evaluation.matching import several, several_classes
from codetr_cli.inference.detections import DetectionTable

SAMPLE = 1000
"""Detections with the highest scores that are compared with the objects."""
EXAMINED = 100_000
"""Detections that are compared with the sizes of their images."""
OBJECTS_PER_IMAGE = 200
NEAR_ONE = 1.5
"""Up to this, shares of a side are of boxes that leave the image."""
BEYOND_SHARE = 0.05
"""Part of the image's longer side that a box extends beyond the image, to be far beyond."""
_FIT, _FACTOR = 0.2, 3.0
"""How well another reading has to fit, from 0 to 1, and by what factor better."""

Ids = NDArray[np.int64]
Boxes = NDArray[np.float64]


def hints(
    table: DetectionTable, ground_truth: Annotations, *, images_by_name: bool = False, classes_by_name: bool = False
) -> list[str]:
    """What is probably wrong with detections, a sentence each with the conversion; empty for correct ones.

    Args:
        table: detections whose images and categories are those of the annotations.
        ground_truth: what they are scored against.
        images_by_name: whether names decided which images they are of, so that no number is wrong.
        classes_by_name: the same of categories.
    """
    if not len(table):
        return ["there are no detections: AP is 0 where there are objects"]
    found = [_score_hint(table.scores)]
    sample = _Sample.of(table, ground_truth)
    box = (
        _normalized_hint(table, ground_truth, sample) or _corner_hint(table, ground_truth, sample) or _box_hint(sample)
    )
    found.append(box or ("" if images_by_name else _image_hint(sample)))
    found.append("" if classes_by_name else _category_hint(sample))
    return [hint for hint in found if hint]


# ------------------------------------------------------------------------------------------------------------- values


def _score_hint(scores: Boxes) -> str:
    high = scores > 1 + 1e-6
    if not high.any():
        return ""
    are_percent = scores.max() <= 100 and scores.min() >= 0
    advice = "if they are percent, divide them by 100" if are_percent else "apply a sigmoid to logits"
    return (
        f"{int(high.sum()):,} of {len(scores):,} scores are above 1 (up to {scores.max():g}), and scores are from 0 to "
        f"1: {advice}. AP depends only on their order"
    )


def _normalized_hint(table: DetectionTable, ground_truth: Annotations, sample: _Sample) -> str:
    """A hint at shares of the image's sides: fractions up to 1, or a little beyond, or boxes that fit as such."""
    boxes = table.boxes_xywh
    is_share = boxes <= 1 + 1e-6
    if boxes.max() > NEAR_ONE or is_share.mean() < 0.9 or ground_truth.sizes.min(initial=3) <= 2:
        return ""
    has_fractions = len(table) >= 3 and (boxes != boxes.round()).mean() >= 0.5
    scale = np.tile(ground_truth.sizes[sample.image_rows][:, ::-1], 2)
    _, _, iou = sample.overlaps(_as_given(sample.boxes * scale), sample.image_rows)
    if not has_fractions and (iou.max(initial=0) < 0.5 or sample.fit() > 0):
        return ""
    return (
        "the numbers of the boxes are within 0..1, as if they were normalized: boxes are in pixels of the original "
        "image. Multiply x and width by the image's width, y and height by its height"
    )


def _corner_hint(table: DetectionTable, ground_truth: Annotations, sample: _Sample) -> str:
    """A hint at corners instead of sizes by boxes that extend far beyond their images."""
    examined = slice(None, None, 1 + len(table) // EXAMINED)
    height, width = ground_truth.sizes[_rows(ground_truth.image_ids, table.image_ids[examined])].T
    left, top, right, bottom = table.boxes_xywh[examined].T
    beyond = np.maximum(left + right - width, top + bottom - height) > BEYOND_SHARE * np.maximum(height, width)
    fits = (right <= width + 1) & (bottom <= height + 1) & (right > left) & (bottom > top)
    if beyond.mean() < 0.2 or fits.mean() < 0.95 or sample.fit() > 0.5:
        return ""
    return (
        f"the boxes seem to be corners (x1, y1, x2, y2): as (x, y, width, height), {beyond.mean():.0%} of them extend "
        "far beyond their images. Convert them to [x1, y1, x2 - x1, y2 - y1]"
    )


# ------------------------------------------------------------------------------------------------- fit to the objects


@dataclass(frozen=True, eq=False)
class _Sample:
    """The detections with the highest scores, and the objects of the annotations.

    Args:
        image_rows: (S,) of the detections in the annotations.
        labels: (S,) of the detections.
        boxes: (S, 4) xywh.
    """

    ground_truth: Annotations
    image_rows: Ids
    labels: Ids
    boxes: Boxes

    @classmethod
    def of(cls, table: DetectionTable, ground_truth: Annotations) -> _Sample:
        best: Any = slice(None)
        if len(table) > SAMPLE:
            best = np.argpartition(-table.scores, SAMPLE)[:SAMPLE]
        return cls(
            ground_truth,
            _rows(ground_truth.image_ids, table.image_ids[best]),
            _rows(np.array(ground_truth.category_ids, np.int64), table.category_ids[best]),
            table.boxes_xywh[best],
        )

    def pairs(self, image_rows: Ids) -> tuple[Ids, Ids]:
        """Each detection (P,) with each of the first objects (P,) of an image."""
        truth = self.ground_truth
        order = np.argsort(truth.image_rows, kind="stable")
        order = order[truth.iscrowd[order] == 0]
        in_order = truth.image_rows[order]
        start = np.searchsorted(in_order, image_rows)
        count = np.minimum(np.searchsorted(in_order, image_rows, side="right") - start, OBJECTS_PER_IMAGE)
        detection = np.repeat(np.arange(len(image_rows)), count)
        within = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
        return detection, order[np.repeat(start, count) + within]

    def overlaps(self, corners: Boxes, image_rows: Ids) -> tuple[Ids, Ids, Boxes]:
        """The pairs, and the IoU (P,) of each, with boxes (S, 4) xyxy."""
        detection, objects = self.pairs(image_rows)
        x, y, w, h = self.ground_truth.boxes_xywh[objects].T
        left, top, right, bottom = corners[detection].T
        width = np.minimum(right, x + w) - np.maximum(left, x)
        height = np.minimum(bottom, y + h) - np.maximum(top, y)
        common = width.clip(min=0) * height.clip(min=0)
        union = (right - left).clip(min=0) * (bottom - top).clip(min=0) + w * h - common
        return detection, objects, common / np.maximum(union, 1e-9)

    def fit(self, corners: Boxes | None = None, image_rows: Ids | None = None) -> float:
        """How well the boxes fit the objects: 0 if no IoU exceeds 0.5, 1 if all are 1."""
        corners = _as_given(self.boxes) if corners is None else corners
        detection, _, iou = self.overlaps(corners, self.image_rows if image_rows is None else image_rows)
        best = np.zeros(len(corners))
        np.maximum.at(best, detection, iou)
        good = ((best - 0.5) * 2).clip(min=0)
        return float(good.mean()) if (good > 0).sum() >= 2 else 0.0

    def images_fit(self, image_rows: Ids) -> int:
        """The number of images with an object that a detection overlaps by half."""
        detection, _, iou = self.overlaps(_as_given(self.boxes), image_rows)
        return len(np.unique(image_rows[detection[iou >= 0.5]]))


def _box_hint(sample: _Sample) -> str:
    """The other reading of the boxes that fits the objects far better, if there is one."""
    as_given = sample.fit()
    for corners, words in _readings(sample):
        if _is_better(sample.fit(corners), as_given):
            return f"the boxes fit the objects far better if they are read as {words}"
    return ""


def _readings(sample: _Sample) -> Iterator[tuple[Boxes, str]]:
    """Other readings of the boxes, as corners (S, 4), with the conversion."""
    a, b, c, d = sample.boxes.T
    yield sample.boxes, "corners (x1, y1, x2, y2): convert them to [x1, y1, x2 - x1, y2 - y1]"
    centred = np.stack([a - c / 2, b - d / 2, a + c / 2, b + d / 2], 1)
    yield (
        centred,
        "centre and size (cx, cy, width, height): convert them to [cx - width / 2, cy - height / 2, width, height]",
    )
    yield np.stack([b, a, b + d, a + c], 1), "(y, x, height, width): convert them to [x, y, width, height]"
    yield np.stack([b, a, d, c], 1), "(y1, x1, y2, x2): convert them to [x1, y1, x2 - x1, y2 - y1]"


def _image_hint(sample: _Sample) -> str:
    """The other numbering of the images by which the boxes fit the objects far better, if there is one."""
    as_given = sample.fit()
    ids = sample.ground_truth.image_ids
    for rows, words in _numberings(ids[sample.image_rows], sample.ground_truth):
        if (rows >= 0).all() and _is_better(sample.fit(image_rows=rows), as_given) and sample.images_fit(rows) > 1:
            return (
                f"the boxes fit the objects far better if image_id is {words}. Images are matched by name if each "
                "detection has a file_name"
            )
    return ""


def _category_hint(sample: _Sample) -> str:
    """The other numbering of the categories that agrees far better with the objects that the boxes fit."""
    detection, objects, iou = sample.overlaps(_as_given(sample.boxes), sample.image_rows)
    detection, objects = detection[iou >= 0.5], objects[iou >= 0.5]
    fitting = np.unique(detection)
    if len(fitting) < 3:
        return ""

    def agreement(labels: Ids) -> tuple[float, int]:
        """The share of these detections that agree, and the number of classes that do."""
        agrees = labels[detection] == sample.ground_truth.labels[objects]
        return len(np.unique(detection[agrees])) / len(fitting), len(np.unique(labels[detection[agrees]]))

    as_given, _ = agreement(sample.labels)
    ids = np.array(sample.ground_truth.category_ids, np.int64)
    for labels, words in _category_numberings(ids[sample.labels], ids):
        share, classes = agreement(labels) if (labels >= 0).all() else (0.0, 0)
        # All of one class under another number may be the detector's mistake.
        if share >= max(0.6, as_given + 0.3) and classes > 1:
            return f"the classes of the detections agree with those of the objects if category_id is {words}"
    return ""


def _is_better(fit: float, as_given: float) -> bool:
    return fit >= max(_FIT, _FACTOR * as_given)


def _as_given(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


# ------------------------------------------------------------------------------------------------------------ numbers


def unknown_images(values: Sequence[Any], unknown: Sequence[int], ground_truth: Annotations, where: str) -> str:
    """The error for image ids (N,) of which some, by their places, are unknown, with what they may be instead."""
    hint = "Score them against the annotations they were made for: --split or --ann chooses others"
    numbers = None if str in set(map(type, values)) else ID.column(list(values))
    if numbers is not None:
        for rows, words in _numberings(numbers, ground_truth):
            if (rows >= 0).all():
                hint = f"All would be known if they were {words}"
                break
    return (
        f"{_unknown([values[row] for row in unknown], 'image_id', where, lambda text: several(text, ground_truth))}: "
        f"the ids of the {len(ground_truth.image_ids):,} images are "
        f"{listed(ground_truth.image_ids[:3].tolist())}, ... and their file names "
        f"{listed(ground_truth.file_names[:2])}, ... {hint}"
    )


def unknown_categories(values: Sequence[Any], unknown: Sequence[int], ground_truth: Annotations, where: str) -> str:
    """The error for category ids (N,) of which some, by their places, are unknown, with what they may be instead."""
    ids = np.array(ground_truth.category_ids, np.int64)
    hint = "Score them against the annotations they were made for"
    numbers = None if str in set(map(type, values)) else ID.column(list(values))
    if numbers is not None:
        for labels, words in _category_numberings(numbers, ids):
            if (labels >= 0).all():
                hint = f"All would be known if they were {words}"
                break
    classes = [f"{i} {name}" for i, name in zip(ground_truth.category_ids, ground_truth.class_names, strict=True)]
    found = [values[row] for row in unknown]
    start = _unknown(found, "category_id", where, lambda text: several_classes(text, ground_truth))
    return f"{start}: its categories are {listed(classes, 5)}. {hint}"


def _unknown(values: list[Any], key: str, where: str, is_several: Callable[[str], bool]) -> str:
    """Which values are unknown; of names, whether the first may mean several."""
    values = list(dict.fromkeys(values))
    ambiguous = [value for value in values[:5] if type(value) is str and is_several(value)]
    first = listed([shown(value) for value in values], 5)
    if ambiguous:
        first += f"; {listed([shown(value) for value in ambiguous], 5)} may mean several"
    return f"the detections contain {len(values):,} values of {key} that are not in {where} ({first})"


def _numberings(ids: Ids, ground_truth: Annotations) -> Iterator[tuple[Ids, str]]:
    """Other readings of image ids, as rows of the annotations, negative where there is none."""
    yield _rows(ground_truth.image_ids, ids + 1), "numbered from 0 instead of 1: add 1 to each image_id"
    yield _rows(ground_truth.image_ids, ids - 1), "numbered from 1 instead of 0: subtract 1 from each image_id"
    by_file = number_rows(ground_truth.file_names)
    yield np.array([by_file.get(number, -1) for number in ids.tolist()], np.int64), "the number in the file name"
    yield from _positions(ids, len(ground_truth.image_ids), "images")


def _category_numberings(values: Ids, ids: Ids) -> Iterator[tuple[Ids, str]]:
    """Other readings of category ids, as labels of the annotations, negative where there is none."""
    yield _rows(ids, values + 1), "numbered from 0 instead of 1: add 1 to each category_id"
    yield _rows(ids, values - 1), "numbered from 1 instead of 0: subtract 1 from each category_id"
    yield from _positions(values, len(ids), "categories")


def _positions(values: Ids, count: int, what: str) -> Iterator[tuple[Ids, str]]:
    for first in (0, 1):
        place = np.where((values >= first) & (values < count + first), values - first, -1)
        order = "in the file" if what == "images" else "by ascending id"
        yield place, f"the position among the {what} {order}, from {first}: replace each by the id at that position"


def _rows(ids: Ids, wanted: Ids) -> Ids:
    """The index of each of some ids (N,), -1 where there is none."""
    if not len(ids):
        return np.full(len(wanted), -1)
    order = np.argsort(ids, kind="stable")
    rows = order[np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)]
    return np.where(ids[rows] == wanted, rows, -1)
