"""Scoring backends: hotcoco (Rust, seconds for COCO) and pycocotools (the reference, minutes); results are identical.

Both match detections to objects by COCO's rules, or by LVIS's federated rules (arXiv 1908.03195): detections of classes
that an image was not annotated for are ignored, and unmatched detections of classes that are not annotated exhaustively
are not false positives.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval as PycocotoolsEval

from codetr_cli.errors import DatasetError, ResourceError, shown
from codetr_cli.runtime.memory import gib_text, main_memory_left

if TYPE_CHECKING:
    from hotcoco import COCOeval

logger = logging.getLogger(__name__)

Scorer = Literal["hotcoco", "pycocotools"]
IouType = Literal["bbox", "segm"]

MANY_DETECTIONS = 30_000
"""Scoring more than these takes pycocotools more than a few seconds."""

TABLE_BYTES = 10 * (101 + 1) * 4 * 8
"""Of the tables of a class for one limit: 10 IoUs, 101 recalls and their maximum, 4 sizes, float64."""
COPIES = {"hotcoco": 4, "pycocotools": 2}
"""Of the tables that exist at the same time: precision, scores and, in hotcoco, what Python gets."""


@dataclass(frozen=True)
class Federation:
    """LVIS's federated annotation lists.

    Attributes:
        negative: category ids that are verified absent, by image id.
        not_exhaustive: category ids of which only some objects are annotated, by image id.
        frequencies: "r", "c" or "f" (rare, common, frequent) of each class, in the order of the category ids.
    """

    negative: dict[int, list[int]]
    not_exhaustive: dict[int, list[int]]
    frequencies: list[str]


@dataclass(frozen=True, eq=False)
class Instances:
    """Annotated objects or detections as columns of N rows.

    Attributes:
        image_ids: (N,) int64.
        category_ids: (N,) int64.
        boxes_xywh: (N, 4) float64.
        area: (N,) float64 in square pixels; decides whether an object is small, medium or large.
        iscrowd: (N,) int64; all 0 for detections.
        scores: (N,) float64; None for annotated objects.
        segmentations: polygons or RLE of each row, where masks are compared.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    area: NDArray[np.float64]
    iscrowd: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None
    segmentations: list[Any] | None = None


@dataclass(frozen=True)
class ScoringInputs:
    """What a backend scores.

    Attributes:
        images: (id, height, width) of each scored image, ascending by id.
        category_ids: ascending.
        objects: annotated on these images.
        detections: on these images; of equal scores, earlier rows rank first.
        iou_type: compare boxes or masks.
        max_dets: detections per image and class that are scored, ascending; one table for each.
        federation: LVIS's lists; None: COCO's rules.
    """

    images: Sequence[tuple[int, int, int]]
    category_ids: Sequence[int]
    objects: Instances
    detections: Instances
    iou_type: IouType
    max_dets: Sequence[int]
    federation: Federation | None = None

    def image_entries(self) -> list[dict[str, Any]]:
        """The `images` list of an annotation file."""
        entries: list[dict[str, Any]] = [{"id": i, "height": h, "width": w} for i, h, w in self.images]
        if self.federation is not None:
            for entry in entries:
                entry["neg_category_ids"] = self.federation.negative[entry["id"]]
                entry["not_exhaustive_category_ids"] = self.federation.not_exhaustive[entry["id"]]
        return entries

    def category_entries(self) -> list[dict[str, Any]]:
        """The `categories` list of an annotation file."""
        entries: list[dict[str, Any]] = [{"id": i, "name": str(i)} for i in self.category_ids]
        if self.federation is not None:
            for entry, frequency in zip(entries, self.federation.frequencies, strict=True):
                entry["frequency"] = frequency
        return entries


@dataclass(frozen=True)
class PrecisionRecall:
    """COCO's tables, -1 where a class has no object of a size.

    Attributes:
        precision: (10 IoUs, 101 recalls, classes, 4 sizes, limits) float64.
        recall: (10 IoUs, classes, 4 sizes, limits) float64.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def choose_backend(requested: Scorer | None, detections: int) -> Scorer:
    """The scoring backend to use, by default hotcoco, or pycocotools where that cannot be imported.

    Logs this fallback, and that scoring many detections takes long.
    """
    scorer: Scorer = requested or "hotcoco"
    if scorer == "hotcoco":
        try:
            import hotcoco  # noqa: F401
        except ImportError as error:
            scorer = "pycocotools"
            logger.info(
                "hotcoco cannot be imported (%s): scoring with pycocotools, which gives the same numbers in minutes "
                "instead of seconds. Install it with `pip install hotcoco`",
                error,
            )
    if scorer == "pycocotools" and detections > MANY_DETECTIONS:
        logger.info("Scoring %s detections with pycocotools; this takes a while", f"{detections:,}")
    return scorer


def scorer_version(scorer: Scorer) -> str:
    """The backend with its version, for the protocol."""
    return f"{scorer} {importlib.metadata.version(scorer)}"


def compute_tables(scorer: Scorer, inputs: ScoringInputs) -> PrecisionRecall:
    """Matches detections to objects and accumulates precision and recall.

    Raises:
        ResourceError: there is too little memory.
        DatasetError: hotcoco cannot score them.
    """
    _check_memory(scorer, len(inputs.category_ids), len(inputs.max_dets))
    if scorer == "pycocotools":
        return _pycocotools_tables(_renumbered(inputs))
    try:
        return _hotcoco_tables(inputs)
    except BaseException as error:
        # A panic of Rust code, which derives from BaseException and whose class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise DatasetError(
            f"hotcoco cannot score these annotations and detections ({shown(str(error))}): check them with "
            "`codetr prepare`, or score them with --scorer pycocotools"
        ) from error


def _check_memory(scorer: Scorer, classes: int, limits: int) -> None:
    """Stops before the tables are made: hotcoco ends the process when memory is missing."""
    needed, left = COPIES[scorer] * TABLE_BYTES * classes * limits, main_memory_left()
    if left is not None and needed > left:
        raise ResourceError(
            f"scoring {classes:,} categories needs {gib_text(needed)} GiB of memory for its tables, and "
            f"{gib_text(left)} GiB are available: score fewer categories at once, or run it where more memory is free"
        )


def _renumbered(inputs: ScoringInputs) -> ScoringInputs:
    """The same with ids from 1, in the same order: hotcoco refuses negative ones."""
    images = np.array([image_id for image_id, _, _ in inputs.images], np.int64)
    categories = np.array(inputs.category_ids, np.int64)

    def instances(rows: Instances) -> Instances:
        return replace(
            rows,
            image_ids=np.searchsorted(images, rows.image_ids) + 1,
            category_ids=np.searchsorted(categories, rows.category_ids) + 1,
        )

    federation = inputs.federation
    if federation is not None:
        numbers = {category_id: number for number, category_id in enumerate(inputs.category_ids, 1)}
        negative, not_exhaustive = (
            {
                number: [numbers[category_id] for category_id in lists[image_id] if category_id in numbers]
                for number, image_id in enumerate(images.tolist(), 1)
            }
            for lists in (federation.negative, federation.not_exhaustive)
        )
        federation = replace(federation, negative=negative, not_exhaustive=not_exhaustive)
    return replace(
        inputs,
        images=[(number, height, width) for number, (_, height, width) in enumerate(inputs.images, 1)],
        category_ids=range(1, len(categories) + 1),
        objects=instances(inputs.objects),
        detections=instances(inputs.detections),
        federation=federation,
    )


def _hotcoco_tables(inputs: ScoringInputs) -> PrecisionRecall:
    evaluation = hotcoco_evaluation(inputs)
    evaluation.accumulate()
    tables = evaluation.eval
    assert tables is not None
    return PrecisionRecall(np.asarray(tables["precision"]), np.asarray(tables["recall"]))


def hotcoco_evaluation(inputs: ScoringInputs) -> COCOeval:
    """Detections that hotcoco has matched to objects; it computes more from them than tables.

    In hotcoco, images and classes are numbered from 1 in the order of `inputs`, objects and detections from 1 in the
    order of their rows.
    """
    import hotcoco

    areas = (inputs.objects.area, inputs.detections.area)
    inputs = _renumbered(inputs)
    objects, detections = inputs.objects, inputs.detections
    assert detections.scores is not None
    ground_truth = hotcoco.COCO.from_arrays(
        inputs.image_entries(),
        inputs.category_entries(),
        objects.image_ids,
        objects.category_ids,
        objects.boxes_xywh,
        area=objects.area,
        iscrowd=objects.iscrowd,
        segmentation=objects.segmentations,
    )
    columns = (detections.image_ids, *detections.boxes_xywh.T, detections.scores, detections.category_ids)
    rows = np.stack(columns, axis=1).astype(np.float64)
    results = ground_truth.load_res(rows, segmentation=detections.segmentations)
    if detections.segmentations is not None:  # hotcoco uses the area of the box
        for data, area in zip((ground_truth, results), areas, strict=True):
            data.update_anns(ids=np.arange(1, len(area) + 1), area=area)
    is_lvis = inputs.federation is not None
    evaluation = hotcoco.COCOeval(ground_truth, results, inputs.iou_type, lvis_style=is_lvis)
    evaluation.params.max_dets = list(inputs.max_dets)
    evaluation.evaluate()
    return evaluation


def _pycocotools_tables(inputs: ScoringInputs) -> PrecisionRecall:
    objects, detections = _records(inputs.objects), _records(inputs.detections)
    if inputs.federation is not None:
        detections = _in_annotated_classes(detections, objects, inputs.federation)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        evaluation = PycocotoolsEval(_coco(inputs, objects), _coco(inputs, detections), inputs.iou_type)
        evaluation.params.maxDets = list(inputs.max_dets)
        evaluation.evaluate()
        if inputs.federation is not None:
            _ignore_unmatched(evaluation.evalImgs, inputs.federation)
        evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"], evaluation.eval["recall"])


def _records(instances: Instances) -> list[dict[str, Any]]:
    """Instances as pycocotools takes them, with new ids from 1.

    pycocotools takes a match with id 0 for no match, and loses annotations that share an id.
    """
    columns = {
        "image_id": instances.image_ids.tolist(),
        "category_id": instances.category_ids.tolist(),
        "bbox": instances.boxes_xywh.tolist(),
        "area": instances.area.tolist(),
        "iscrowd": instances.iscrowd.tolist(),
    }
    if instances.scores is not None:
        columns["score"] = instances.scores.tolist()
    if instances.segmentations is not None:
        columns["segmentation"] = instances.segmentations
    rows = enumerate(zip(*columns.values(), strict=True), start=1)
    return [{"id": number, **dict(zip(columns, row, strict=True))} for number, row in rows]


def _coco(inputs: ScoringInputs, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": inputs.image_entries(),
        "categories": inputs.category_entries(),
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _in_annotated_classes(
    detections: list[dict[str, Any]], objects: list[dict[str, Any]], federation: Federation
) -> list[dict[str, Any]]:
    """The detections of classes that are annotated or verified absent in their image."""
    checked = {(record["image_id"], record["category_id"]) for record in objects}
    checked |= {(image_id, category_id) for image_id, ids in federation.negative.items() for category_id in ids}
    return [record for record in detections if (record["image_id"], record["category_id"]) in checked]


def _ignore_unmatched(matches: Sequence[dict[str, Any] | None], federation: Federation) -> None:
    """Ignores the unmatched detections of classes that are not annotated exhaustively in their image."""
    for match in matches:
        if match is not None and match["category_id"] in federation.not_exhaustive[match["image_id"]]:
            match["dtIgnore"] = np.logical_or(match["dtIgnore"], match["dtMatches"] == 0)


def mask_areas(masks: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """(N,) number of pixels of each RLE mask."""
    return np.array([mask_utils.area(mask) for mask in masks], np.float64)  # a list of over 255 overflows in there
