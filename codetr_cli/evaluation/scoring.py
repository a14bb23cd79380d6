"""Box and mask metrics of detections by the published convention for COCO's tables, and by LVIS's own. No model.

Published convention for COCO (mmdet's CocoMetric, maxDets = (100, 300, 1000)): AP over IoU 0.50:0.95 counts 100
detections per image and class, AP50, AP75 and the AP by object size count up to 1000. AR1 and AR10 are COCO's standard
columns beside it. LVIS counts the 300 best detections of an image over all classes, in every column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.annotation_json import FREQUENCIES
from codetr_cli.annotations.objects import Annotations
from codetr_cli.annotations.outlines import MERGED_AT_ONCE, check_outline, merged_polygons
from codetr_cli.annotations.run_length_codes import OutlineError
from codetr_cli.errors import DatasetError, listed
from codetr_cli.evaluation.backends import (
    Federation,
    Instances,
    PrecisionRecall,
    Scorer,
    ScoringInputs,
    compute_tables,
    mask_areas,
)
from codetr_cli.inference.detections import DetectionTable

COCO_MAX_DETS = (1, 10, 100, 300, 1000)
LVIS_MAX_DETS = 300
CROWDED_MAX_DETS = (100, 300, 500)
"""Of images with many objects, such as those that are detected in tiles: further APs under the names of `ap_at`."""

COCO_CONVENTION = (
    "AP and per-class AP over IoU 0.50:0.95 at 100 detections per image; AP50, AP75 and AP and AR by size at 1000; "
    "AR at the number in its name"
)
LVIS_CONVENTION = (
    "every column counts the 300 best detections of an image over all classes; classes that an image was not annotated "
    "for are ignored in it; APr, APc, APf: rare, common, frequent classes"
)
"""What each column counts; printed with the metrics."""

METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "AR300", "AR1000", "ARs", "ARm", "ARl"),
)
LVIS_METRICS = (*("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"), *("AR300", "ARs", "ARm", "ARl"))
MASK_PREFIX = "mask_"
"""Prefix of mask metrics: mask_AP, mask_AP50, ..."""


def ap_at(max_dets: int) -> str:
    """Name of the AP over IoU 0.50:0.95 at a number of detections per image."""
    return f"AP@{max_dets}"


@dataclass(frozen=True)
class ClassScore:
    """AP of one class: over IoU 0.50:0.95, and at IoU 0.50; -1 where the class has no object to find.

    Attributes:
        name: of the class.
        category_id: original id.
        objects: number of annotated objects, without crowds.
        AP: of boxes.
        AP50: of boxes.
        mask_AP: of masks; None if masks were not scored.
        mask_AP50: of masks; None if masks were not scored.
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
        """The values that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Scores:
    """Metrics in [0, 1] by name, -1 where there is no object to find, and what they were computed over.

    Attributes:
        metrics: of boxes under `METRICS` (or `LVIS_METRICS`) and `ap_at`, of masks under the same names with the prefix
            "mask_".
        per_class: in the order of the category ids.
        images: number of scored images.
        objects: number of scored annotations, crowds included.
        pr_curves: (2, 101, K) float64 precision of boxes of each class at the recalls 0, 0.01, ..., 1, at IoU 0.50 and
            0.75, as AP50 and AP75 count it; -1 for classes without an object to find. None where nothing was scored.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    per_class: list[ClassScore] = field(default_factory=list)
    images: int = 0
    objects: int = 0
    pr_curves: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)


def score_detections(
    ground_truth: Annotations,
    detections: DetectionTable,
    image_ids: Iterable[int] | None = None,
    *,
    where: str,
    scorer: Scorer = "hotcoco",
    max_dets: Sequence[int] = (),
) -> Scores:
    """Metrics of boxes and, where both sides have them, of masks.

    Args:
        ground_truth: every object counts, also those that training skips. LVIS's annotations are scored by LVIS's
            rules. Masks are scored if the annotations were read with outlines.
        detections: with original category ids.
        image_ids: the evaluated images; None: all images of the annotations.
        where: the annotation file, for error messages.
        scorer: the scoring backend; the numbers do not depend on it.
        max_dets: numbers of detections per image, at most 1000, at which AP is computed, too, see `ap_at`; LVIS's rules
            have one number and ignore them.

    Raises:
        DatasetError: detections of images or categories that the annotations do not have, an object without a usable
            outline, or a mask that differs in size from its image.
    """
    _check_known(detections.image_ids, "image_id", ground_truth.image_ids, where)
    _check_known(detections.category_ids, "category_id", np.array(ground_truth.category_ids, np.int64), where)
    evaluated = ground_truth.image_ids if image_ids is None else np.array(sorted(set(image_ids)), np.int64)
    images = np.sort(ground_truth.image_ids[np.isin(ground_truth.image_ids, evaluated)])
    rows = np.flatnonzero(np.isin(ground_truth.image_ids[ground_truth.image_rows], images))
    detections = detections.of_images(images.tolist())
    limits = [LVIS_MAX_DETS] if ground_truth.is_lvis else sorted({*COCO_MAX_DETS, *max_dets})
    named = () if ground_truth.is_lvis else max_dets
    tables = compute_tables(scorer, scoring_inputs(ground_truth, images, rows, detections, limits))
    scores = Scores(
        _summarize(ground_truth, tables, limits, named),
        _per_class(ground_truth, rows, tables, limits),
        len(images),
        len(rows),
        np.ascontiguousarray(tables.precision[[0, 5], :, :, 0, -1]),
    )
    if ground_truth.outlines is None or (detections.masks is None and len(detections)):
        return scores
    check_outlines(ground_truth, where)
    _check_mask_sizes(ground_truth, detections, where)
    outlines = parsed_outlines(ground_truth, rows, where)
    tables = compute_tables(scorer, scoring_inputs(ground_truth, images, rows, detections, limits, outlines))
    return _with_masks(scores, ground_truth, tables, limits, named)


def check_outlines(ground_truth: Annotations, where: str) -> None:
    """Checks that masks can be scored.

    Raises:
        DatasetError: objects without an outline.
    """
    outlines = ground_truth.outlines
    missing = len(ground_truth.labels) - (0 if outlines is None else int(outlines.present.sum()))
    if missing:
        raise DatasetError(
            f"{where}: {missing} of {len(ground_truth.labels)} objects have no outline (segmentation), and mask AP "
            "needs all of them. Use annotations with masks; `codetr eval --boxes-only` scores boxes alone"
        )


def _check_known(ids: NDArray[np.int64], key: str, known: NDArray[np.int64], where: str) -> None:
    unknown = np.setdiff1d(ids, known)
    if len(unknown):
        raise DatasetError(
            f"the detections contain {len(unknown)} values of {key} that are not in {where}: "
            f"{listed(unknown.tolist(), 5)}. Score them against the annotations they were made for"
        )


def _check_mask_sizes(ground_truth: Annotations, detections: DetectionTable, where: str) -> None:
    sizes = dict(zip(ground_truth.image_ids.tolist(), ground_truth.sizes.tolist(), strict=True))
    for image_id, mask in zip(detections.image_ids.tolist(), detections.masks or [], strict=True):
        if list(mask["size"]) != sizes[image_id]:
            raise DatasetError(
                f"a mask detected in image {image_id} is {mask['size'][0]}x{mask['size'][1]} pixels, but according to "
                f"{where} the image is {sizes[image_id][0]}x{sizes[image_id][1]}: masks must have their image's size"
            )


def parsed_outlines(ground_truth: Annotations, rows: NDArray[np.int64], where: str) -> list[Any]:
    """The outlines of some objects; the backends crash on broken ones or read them as other shapes."""
    assert ground_truth.outlines is not None
    outlines = []
    for row in rows.tolist():
        height, width = ground_truth.sizes[ground_truth.image_rows[row]].tolist()
        try:
            outline = ground_truth.outlines.parse(row)
            check_outline(outline, (height, width))
        except OutlineError as error:
            raise DatasetError(f"{where}: annotations[{ground_truth.outlines.entries[row]}] has {error}") from error
        if isinstance(outline, dict):
            outline = {"size": [height, width], "counts": outline["counts"]}
        elif len(outline) > MERGED_AT_ONCE:  # the backends merge one after the other
            code = merged_polygons(outline, (height, width))
            outline = {"size": [height, width], "counts": code["counts"].decode("ascii")}
        outlines.append(outline)
    return outlines


def scoring_inputs(
    ground_truth: Annotations,
    images: NDArray[np.int64],
    rows: NDArray[np.int64],
    detections: DetectionTable,
    limits: Sequence[int],
    outlines: list[Any] | None = None,
) -> ScoringInputs:
    """What a backend scores: masks if outlines are given, else boxes.

    Args:
        ground_truth: the annotations.
        images: ascending ids of the scored images.
        rows: of their objects in the annotations.
        detections: of these images.
        limits: detections per image that are scored, see `ScoringInputs.max_dets`.
        outlines: of the objects `rows`.
    """
    ranking = detections.scores if outlines is None else detections.ranking_of_masks()
    if ground_truth.is_lvis:
        best = _best_of_each_image(detections.image_ids, ranking, LVIS_MAX_DETS)
        detections, ranking = detections.select(best), ranking[best]
    masks = None if outlines is None else detections.masks or []
    sizes = dict(zip(ground_truth.image_ids.tolist(), ground_truth.sizes.tolist(), strict=True))
    return ScoringInputs(
        images=[(image_id, *sizes[image_id]) for image_id in images.tolist()],
        category_ids=ground_truth.category_ids,
        objects=_annotated_instances(ground_truth, rows, outlines),
        detections=Instances(
            image_ids=detections.image_ids,
            category_ids=detections.category_ids,
            boxes_xywh=detections.boxes_xywh,
            area=detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3] if masks is None else mask_areas(masks),
            iscrowd=np.zeros(len(detections), np.int64),
            scores=ranking,
            segmentations=masks,
        ),
        iou_type="bbox" if outlines is None else "segm",
        max_dets=limits,
        federation=_federation(ground_truth),
    )


def _annotated_instances(ground_truth: Annotations, rows: NDArray[np.int64], outlines: list[Any] | None) -> Instances:
    crowd = ground_truth.iscrowd[rows]
    return Instances(
        image_ids=ground_truth.image_ids[ground_truth.image_rows[rows]],
        category_ids=np.array(ground_truth.category_ids, np.int64)[ground_truth.labels[rows]],
        boxes_xywh=ground_truth.boxes_xywh[rows],
        area=ground_truth.area[rows],
        iscrowd=np.zeros_like(crowd) if ground_truth.is_lvis else crowd,  # LVIS has no crowds
        segmentations=outlines,
    )


def _federation(ground_truth: Annotations) -> Federation | None:
    """LVIS's lists; None for other annotations."""
    if not ground_truth.is_lvis:
        return None
    ids = ground_truth.image_ids.tolist()
    return Federation(
        negative=dict(zip(ids, ground_truth.neg_category_ids, strict=True)),
        not_exhaustive=dict(zip(ids, ground_truth.not_exhaustive_category_ids, strict=True)),
        frequencies=ground_truth.frequencies,
    )


def _best_of_each_image(image_ids: NDArray[np.int64], scores: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Ascending rows of the best detections of each image; of equal scores, earlier rows rank first."""
    order = np.lexsort((np.arange(len(scores)), -scores, image_ids))
    _, starts, counts = np.unique(image_ids[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    return np.sort(order[rank < limit])


def _mean(table: NDArray[np.float64]) -> float:
    """Mean over the entries that exist; -1 when none does, as pycocotools has it.

    Rounded to 12 digits: pycocotools' precision of a perfect detector is 1 - 2e-16.
    """
    known = table[table > -1]
    return round(float(known.mean()), 12) if known.size else -1.0


def _ap_limit(ground_truth: Annotations, limits: Sequence[int]) -> int:
    """Index of the limit on detections that AP over all IoUs is computed at."""
    return 0 if ground_truth.is_lvis else limits.index(100)


def _summarize(
    ground_truth: Annotations, tables: PrecisionRecall, limits: Sequence[int], named: Sequence[int]
) -> dict[str, float]:
    """The named metrics of the tables of some limits, with the AP at some of these."""
    precision, recall = tables.precision, tables.recall
    values = {
        "AP": _mean(precision[:, :, :, 0, _ap_limit(ground_truth, limits)]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
    }
    values |= {f"AR{limit}": _mean(recall[:, :, 0, index]) for index, limit in enumerate(limits)}
    for area, size in enumerate("sml", start=1):
        values |= {f"AP{size}": _mean(precision[:, :, :, area, -1]), f"AR{size}": _mean(recall[:, :, area, -1])}
    if not ground_truth.is_lvis:
        at = {ap_at(limit): _mean(precision[:, :, :, 0, limits.index(limit)]) for limit in named}
        return {**{name: values[name] for name in METRICS}, **at}
    groups = np.array(ground_truth.frequencies)
    values |= {f"AP{group}": _mean(precision[:, :, groups == group, 0, -1]) for group in FREQUENCIES}
    return {name: values[name] for name in LVIS_METRICS}


def _class_ap(ground_truth: Annotations, tables: PrecisionRecall, limits: Sequence[int]) -> list[tuple[float, float]]:
    """AP and AP50 of each class."""
    limit = _ap_limit(ground_truth, limits)
    return [
        (_mean(tables.precision[:, :, index, 0, limit]), _mean(tables.precision[0, :, index, 0, limit]))
        for index in range(len(ground_truth.category_ids))
    ]


def _per_class(
    ground_truth: Annotations, rows: NDArray[np.int64], tables: PrecisionRecall, limits: Sequence[int]
) -> list[ClassScore]:
    single = ground_truth.labels[rows][ground_truth.iscrowd[rows] == 0]
    counts = np.bincount(single, minlength=len(ground_truth.category_ids)).tolist()
    columns = (ground_truth.class_names, ground_truth.category_ids, counts, _class_ap(ground_truth, tables, limits))
    frequencies = ground_truth.frequencies if ground_truth.is_lvis else [None] * len(counts)
    return [
        ClassScore(name, category_id, count, ap, ap50, frequency=frequency)
        for name, category_id, count, (ap, ap50), frequency in zip(*columns, frequencies, strict=True)
    ]


def _with_masks(
    scores: Scores,
    ground_truth: Annotations,
    tables: PrecisionRecall,
    limits: Sequence[int],
    named: Sequence[int],
) -> Scores:
    summary = _summarize(ground_truth, tables, limits, named)
    metrics = {f"{MASK_PREFIX}{name}": value for name, value in summary.items()}
    per_class = [
        replace(score, mask_AP=ap, mask_AP50=ap50)
        for score, (ap, ap50) in zip(scores.per_class, _class_ap(ground_truth, tables, limits), strict=True)
    ]
    return replace(scores, metrics={**scores.metrics, **metrics}, per_class=per_class)
