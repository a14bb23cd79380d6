"""Checks ids, boxes, crowds and masks of the annotations of one file, for what the reader of training accepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.annotation_columns import CategoryColumns, ImageColumns, ObjectColumns
from codetr_cli.annotations.annotation_json import AnnotationTables
from codetr_cli.annotations.findings import EDGE_TOLERANCE_PX, SHOWN, Findings
from codetr_cli.annotations.outlines import check_outline, parse_outline
from codetr_cli.annotations.run_length_codes import OutlineError
from codetr_cli.data.checks.duplicates import repeated_rows
from codetr_cli.data.checks.schema import AnnotationSummary, count_images_without_objects
from codetr_cli.errors import shown

MAX_OBJECTS = 900
"""Queries of the presets."""


def check_boxes(
    tables: AnnotationTables,
    categories: CategoryColumns,
    images: ImageColumns,
    objects: ObjectColumns,
    summary: AnnotationSummary,
    findings: Findings,
    where: str,
) -> None:
    """Checks the annotations that have ids and a box, and adds the counts to the summary.

    One that is not trained on is reported by the first reason of: its image is not listed, crowd, ignored, box thinner
    than a pixel, box outside, area not positive.
    """
    report = _Report(tables.annotations, objects, findings, where)
    repeated = _check_duplicates(objects, report)
    _check_annotation_ids(report, repeated)
    _check_references(categories, images, objects, summary, report)
    if len(images.ids) and not images.unusable:
        report.excluded |= ~objects.is_listed
    _check_crowds(tables, objects, summary, report)
    _compare_with_images(images, objects, report)
    report.add_total()
    _check_outlines(tables, images, objects, summary, report)


class _Report:
    """Adds findings on objects, the first few of each kind with the annotation's id."""

    def __init__(self, annotations: list[Any], objects: ObjectColumns, findings: Findings, where: str) -> None:
        self.annotations, self.entries = annotations, objects.entries
        self.findings, self.where = findings, where
        self.excluded = np.zeros(len(objects.entries), bool)
        self.reasons: dict[str, int] = {}

    def record(self, row: int) -> dict[str, Any]:
        """The entry of an object."""
        found: dict[str, Any] = self.annotations[self.entries[row]]
        return found

    def name(self, row: int) -> str:
        """An object in messages."""
        return f"annotation {shown(self.record(row).get('id'))}"

    def add(self, kind: str, rows: NDArray[Any], detail: Callable[[int], str] = lambda row: "") -> None:
        """Reports objects, bool (N,) or their rows; `detail` follows the name."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        for row in rows[:SHOWN].tolist():
            self.findings.add(kind, self.where, self.name(row) + detail(row))
        if len(rows) > SHOWN:
            self.findings.add(kind, self.where, count=len(rows) - SHOWN)

    def exclude(self, kind: str, rows: NDArray[np.bool_], detail: Callable[[int], str] = lambda row: "") -> None:
        """Reports objects (N,) that are not trained on for a reason, except those that have another one already."""
        rows = rows & ~self.excluded
        self.excluded |= rows
        if rows.any():
            self.reasons[kind] = int(rows.sum())
            self.add(kind, rows, detail)

    def add_total(self) -> None:
        """Reports how many objects are not trained on if there are several reasons."""
        if len(self.reasons) > 1:
            self.findings.add("excluded_objects", self.where, count=sum(self.reasons.values()))


def _check_duplicates(objects: ObjectColumns, report: _Report) -> NDArray[np.bool_]:
    """Reports annotations that repeat others; returns which (N,) do."""
    classes, boxes = objects.category_ids, objects.boxes_xywh
    repeated, first = repeated_rows(objects.image_ids, classes, boxes)
    report.add(
        "duplicate_box",
        np.flatnonzero(repeated),
        lambda row: f" of image {objects.image_ids[row]}: {shown(boxes[row].tolist())}, like {report.name(first[row])}",
    )
    alike, first_alike = repeated_rows(objects.image_ids, None, boxes)
    report.add(
        "box_of_two_classes",
        np.flatnonzero(alike & ~repeated),
        lambda row: (
            f" of image {objects.image_ids[row]}: category_id {classes[row]}, {classes[first_alike[row]]} in "
            f"{report.name(first_alike[row])}"
        ),
    )
    return repeated


def _check_annotation_ids(report: _Report, repeated: NDArray[np.bool_]) -> None:
    """Reports absent ids, 0, and those of two annotations that are not copies of each other."""
    rows = np.flatnonzero(~repeated).tolist() if repeated.any() else range(len(report.entries))
    entries = report.entries.tolist()
    # As text, values of any type can be counted; larger integers can be chosen so that all have the same hash.
    ids = Counter(
        value if type(value := report.annotations[entries[row]].get("id")) is int and abs(value) < 2**53
        else shown(value) for row in rows
    )  # fmt: skip
    if len(ids) < len(rows):
        for annotation_id, count in ids.items():
            if count > 1 and annotation_id != "None":
                report.findings.add("duplicate_annotation_id", report.where, str(annotation_id))
    if ids["None"]:
        report.findings.add("no_annotation_id", report.where, count=ids["None"])
    if ids[0]:
        report.findings.add("zero_annotation_id", report.where)


def _check_references(
    categories: CategoryColumns,
    images: ImageColumns,
    objects: ObjectColumns,
    summary: AnnotationSummary,
    report: _Report,
) -> None:
    unlisted = ~objects.is_listed
    if len(images.ids) and not images.unusable:  # else their problem is reported already
        report.add("unknown_image_id", unlisted, lambda row: f" (image_id {objects.image_ids[row]})")
    rows = objects.image_rows[objects.is_listed]
    known = np.zeros(len(objects.labels), bool)
    if len(categories.ids):
        known = categories.ids[objects.labels] == objects.category_ids
    counts = np.bincount(objects.labels[known], minlength=len(categories.ids)).tolist()
    for category_id, count in zip(categories.ids.tolist(), counts, strict=True):
        summary.per_category[category_id] = summary.per_category.get(category_id, 0) + count
    summary.without_objects = count_images_without_objects(images, rows)
    per_image = np.bincount(rows, minlength=len(images.ids))
    others = np.unique(objects.image_ids[unlisted], return_counts=True)[1]
    summary.max_objects = int(max(per_image.max(initial=0), others.max(initial=0)))
    if summary.without_objects and not unlisted.any():  # else a follow-up
        report.findings.add("no_objects_image", report.where, count=summary.without_objects)
    for row in np.flatnonzero(per_image > MAX_OBJECTS).tolist():
        report.findings.add("many_objects", report.where, f"image {images.ids[row]}: {per_image[row]:,}")


def _compare_with_images(images: ImageColumns, objects: ObjectColumns, report: _Report) -> None:
    """Compares every box with its image."""
    if not len(images.ids):
        return
    sizes = images.sizes[objects.image_rows].astype(np.float64)  # height, width
    sound = objects.is_sound & objects.is_listed & (sizes > 0).all(axis=1)
    boxes = np.where(sound[:, None], objects.boxes_xywh, 0.0)
    left, top, width, height = boxes.T
    right, bottom = left + width, top + height
    image_height, image_width = sizes.T

    def box(row: int) -> str:
        return f": {shown(report.record(row)['bbox'])}"

    def box_in_image(row: int) -> str:
        return f"{box(row)} in {int(image_width[row])} x {int(image_height[row])}"

    thin = sound & ((width < 1) | (height < 1))
    report.exclude("box_degenerate", thin, box)
    outside = sound & ~thin & ((right <= 0) | (bottom <= 0) | (left >= image_width) | (top >= image_height))
    report.exclude("box_outside", outside, box_in_image)
    over = np.maximum.reduce([-left, -top, right - image_width, bottom - image_height])
    beyond = sound & ~thin & ~outside & (over > EDGE_TOLERANCE_PX)
    fits_as_corners = (width <= image_width) & (height <= image_height) & (width > left) & (height > top)
    far = beyond & (over > 0.05 * np.maximum(image_height, image_width))
    if far.any() and far.sum() >= 0.2 * sound.sum() and fits_as_corners[sound].mean() > 0.95:
        report.add("box_corners", far, box_in_image)
    else:
        report.add("box_beyond_edge", beyond, box_in_image)
    empty = objects.is_sound & (objects.area <= 0) & (objects.boxes_xywh[:, 2:] > 0).all(axis=1)
    report.exclude("area_not_positive", empty, lambda row: f" (area {report.record(row)['area']})")


def _check_crowds(
    tables: AnnotationTables, objects: ObjectColumns, summary: AnnotationSummary, report: _Report
) -> None:
    flags = objects.iscrowd
    report.add("crowd_number", (flags != 0) & (flags != 1), lambda row: f" (iscrowd {report.record(row)['iscrowd']})")
    crowd = flags != 0
    summary.crowd = int(crowd.sum())
    report.exclude("crowd", crowd)
    report.exclude("ignored", objects.ignore != 0)
    assert tables.outlines is not None
    plain = [row for row in np.flatnonzero(crowd).tolist() if not tables.outlines.is_run_length_code(
        int(objects.entries[row]))]  # fmt: skip
    report.add("crowd_without_rle", np.array(plain, np.int64))


def _check_outlines(
    tables: AnnotationTables,
    images: ImageColumns,
    objects: ObjectColumns,
    summary: AnnotationSummary,
    report: _Report,
) -> None:
    """Counts the masks and reports those that cannot be drawn."""
    assert tables.outlines is not None
    if not len(images.ids):
        return
    text, spans = tables.outlines.text, tables.outlines.spans[objects.entries]
    missing = int(((spans[:, 1] <= spans[:, 0]) & (objects.iscrowd == 0)).sum())
    sizes = images.sizes.tolist()
    known = objects.is_listed & (images.sizes[objects.image_rows] > 0).all(axis=1)
    rows = np.flatnonzero(known & (spans[:, 1] > spans[:, 0]))
    image_of = objects.image_rows[rows].tolist()
    for row, image_row, (start, end) in zip(rows.tolist(), image_of, spans[rows].tolist(), strict=True):
        height, width = sizes[image_row]
        try:
            check_outline(parse_outline(text[start:end]), (height, width))
            summary.outlines += 1
        except OutlineError as error:
            report.findings.add("broken_outline", report.where, f"{report.name(row)} has {error}")
    if missing and summary.outlines:
        report.findings.add("some_outlines_missing", report.where, count=missing)
