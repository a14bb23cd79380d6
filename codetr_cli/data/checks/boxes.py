"""Checks ids, boxes, crowds and masks of the annotations of one file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.data.checks.findings import EDGE_TOLERANCE_PX, SHOWN, Findings
from codetr_cli.data.checks.schema import DRAWABLE, AnnotationSummary
from codetr_cli.data.outlines import OutlineError, run_lengths
from codetr_cli.data.targets import Size

MAX_OBJECTS = 900
"""Queries of the presets."""


def check_boxes(
    records: list[dict[str, Any]], sizes: dict[int, Size], summary: AnnotationSummary, findings: Findings, where: str
) -> None:
    """Checks annotations that follow the schema, and adds the counts to the summary.

    `sizes` are the (height, width) of the images by id.
    """
    _check_annotation_ids(records, findings, where)
    _check_references(records, sizes, summary, findings, where)
    usable = _usable_boxes(records, sizes, findings, where)
    _check_optional_keys(records, usable, summary, findings, where)
    _check_outlines(records, sizes, summary, findings, where)
    summary.usable = int(usable.sum())


def _check_annotation_ids(records: list[dict[str, Any]], findings: Findings, where: str) -> None:
    ids = Counter(str(record.get("id")) for record in records)
    if len(ids) < len(records):
        for annotation_id, count in ids.items():
            if count > 1 and annotation_id != "None":
                findings.add("duplicate_annotation_id", where, annotation_id)
    if ids["None"]:
        findings.add("no_annotation_id", where, count=ids["None"])
    if ids["0"]:
        findings.add("zero_annotation_id", where)


def _check_references(
    records: list[dict[str, Any]],
    sizes: dict[int, Size],
    summary: AnnotationSummary,
    findings: Findings,
    where: str,
) -> None:
    per_image = Counter(record["image_id"] for record in records)
    per_category = Counter(record["category_id"] for record in records)
    unknown_ids = (per_image.keys() - sizes.keys(), per_category.keys() - summary.category_names.keys())
    for kind, key, unknown in zip(
        ("unknown_image_id", "unknown_category_id"), ("image_id", "category_id"), unknown_ids, strict=True
    ):
        if unknown:
            for record in records:
                if record[key] in unknown:
                    findings.add(kind, where, f"annotation {record.get('id')} ({key} {record[key]})")
    summary.per_category = {category_id: per_category[category_id] for category_id in summary.category_names}
    summary.without_objects = len(sizes.keys() - per_image.keys())
    summary.max_objects = max(per_image.values(), default=0)
    if summary.without_objects:
        findings.add("no_objects_image", where, count=summary.without_objects)
    for image_id, count in per_image.items():
        if count > MAX_OBJECTS:
            findings.add("many_objects", where, f"image {image_id}: {count:,}")


def _usable_boxes(
    records: list[dict[str, Any]], sizes: dict[int, Size], findings: Findings, where: str
) -> NDArray[np.bool_]:
    """Compares every box with its image; returns which of them (N,) can be trained on."""
    if not records:
        return np.zeros(0, bool)
    boxes = _as_floats(record["bbox"] for record in records)  # (N, 4) x, y, width, height in pixels
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(boxes).all(axis=1))
    boxes_safe = np.where(finite[:, None], boxes, 0.0)
    known: NDArray[np.bool_] = np.array([record["image_id"] in sizes for record in records])
    image = _as_floats(sizes.get(record["image_id"], (1, 1)) for record in records)  # (N, 2) height, width
    left, top, width, height = boxes_safe.T
    right, bottom = left + width, top + height
    image_height, image_width = image.T

    def report(kind: str, mask: NDArray[np.bool_]) -> None:
        for index in np.flatnonzero(mask)[:SHOWN]:
            record = records[index]
            name = f"annotation {record.get('id')}: {record['bbox']}"
            if kind.startswith(("box_outside", "box_beyond", "box_corners")):
                name += f" in {int(image_width[index])} x {int(image_height[index])}"
            findings.add(kind, where, name)
        rest = int(mask.sum()) - SHOWN
        if rest > 0:
            findings.add(kind, where, count=rest)

    report("box_not_finite", ~finite)
    negative = finite & ((width < 0) | (height < 0))
    report("box_negative", negative)
    sound = finite & ~negative & known
    if sound.any() and (boxes_safe[sound] <= 1.0).all() and (image[sound] > 2).all():
        findings.add("box_normalised", where, f"e.g. annotation {records[0].get('id')}: {records[0]['bbox']}")
        return sound & False
    thin: NDArray[np.bool_] = sound & ((width < 1) | (height < 1))
    report("box_degenerate", thin)
    outside = sound & ~thin & ((right <= 0) | (bottom <= 0) | (left >= image_width) | (top >= image_height))
    report("box_outside", outside)
    over = np.maximum.reduce([-left, -top, right - image_width, bottom - image_height])
    beyond = sound & ~thin & ~outside & (over > EDGE_TOLERANCE_PX)
    fits_as_corners = (width <= image_width) & (height <= image_height) & (width > left) & (height > top)
    far = beyond & (over > 0.05 * np.maximum(image_height, image_width))
    if far.any() and far.sum() >= 0.2 * sound.sum() and fits_as_corners[sound].mean() > 0.95:
        report("box_corners", far)
    else:
        report("box_beyond_edge", beyond)
    return np.asarray(sound & ~thin & ~outside)


def _as_floats(rows: Iterable[Iterable[float]]) -> NDArray[np.float64]:
    """A float64 matrix; integers beyond its range become infinite."""
    rows = list(rows)
    try:
        return np.array(rows, dtype=np.float64)
    except OverflowError:
        return np.array([[float(v) if abs(v) < 1e300 or v != v else np.inf for v in row] for row in rows])


def _check_optional_keys(
    records: list[dict[str, Any]],
    usable: NDArray[np.bool_],
    summary: AnnotationSummary,
    findings: Findings,
    where: str,
) -> None:
    """Checks the optional keys (iscrowd, area, ignore) and clears `usable` where they exclude an annotation."""
    for index, record in enumerate(records):
        area = record.get("area", 1)
        if not isinstance(area, int | float) or not math.isfinite(area):
            findings.add("bad_area", where, f"annotation {record.get('id')} (area {area!r})")
        elif area <= 0 < min(record["bbox"][2:]):
            findings.add("area_not_positive", where, f"annotation {record.get('id')} (area {area})")
            usable[index] = False
        if record.get("ignore"):
            findings.add("ignored", where)
            usable[index] = False
        crowd = record.get("iscrowd", 0)
        if crowd == 0:
            continue
        if crowd != 1:
            findings.add("crowd_value", where, f"annotation {record.get('id')} (iscrowd {crowd!r})")
            continue
        summary.crowd += 1
        usable[index] = False
        mask = record.get("segmentation")
        if not (isinstance(mask, dict) and "counts" in mask):
            findings.add("crowd_without_rle", where, f"annotation {record.get('id')}")


def _check_outlines(
    records: list[dict[str, Any]],
    sizes: dict[int, Size],
    summary: AnnotationSummary,
    findings: Findings,
    where: str,
) -> None:
    """Counts the masks and reports those that cannot be drawn."""
    missing = 0
    for record in records:
        outline, size = record.get("segmentation"), sizes.get(record["image_id"])
        if isinstance(outline, dict) and outline and size is not None:
            try:
                outline = len(run_lengths({"counts": None, **outline}, size)) > 0
            except OutlineError as error:
                outline = str(error)
        if not outline:
            missing += not record.get("iscrowd")
        elif outline is DRAWABLE:
            summary.outlines += 1
        elif size is not None:
            findings.add("broken_outline", where, f"annotation {record.get('id')} has {str(outline)[:100]}")
    if missing and summary.outlines:
        findings.add("some_outlines_missing", where, count=missing)
