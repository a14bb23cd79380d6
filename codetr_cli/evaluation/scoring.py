"""Box and mask metrics of detections: the published reading of COCO's tables, and LVIS's own. No model.

Published convention for COCO (mmdet's CocoMetric, maxDets = (100, 300, 1000)): AP over IoU 0.50:0.95 counts 100
detections per image and class, AP50, AP75 and the AP by object size count up to 1000. AR1 and AR10 are COCO's standard
columns beside it. LVIS counts the 300 best detections of an image over all classes, in every column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.data.annotations import Annotations
from codetr_cli.data.outlines import OutlineError, check_polygons, decode
from codetr_cli.errors import DatasetError
from codetr_cli.evaluation.backends import (
    Engine,
    Federation,
    IouType,
    Objects,
    Question,
    Tables,
    compute_tables,
    mask_areas,
)
from codetr_cli.inference.detections import DetectionTable

COCO_MAX_DETS = (1, 10, 100, 300, 1000)
LVIS_MAX_DETS = 300

COCO_CONVENTION = (
    "AP and per-class AP over IoU 0.50:0.95 at 100 detections per image; AP50, AP75 and AP and AR by size at 1000; "
    "AR at the number in its name"
)
LVIS_CONVENTION = (
    "every column counts the 300 best detections of an image over all classes; classes that nobody looked for in an "
    "image do not count there; APr, APc, APf: rare, common, frequent classes"
)
"""What each column counts, for the line printed beside the numbers."""

METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "AR300", "AR1000", "ARs", "ARm", "ARl"),
)
LVIS_METRICS = (*("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"), *("AR300", "ARs", "ARm", "ARl"))
FREQUENCIES = ("r", "c", "f")
"""LVIS's groups of classes by the number of training images that have them: rare, common, frequent."""

MASK_PREFIX = "mask_"
"""Before the name of a metric of masks: mask_AP, mask_AP50, ..."""


@dataclass(frozen=True)
class ClassScore:
    """AP of one class: over IoU 0.50:0.95, and at IoU 0.50; -1 where the class has no object to find.

    Attributes:
        name: the class.
        category_id: its original id.
        objects: annotated, without crowds.
        AP: of boxes.
        AP50: of boxes.
        mask_AP: of masks, None where there are none.
        mask_AP50: likewise.
        frequency: LVIS's "r", "c" or "f"; None for other data sets.
    """

    name: str
    category_id: int
    objects: int
    AP: float
    AP50: float
    mask_AP: float | None = None  # noqa: N815 - the name in JSON
    mask_AP50: float | None = None  # noqa: N815
    frequency: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The values that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Scores:
    """Metrics in [0, 1] by name, -1 where nothing could be found, and what they were counted over.

    Attributes:
        metrics: of boxes under `METRICS` (or `LVIS_METRICS`), of masks under the same names with "mask_" before them.
        per_class: in the order of the category ids.
        images: images scored.
        objects: annotations scored, crowds included.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    per_class: list[ClassScore] = field(default_factory=list)
    images: int = 0
    objects: int = 0


def score_detections(
    truth: Annotations,
    detections: DetectionTable,
    image_ids: Iterable[int] | None = None,
    *,
    where: str,
    engine: Engine = "hotcoco",
) -> Scores:
    """Metrics of boxes and, where both sides have them, of masks.

    Args:
        truth: the annotations; every object counts, also those that training leaves out. LVIS's are scored by LVIS's
            rules. Masks are scored if they were read with outlines.
        detections: with original category ids.
        image_ids: the images that were looked at; None: all images of the annotations.
        where: the annotation file, for messages.
        engine: who matches detections to objects; the numbers do not depend on it.

    Raises:
        DatasetError: detections name images or categories that the annotations do not have, an object has no usable
            outline, or a mask has another size than its image.
    """
    _check_known(detections.image_ids, "image_id", truth.image_ids, where)
    _check_known(detections.category_ids, "category_id", np.array(truth.category_ids, np.int64), where)
    wanted = truth.image_ids if image_ids is None else np.array(sorted(set(image_ids)), np.int64)
    images = np.sort(truth.image_ids[np.isin(truth.image_ids, wanted)])
    rows = np.flatnonzero(np.isin(truth.image_ids[truth.image_rows], images))
    found = detections.of_images(images.tolist())
    subject = _Subject(truth, images, rows, found)
    boxes = compute_tables(engine, subject.question("bbox"))
    scores = Scores(_summary(truth, boxes), _per_class(truth, rows, boxes), len(images), len(rows))
    if truth.outlines is None or (found.masks is None and len(found)):
        return scores
    check_outlines(truth, where)
    _check_mask_sizes(truth, found, where)
    outlines = _parsed_outlines(truth, rows, where)
    return _with_masks(scores, truth, compute_tables(engine, subject.question("segm", outlines)))


def check_outlines(truth: Annotations, where: str) -> None:
    """Makes sure that masks can be scored.

    Raises:
        DatasetError: objects without an outline.
    """
    missing = len(truth.labels) - (0 if truth.outlines is None else int(truth.outlines.present.sum()))
    if missing:
        raise DatasetError(
            f"{where}: {missing} of {len(truth.labels)} objects have no outline (segmentation), and mask AP needs all "
            "of them. Use annotations with masks; `codetr eval --boxes-only` scores boxes alone"
        )


def _check_known(ids: NDArray[np.int64], key: str, known: NDArray[np.int64], where: str) -> None:
    unknown = np.setdiff1d(ids, known)
    if len(unknown):
        raise DatasetError(
            f"the detections name {len(unknown)} values of {key} that {where} does not have (the first: "
            f"{', '.join(str(value) for value in unknown[:5])}): score them against the annotations they were made for"
        )


def _check_mask_sizes(truth: Annotations, found: DetectionTable, where: str) -> None:
    sizes = dict(zip(truth.image_ids.tolist(), truth.sizes.tolist(), strict=True))
    for image_id, mask in zip(found.image_ids.tolist(), found.masks or [], strict=True):
        if list(mask["size"]) != sizes[image_id]:
            raise DatasetError(
                f"a mask detected in image {image_id} is {mask['size'][0]}x{mask['size'][1]} pixels, and {where} says "
                f"that the image is {sizes[image_id][0]}x{sizes[image_id][1]}: masks must have their image's size"
            )


def _parsed_outlines(truth: Annotations, rows: NDArray[np.int64], where: str) -> list[Any]:
    """The outlines of some objects; broken ones would take the engines down or be drawn as something else."""
    assert truth.outlines is not None
    outlines = []
    for row in rows.tolist():
        outline = truth.outlines.parse(row)
        height, width = truth.sizes[truth.image_rows[row]].tolist()
        try:
            if isinstance(outline, list):
                check_polygons(outline)
            else:
                decode(outline, (height, width))
        except OutlineError as error:
            raise DatasetError(f"{where}: annotations[{truth.outlines.entries[row]}] has {error}") from error
        outlines.append(outline)
    return outlines


# ---------------------------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is scored: the images (ids, ascending), the rows of their objects, and the detections on them."""

    truth: Annotations
    images: NDArray[np.int64]
    rows: NDArray[np.int64]
    found: DetectionTable

    def question(self, iou_type: IouType, outlines: list[Any] | None = None) -> Question:
        """What an engine is asked; with the objects' outlines for masks."""
        found = self.found
        federation = _federation(self.truth)
        if federation is not None:
            ranking = found.scores if iou_type == "bbox" else found.ranking_of_masks()
            found = found.select(_best_of_each_image(found.image_ids, ranking, LVIS_MAX_DETS))
        sizes = dict(zip(self.truth.image_ids.tolist(), self.truth.sizes.tolist(), strict=True))
        return Question(
            images=[(image_id, *sizes[image_id]) for image_id in self.images.tolist()],
            category_ids=self.truth.category_ids,
            objects=self._annotated(outlines),
            found=_detected(found, iou_type),
            iou_type=iou_type,
            max_dets=COCO_MAX_DETS if federation is None else [LVIS_MAX_DETS],
            federation=federation,
        )

    def _annotated(self, outlines: list[Any] | None) -> Objects:
        truth, rows = self.truth, self.rows
        crowd = truth.iscrowd[rows]
        return Objects(
            image_ids=truth.image_ids[truth.image_rows[rows]],
            category_ids=np.array(truth.category_ids, np.int64)[truth.labels[rows]],
            boxes_xywh=truth.boxes_xywh[rows],
            area=truth.area[rows],
            iscrowd=np.zeros_like(crowd) if truth.is_lvis else crowd,  # LVIS knows no crowds
            outlines=outlines,
        )


def _federation(truth: Annotations) -> Federation | None:
    """LVIS's lists; None for other annotations."""
    if not truth.is_lvis:
        return None
    ids = truth.image_ids.tolist()
    return Federation(
        negative=dict(zip(ids, truth.neg_category_ids, strict=True)),
        not_exhaustive=dict(zip(ids, truth.not_exhaustive_category_ids, strict=True)),
        frequencies=truth.frequencies,
    )


def _detected(found: DetectionTable, iou_type: IouType) -> Objects:
    masks = (found.masks or []) if iou_type == "segm" else None
    return Objects(
        image_ids=found.image_ids,
        category_ids=found.category_ids,
        boxes_xywh=found.boxes_xywh,
        area=found.boxes_xywh[:, 2] * found.boxes_xywh[:, 3] if masks is None else mask_areas(masks),
        iscrowd=np.zeros(len(found), np.int64),
        scores=found.scores if masks is None else found.ranking_of_masks(),
        outlines=masks,
    )


def _best_of_each_image(image_ids: NDArray[np.int64], scores: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Rows of the best detections of each image, in their own order; of equal scores the first rows are better."""
    order = np.lexsort((np.arange(len(scores)), -scores, image_ids))
    _, starts, counts = np.unique(image_ids[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    return np.sort(order[rank < limit])


# ---------------------------------------------------------------------------------------------------- tables to numbers


def _mean(table: NDArray[np.float64]) -> float:
    """Mean over the entries that exist; -1 when none does, as pycocotools has it.

    Rounded to 12 digits: pycocotools' precision of a perfect detector is 1 - 2e-16.
    """
    known = table[table > -1]
    return round(float(known.mean()), 12) if known.size else -1.0


def _summary(truth: Annotations, tables: Tables) -> dict[str, float]:
    """The named metrics of the tables."""
    return _lvis_summary(tables, truth.frequencies) if truth.is_lvis else _coco_summary(tables)


def _coco_summary(tables: Tables) -> dict[str, float]:
    precision, recall = tables.precision, tables.recall
    at_100, at_1000 = COCO_MAX_DETS.index(100), COCO_MAX_DETS.index(1000)
    values = {
        "AP": _mean(precision[:, :, :, 0, at_100]),
        "AP50": _mean(precision[0, :, :, 0, at_1000]),
        "AP75": _mean(precision[5, :, :, 0, at_1000]),
    }
    values |= {f"AP{size}": _mean(precision[:, :, :, area, at_1000]) for area, size in enumerate("sml", start=1)}
    values |= {f"AR{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate(COCO_MAX_DETS)}
    values |= {f"AR{size}": _mean(recall[:, :, area, at_1000]) for area, size in enumerate("sml", start=1)}
    return {name: values[name] for name in METRICS}


def _lvis_summary(tables: Tables, frequencies: list[str]) -> dict[str, float]:
    precision, recall = tables.precision[..., 0], tables.recall[..., 0]
    values = {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[0, :, :, 0]),
        "AP75": _mean(precision[5, :, :, 0]),
        f"AR{LVIS_MAX_DETS}": _mean(recall[:, :, 0]),
    }
    groups = np.array(frequencies)
    values |= {f"AP{group}": _mean(precision[:, :, groups == group, 0]) for group in FREQUENCIES}
    for area, size in enumerate("sml", start=1):
        values |= {f"AP{size}": _mean(precision[:, :, :, area]), f"AR{size}": _mean(recall[:, :, area])}
    return {name: values[name] for name in LVIS_METRICS}


def _class_ap(truth: Annotations, tables: Tables) -> list[tuple[float, float]]:
    """AP and AP50 of each class."""
    limit = 0 if truth.is_lvis else COCO_MAX_DETS.index(100)
    return [
        (_mean(tables.precision[:, :, index, 0, limit]), _mean(tables.precision[0, :, index, 0, limit]))
        for index in range(len(truth.category_ids))
    ]


def _per_class(truth: Annotations, rows: NDArray[np.int64], tables: Tables) -> list[ClassScore]:
    single = truth.labels[rows][truth.iscrowd[rows] == 0]
    counts = np.bincount(single, minlength=len(truth.category_ids)).tolist()
    columns = (truth.class_names, truth.category_ids, counts, _class_ap(truth, tables))
    frequencies = truth.frequencies if truth.is_lvis else [None] * len(counts)
    return [
        ClassScore(name, category_id, count, ap, ap50, frequency=frequency)
        for name, category_id, count, (ap, ap50), frequency in zip(*columns, frequencies, strict=True)
    ]


def _with_masks(scores: Scores, truth: Annotations, tables: Tables) -> Scores:
    metrics = {f"{MASK_PREFIX}{name}": value for name, value in _summary(truth, tables).items()}
    per_class = [
        replace(score, mask_AP=ap, mask_AP50=ap50)
        for score, (ap, ap50) in zip(scores.per_class, _class_ap(truth, tables), strict=True)
    ]
    return replace(scores, metrics={**scores.metrics, **metrics}, per_class=per_class)
