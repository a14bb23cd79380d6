"""Precision and recall tables by an engine: hotcoco (Rust, seconds for COCO) or pycocotools (the oracle, minutes).

Both match detections to objects by COCO's rules, or by LVIS's federated ones (arXiv 1908.03195): detections of classes
that nobody looked for in an image are left out, and those of classes not annotated exhaustively are never wrong.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Engine = Literal["hotcoco", "pycocotools"]
IouType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Federation:
    """What LVIS says of images and classes beyond objects.

    Attributes:
        negative: classes (category ids) that are known to be absent, by image id.
        not_exhaustive: classes of which there may be more objects than are annotated, by image id.
        frequencies: "r", "c" or "f" (rare, common, frequent) of each class, in the order of the category ids.
    """

    negative: dict[int, list[int]]
    not_exhaustive: dict[int, list[int]]
    frequencies: list[str]


@dataclass(frozen=True, eq=False)
class Objects:
    """Annotated objects or detections as columns of N rows.

    Attributes:
        image_ids: (N,) int64.
        category_ids: (N,) int64.
        boxes_xywh: (N, 4) float64.
        area: (N,) float64 in square pixels, what the sizes of objects are told by.
        iscrowd: (N,) int64; all 0 for detections.
        scores: (N,) float64; None for annotated objects.
        outlines: polygons or run lengths of each row, where masks are compared.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    area: NDArray[np.float64]
    iscrowd: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None
    outlines: list[Any] | None = None


@dataclass(frozen=True)
class Question:
    """What is to be scored.

    Attributes:
        images: (id, height, width) of each image that counts, ascending by id.
        category_ids: ascending.
        objects: annotated on these images.
        found: detections on these images, in the order in which equal scores are ranked.
        iou_type: compare boxes or masks.
        max_dets: detections per image and class that count, ascending; one table each.
        federation: LVIS's lists; None: COCO's rules.
    """

    images: Sequence[tuple[int, int, int]]
    category_ids: Sequence[int]
    objects: Objects
    found: Objects
    iou_type: IouType
    max_dets: Sequence[int]
    federation: Federation | None = None

    def image_tables(self) -> list[dict[str, Any]]:
        """The images as an annotation file lists them."""
        tables: list[dict[str, Any]] = [{"id": i, "height": h, "width": w} for i, h, w in self.images]
        if self.federation is not None:
            for table in tables:
                table["neg_category_ids"] = self.federation.negative[table["id"]]
                table["not_exhaustive_category_ids"] = self.federation.not_exhaustive[table["id"]]
        return tables

    def category_tables(self) -> list[dict[str, Any]]:
        """The classes as an annotation file lists them."""
        tables: list[dict[str, Any]] = [{"id": i, "name": str(i)} for i in self.category_ids]
        if self.federation is not None:
            for table, frequency in zip(tables, self.federation.frequencies, strict=True):
                table["frequency"] = frequency
        return tables


@dataclass(frozen=True)
class Tables:
    """COCO's tables, -1 where a class has no object of a size.

    Attributes:
        precision: (10 IoUs, 101 recalls, classes, 4 sizes, limits) float64.
        recall: (10 IoUs, classes, 4 sizes, limits) float64.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def choose_engine(wanted: Engine | None = None) -> tuple[Engine, str | None]:
    """The engine to score with, and what a person should know of the choice.

    Args:
        wanted: None: hotcoco. Where it cannot be imported, pycocotools takes its place.
    """
    if wanted == "pycocotools":
        return wanted, None
    try:
        import hotcoco  # noqa: F401
    except ImportError as error:
        return "pycocotools", (
            f"hotcoco cannot be imported ({error}): scoring with pycocotools, which gives the same numbers in minutes "
            "instead of seconds. `pip install hotcoco` mends it"
        )
    return "hotcoco", None


def engine_version(engine: Engine) -> str:
    """The engine with its version, as a protocol names it."""
    return f"{engine} {importlib.metadata.version(engine)}"


def compute_tables(engine: Engine, question: Question) -> Tables:
    """Matches detections to objects and accumulates precision and recall."""
    return _hotcoco_tables(question) if engine == "hotcoco" else _pycocotools_tables(question)


# ------------------------------------------------------------------------------------------------------------- hotcoco


def _hotcoco_tables(question: Question) -> Tables:
    import hotcoco

    objects, found = question.objects, question.found
    assert found.scores is not None
    truth = hotcoco.COCO.from_arrays(
        question.image_tables(),
        question.category_tables(),
        objects.image_ids,
        objects.category_ids,
        objects.boxes_xywh,
        area=objects.area,
        iscrowd=objects.iscrowd,
        segmentation=objects.outlines,
    )
    columns = (found.image_ids, *found.boxes_xywh.T, found.scores, found.category_ids)
    detections = truth.load_res(np.stack(columns, axis=1).astype(np.float64), segmentation=found.outlines)
    if found.outlines is not None:  # hotcoco takes the area of the box
        detections.update_anns(ids=np.arange(1, len(found.area) + 1), area=found.area)
    federated = question.federation is not None
    evaluation = hotcoco.COCOeval(truth, detections, question.iou_type, lvis_style=federated)
    evaluation.params.max_dets = list(question.max_dets)
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval
    assert tables is not None
    return Tables(np.asarray(tables["precision"]), np.asarray(tables["recall"]))


# --------------------------------------------------------------------------------------------------------- pycocotools


def _pycocotools_tables(question: Question) -> Tables:
    objects, found = _rows(question.objects), _rows(question.found)
    if question.federation is not None:
        found = _looked_for(found, objects, question.federation)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        evaluation = COCOeval(_coco(question, objects), _coco(question, found), question.iou_type)
        evaluation.params.maxDets = list(question.max_dets)
        evaluation.evaluate()
        if question.federation is not None:
            _forgive_unmatched(evaluation.evalImgs, question.federation)
        evaluation.accumulate()
    return Tables(evaluation.eval["precision"], evaluation.eval["recall"])


def _rows(objects: Objects) -> list[dict[str, Any]]:
    """Objects as pycocotools takes them.

    They get ids of their own from 1 on: pycocotools takes a match with id 0 for no match, and loses annotations that
    share an id.
    """
    names = ["image_id", "category_id", "bbox", "area", "iscrowd"]
    columns = [
        column.tolist()
        for column in (objects.image_ids, objects.category_ids, objects.boxes_xywh, objects.area, objects.iscrowd)
    ]
    if objects.scores is not None:
        names.append("score")
        columns.append(objects.scores.tolist())
    if objects.outlines is not None:
        names.append("segmentation")
        columns.append(objects.outlines)
    rows = enumerate(zip(*columns, strict=True), start=1)
    return [{"id": number, **dict(zip(names, row, strict=True))} for number, row in rows]


def _coco(question: Question, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": question.image_tables(),
        "categories": question.category_tables(),
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _looked_for(
    found: list[dict[str, Any]], objects: list[dict[str, Any]], federation: Federation
) -> list[dict[str, Any]]:
    """The detections of classes that are annotated or known to be absent in their image."""
    checked = {(row["image_id"], row["category_id"]) for row in objects}
    checked |= {(image_id, category_id) for image_id, ids in federation.negative.items() for category_id in ids}
    return [row for row in found if (row["image_id"], row["category_id"]) in checked]


def _forgive_unmatched(pairs: Sequence[dict[str, Any] | None], federation: Federation) -> None:
    """Ignores the unmatched detections of classes that an image is not annotated with exhaustively."""
    for pair in pairs:
        if pair is not None and pair["category_id"] in federation.not_exhaustive[pair["image_id"]]:
            pair["dtIgnore"] = np.logical_or(pair["dtIgnore"], pair["dtMatches"] == 0)


def mask_areas(masks: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """(N,) number of pixels of each mask in run lengths."""
    return np.array([mask_utils.area(mask) for mask in masks], np.float64)  # a list of over 255 overflows in there
