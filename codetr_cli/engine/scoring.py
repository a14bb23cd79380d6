"""COCO box metrics of a list of detections: pycocotools' matching with the published reading of its tables. No model.

Published convention (mmdet's CocoMetric, maxDets = (100, 300, 1000)): AP over IoU 0.50:0.95 counts 100 detections per
image, AP50, AP75 and the AP by object size count up to 1000. AR1 and AR10 are COCO's standard columns beside it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr_cli.data.annotations import Annotations
from codetr_cli.errors import DatasetError

PUBLISHED_MAX_DETS = (100, 300, 1000)
STANDARD_MAX_DETS = (1, 10)
CONVENTION = (
    "AP and per-class AP over IoU 0.50:0.95 at 100 detections per image; AP50, AP75 and AP and AR by size at 1000; "
    "AR at the number in its name"
)
"""What each column counts, for the line printed beside the numbers."""

METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "AR300", "AR1000", "ARs", "ARm", "ARl"),
)


@dataclass(frozen=True)
class ClassScore:
    """AP of one class: at 100 detections per image, and at IoU 0.50; -1 where the class has no object to find."""

    name: str
    category_id: int
    objects: int
    AP: float
    AP50: float


@dataclass(frozen=True)
class Scores:
    """Metrics in [0, 1] by name (`METRICS`), -1 where nothing could be found, and what they were counted over."""

    metrics: dict[str, float]
    per_class: list[ClassScore]
    images: int
    objects: int


# ---------------------------------------------------------------------------------------------------------- detections


def load_detections(path: Path) -> list[dict[str, Any]]:
    """Reads detections in COCO's result format.

    Returns:
        records with `image_id`, `category_id`, `bbox` (x, y, w, h in pixels) and `score`.

    Raises:
        DatasetError: missing, not JSON, or not a list of such records; names the first wrong one.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"cannot read detections {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON ({error}): is the file complete?") from error
    if not isinstance(records, list):
        raise DatasetError(f"{path} is not a list of COCO detections but a {type(records).__name__}")
    for index, record in enumerate(records):
        problem = _detection_problem(record)
        if problem:
            raise DatasetError(f"{path}: detection number {index} {problem}")
    return records


def _detection_problem(record: object) -> str | None:
    """Why a record is no COCO detection, or None."""
    if not isinstance(record, dict):
        return f"is a {type(record).__name__}, not a table"
    for key in ("image_id", "category_id"):
        if not isinstance(record.get(key), int):
            return f"has no whole number {key!r} (got {record.get(key)!r:.80})"
    box: Any = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)) or min(box[2:]) < 0:
        return f"has no usable bbox of four numbers x, y, width, height (got {box!r:.80})"
    return None if _is_finite(record.get("score")) else f"has no finite score (got {record.get('score')!r:.80})"


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def coco_records(
    boxes_xyxy: NDArray[Any],
    scores: NDArray[Any],
    category_ids: Iterable[int],
    image_id: int,
) -> list[dict[str, Any]]:
    """Detections of one image in COCO's result format.

    Boxes are rounded to 1e-4 pixel and scores to 1e-8: far below what any metric can see, and half the file. What is
    scored is what is written, so that a file scores exactly like the run that wrote it.

    Args:
        boxes_xyxy: (N, 4) in pixels of the original image.
        scores: (N,) in [0, 1].
        category_ids: N original category ids.
        image_id: the image's id in the annotations.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(4)
    rounded = np.asarray(scores, dtype=np.float64).round(8)
    return [
        {"image_id": image_id, "category_id": int(category_id), "bbox": box, "score": score}
        for box, score, category_id in zip(xywh.tolist(), rounded.tolist(), category_ids, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------- scoring


def score_detections(
    truth: Annotations, detections: list[dict[str, Any]], image_ids: Iterable[int] | None = None, *, where: str
) -> Scores:
    """COCO box metrics with the published conventions.

    Args:
        truth: the annotations; every object counts, also those that training leaves out.
        detections: records in COCO's result format with original category ids.
        image_ids: the images that were looked at; None: all images of the annotations.
        where: the annotation file, for messages.

    Raises:
        DatasetError: detections name images or categories that the annotations do not have.
    """
    known_images = truth.image_ids.tolist()
    _check_known(detections, "image_id", known_images, where)
    _check_known(detections, "category_id", truth.category_ids, where)
    images = sorted(set(known_images if image_ids is None else image_ids))
    objects, found = _truth_records(truth, set(images)), _found_records(detections, set(images))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        published, standard = _accumulate(_coco(truth, images, objects), _coco(truth, images, found), images)
    per_class = _per_class(truth, objects, published["precision"])
    return Scores(_summary(published, standard), per_class, len(images), len(objects))


def _check_known(detections: list[dict[str, Any]], key: str, known: list[int], where: str) -> None:
    unknown = sorted({record[key] for record in detections} - set(known))
    if unknown:
        raise DatasetError(
            f"the detections name {len(unknown)} values of {key} that {where} does not have (the first: "
            f"{', '.join(str(value) for value in unknown[:5])}): score them against the annotations they were made for"
        )


def _truth_records(truth: Annotations, image_ids: set[int]) -> list[dict[str, Any]]:
    """The objects of some images for pycocotools.

    They get ids of their own from 1 on: pycocotools takes a match with id 0 for no match, and loses annotations that
    share an id.
    """
    category_ids = np.array(truth.category_ids, np.int64)
    columns = (
        truth.image_ids[truth.image_rows].tolist(),
        category_ids[truth.labels].tolist(),
        truth.boxes_xywh.tolist(),
        truth.area.tolist(),
        truth.iscrowd.tolist(),
    )
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = (row for row in zip(*columns, strict=True) if row[0] in image_ids)
    return [{"id": number, **dict(zip(names, row, strict=True))} for number, row in enumerate(rows, start=1)]


def _found_records(detections: list[dict[str, Any]], image_ids: set[int]) -> list[dict[str, Any]]:
    """The detections on some images for pycocotools, which wants ids, areas and a crowd flag."""
    chosen = (record for record in detections if record["image_id"] in image_ids)
    return [
        {
            "id": number,
            "image_id": record["image_id"],
            "category_id": record["category_id"],
            "bbox": record["bbox"],
            "score": record["score"],
            "area": record["bbox"][2] * record["bbox"][3],
            "iscrowd": 0,
        }
        for number, record in enumerate(chosen, start=1)
    ]


def _coco(truth: Annotations, image_ids: list[int], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in image_ids],
        "categories": [{"id": category_id} for category_id in truth.category_ids],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _accumulate(truth: COCO, found: COCO, image_ids: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The precision and recall tables of pycocotools: at the published detection limits, and at COCO's 1 and 10."""
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.params.imgIds = image_ids
    evaluation.params.maxDets = [*STANDARD_MAX_DETS, *PUBLISHED_MAX_DETS]
    evaluation.evaluate()
    published = copy.deepcopy(evaluation.params)
    published.maxDets = list(PUBLISHED_MAX_DETS)
    evaluation.accumulate(published)
    tables = evaluation.eval
    standard = copy.deepcopy(evaluation.params)
    standard.maxDets = list(STANDARD_MAX_DETS)
    standard.areaRng, standard.areaRngLbl = standard.areaRng[:1], standard.areaRngLbl[:1]
    evaluation.accumulate(standard)
    return tables, evaluation.eval


def _mean(table: NDArray[np.float64]) -> float:
    """Mean over the entries that exist; -1 when none does, as pycocotools has it.

    Rounded to 12 digits: pycocotools' precision of a perfect detector is 1 - 2e-16.
    """
    known = table[table > -1]
    return round(float(known.mean()), 12) if known.size else -1.0


def _summary(published: dict[str, Any], standard: dict[str, Any]) -> dict[str, float]:
    """The named metrics from tables: precision (IoU, recall, class, area, limit), recall (IoU, class, area, limit)."""
    precision, recall = published["precision"], published["recall"]
    values = {
        "AP": _mean(precision[:, :, :, 0, 0]),
        "AP50": _mean(precision[0, :, :, 0, 2]),
        "AP75": _mean(precision[5, :, :, 0, 2]),
    }
    values |= {f"AP{size}": _mean(precision[:, :, :, area, 2]) for area, size in enumerate("sml", start=1)}
    values |= {f"AR{limit}": _mean(standard["recall"][:, :, 0, m]) for m, limit in enumerate(STANDARD_MAX_DETS)}
    values |= {f"AR{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate(PUBLISHED_MAX_DETS)}
    values |= {f"AR{size}": _mean(recall[:, :, area, 2]) for area, size in enumerate("sml", start=1)}
    return {name: values[name] for name in METRICS}


def _per_class(truth: Annotations, objects: list[dict[str, Any]], precision: NDArray[np.float64]) -> list[ClassScore]:
    counts = Counter(annotation["category_id"] for annotation in objects if not annotation["iscrowd"])
    return [
        ClassScore(
            name=name,
            category_id=category_id,
            objects=counts[category_id],
            AP=_mean(precision[:, :, index, 0, 0]),
            AP50=_mean(precision[0, :, index, 0, 2]),
        )
        for index, (category_id, name) in enumerate(zip(truth.category_ids, truth.class_names, strict=True))
    ]
