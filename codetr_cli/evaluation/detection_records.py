"""Turns the records of a file of detections into columns, matched to the annotations that they are scored against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from codetr_cli.annotations.annotation_json import ID, MAX_BOX, SCORE, as_floats, is_box, json_type
from codetr_cli.annotations.objects import Annotations
from codetr_cli.annotations.outlines import check_outline, merged_polygons, run_lengths
from codetr_cli.annotations.row_finders import NONE
from codetr_cli.annotations.run_length_codes import OutlineError, check_compressed
from codetr_cli.errors import DatasetError, shown
from codetr_cli.evaluation.detection_files import DetectionFile
from codetr_cli.evaluation.hints import hints, unknown_categories, unknown_images
from codetr_cli.evaluation.matching import Matched, match_categories, match_images
from codetr_cli.inference.detections import DetectionTable, Rle, is_rle

_BOX_TOLERANCE_PX = 0.02
"""Of the outline that is only the box: tools round boxes to hundredths of a pixel."""
_ROUNDING_PX = 1e-3
"""A side below zero by no more is zero: differences of two rounded numbers."""


@dataclass(frozen=True)
class MatchedDetections:
    """Detections with ids of the annotations.

    Attributes:
        table: of all records.
        notes: on how they were read, sentences without a full stop.
        hints: at what is probably wrong with them, see `hints`.
    """

    table: DetectionTable
    notes: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def has_masks(file: DetectionFile) -> bool:
    """Whether any record has an outline other than its box, as pycocotools' `loadRes` adds to all boxes."""
    return "segmentation" in file.keys and any(
        type(record) is dict and record.get("segmentation") and not _is_box_outline(record) for record in file.records
    )


def match_detections(
    file: DetectionFile, ground_truth: Annotations, where: str, *, with_masks: bool = False
) -> MatchedDetections:
    """The detections of a file as columns.

    Records have an image and a category, see `matching`, a score, and a box (x, y, width, height in pixels), a mask or
    both; a missing box is computed from the mask. `mask_score` is optional.

    Args:
        file: of the detections.
        ground_truth: what they are scored against.
        where: the annotation file, for messages.
        with_masks: read masks as well; all records must have one then.

    Raises:
        DatasetError: a record is no detection, or of an unknown image or category; names the first such record.
    """
    records = file.records
    if not set(map(type, records)) <= {dict}:
        index, record = next((index, record) for index, record in enumerate(records) if type(record) is not dict)
        raise DatasetError(f"{file.path}: detection number {index} is {json_type(record)}, not an object")
    try:
        images = match_images(file, ground_truth, where)
        categories = match_categories(file, ground_truth, where)
    except DatasetError as error:
        raise DatasetError(f"{file.path}: {error}") from error
    _check_known(file, "image_id", images, lambda values, rows: unknown_images(values, rows, ground_truth, where))
    _check_known(
        file, "category_id", categories, lambda values, rows: unknown_categories(values, rows, ground_truth, where)
    )
    sizes = ground_truth.sizes[images.rows] if len(records) else np.zeros((0, 2), np.int64)
    masks = _masks(records, sizes) if with_masks else None
    boxes = _boxes(records, masks, sizes)
    scores = SCORE.column([record.get("score") for record in records])
    ranking = (
        SCORE.column([record.get("mask_score", record.get("score")) for record in records]) if with_masks else scores
    )
    if boxes is None or scores is None or ranking is None or (with_masks and masks is None):
        problems = (
            _problem(record, tuple(sizes[i].tolist()), with_masks=with_masks) for i, record in enumerate(records)
        )
        index, problem = next((index, problem) for index, problem in enumerate(problems) if problem)
        raise DatasetError(f"{file.path}: detection number {index} {problem}")
    has_ranking = with_masks and "mask_score" in file.keys
    table = DetectionTable(
        ground_truth.image_ids[images.rows] if len(records) else np.zeros(0, np.int64),
        np.array(ground_truth.category_ids, np.int64)[categories.rows] if len(records) else np.zeros(0, np.int64),
        boxes,
        scores,
        masks,
        ranking if has_ranking else None,
    )
    notes = [f"{file.path} is read as {note}" for note in file.notes] + [
        f"{file.path}: {each.note}" for each in (images, categories) if each.note
    ]
    found = hints(table, ground_truth, images_by_name=images.by_name, classes_by_name=categories.by_name)
    return MatchedDetections(table, notes, [f"{file.path}: {hint}" for hint in found])


def _check_known(
    file: DetectionFile, key: str, matched: Matched, explain: Callable[[list[Any], list[int]], str]
) -> None:
    """Raises a DatasetError if any record has no image, or no category, of the annotations."""
    unknown = np.flatnonzero(matched.rows == NONE).tolist()
    if not unknown:
        return
    for row in unknown:
        value = file.records[row].get(key)
        if not ID.holds(value) and (type(value) is not str or not value):
            raise DatasetError(
                f"{file.path}: detection number {row} has no {key!r} that is {ID.words}, or a name (got {shown(value)})"
            )
    raise DatasetError(f"{file.path}: {explain([record.get(key) for record in file.records], unknown)}")


# ---------------------------------------------------------------------------------------------------- boxes and masks


def _boxes(
    records: Sequence[dict[str, Any]], masks: list[Rle] | None, sizes: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """The boxes (N, 4) xywh, a missing one computed from its mask; None if any record has no box."""
    boxes: list[Any] = [record.get("bbox") for record in records]
    for row in [index for index, box in enumerate(boxes) if box is None] if None in boxes else []:
        mask = masks[row] if masks is not None else _mask(records[row].get("segmentation"), tuple(sizes[row].tolist()))
        boxes[row] = None if mask is None else mask_utils.toBbox(mask).tolist()
    if not all(map(is_box, boxes)):
        return None
    array = as_floats(boxes, 4)
    if not (abs(array) <= MAX_BOX).all() or not (array[:, 2:] >= -_ROUNDING_PX).all():
        return None
    array[:, 2:] = array[:, 2:].clip(min=0)
    return array


def _masks(records: Sequence[dict[str, Any]], sizes: NDArray[np.int64]) -> list[Rle] | None:
    """The masks of the records; None if any has none, or one that cannot be used."""
    masks: list[Any] = [record.get("segmentation") for record in records]
    if not all(map(is_rle, masks)):
        masks = [
            mask if is_rle(mask) else _mask(mask, tuple(size)) for mask, size in zip(masks, sizes.tolist(), strict=True)
        ]
        if None in masks:
            return None
    plain = [{"size": mask["size"], "counts": mask["counts"]} for mask in masks]
    try:
        check_compressed(plain)  # the decoders trust the text, and that the runs have all pixels of the size
    except OutlineError:
        return None
    return plain


def _mask(outline: Any, size: tuple[int, int]) -> Rle | None:
    """The run-length code of an outline in an image of `size`, as text; None if it is broken."""
    try:
        check_outline(outline, tuple(outline["size"]) if is_rle(outline) else size)
        if isinstance(outline, list):
            code = merged_polygons(outline, size)
        elif is_rle(outline):
            return {"size": outline["size"], "counts": outline["counts"]}
        else:
            code = mask_utils.frPyObjects({"size": list(size), "counts": run_lengths(outline, size).tolist()}, *size)
    except OutlineError:
        return None
    return {"size": list(size), "counts": code["counts"].decode("ascii")}


def _is_box_outline(record: dict[str, Any]) -> bool:
    """Whether the outline of a record is the four corners of its box."""
    outline, box = record["segmentation"], record.get("bbox")
    if type(outline) is not list or len(outline) != 1 or not is_box(box):
        return False
    points = outline[0]
    if (
        type(points) is not list
        or len(points) not in (8, 10)
        or any(type(value) not in (int, float) for value in points)
    ):
        return False
    x, y, width, height = record["bbox"]
    corners = {(left, top) for left in (0, 1) for top in (0, 1)}
    for px, py in zip(points[::2], points[1::2], strict=True):
        columns = [side for side in (0, 1) if abs(px - x - side * width) <= _BOX_TOLERANCE_PX]
        rows = [side for side in (0, 1) if abs(py - y - side * height) <= _BOX_TOLERANCE_PX]
        if not columns or not rows:
            return False
        corners -= {(column, row) for column in columns for row in rows}
    return not corners


# ------------------------------------------------------------------------------------------------------------- errors


def _problem(record: dict[str, Any], size: tuple[int, int], *, with_masks: bool) -> str | None:
    """Why a record with an image and a category is not a COCO detection, or None."""
    mask: Any = record.get("segmentation")
    box: Any = record.get("bbox")
    if with_masks and not mask:
        return f"has no valid segmentation, which others have (got {shown(mask)}); --boxes-only scores boxes alone"
    if with_masks:
        try:
            check_outline(mask, tuple(mask["size"]) if is_rle(mask) else size)
        except OutlineError as error:
            return f"has {error}; --boxes-only scores boxes alone"
    is_valid = is_box(box) and all(-MAX_BOX <= value <= MAX_BOX for value in box) and min(box[2:]) >= -_ROUNDING_PX
    if not is_valid and (box is not None or not mask or _mask(mask, size) is None):
        return f"has no valid bbox of four numbers x, y, width, height (got {shown(box)})"
    if with_masks and "mask_score" in record and not SCORE.holds(record["mask_score"]):
        return f"has no finite mask_score (got {shown(record['mask_score'])})"
    if SCORE.holds(record.get("score")):
        return None
    what = ": is this a file of annotations?" if record.get("score") is None else ""
    return f"has no finite score (got {shown(record.get('score'))}){what}"
