"""Checks an annotation file of COCO's kind: that it is whole, follows the schema, and that its content makes sense."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from codetr_cli.data.checks.boxes import check_boxes
from codetr_cli.data.checks.findings import Findings
from codetr_cli.data.checks.schema import (
    AnnotationSummary,
    UnusableFileError,
    check_categories,
    check_images,
    read_tables,
    valid_annotations,
)


def check_annotations(path: Path, findings: Findings, where: str, *, training: bool) -> AnnotationSummary | None:
    """Checks one annotation file, named `where` in the findings; for training, every class needs an annotation.

    Returns:
        its counts, or None when it cannot be parsed at all.
    """
    try:
        images, annotations, categories = read_tables(path)
    except UnusableFileError as error:
        findings.add(error.kind, where, error.detail)
        return None
    for kind, items in (("no_images", images), ("no_categories", categories)):
        if not items:
            findings.add(kind, where)
    summary = AnnotationSummary(annotations=len(annotations))
    sizes = check_images(images, summary, findings, where)
    check_categories(categories, summary, findings, where)
    check_boxes(valid_annotations(annotations, findings, where), sizes, summary, findings, where)
    if training:
        _check_trainable(summary, findings, where)
    return summary


def check_category_ids(summary: AnnotationSummary, findings: Findings, where: str) -> None:
    """Reports gaps between the category ids and a category 0, which break other tools."""
    ids = sorted(summary.category_names)
    for before, after in pairwise(ids):
        if after - before > 1:
            span = f"{before + 1}" if after - before == 2 else f"{before + 1}-{after - 1}"
            findings.add("category_id_holes", where, span)
    if 0 in summary.category_names:
        findings.add("category_id_zero", where, summary.category_names[0])


def compare_categories(train: AnnotationSummary, val: AnnotationSummary, findings: Findings, where: str) -> None:
    """Reports classes that differ between two files."""
    for category_id in sorted(train.category_names.keys() | val.category_names.keys()):
        in_train, in_val = train.category_names.get(category_id), val.category_names.get(category_id)
        if in_train != in_val:
            quoted = (
                f"{in_train!r} in train" if in_train is not None else "absent in train",
                f"{in_val!r} in val" if in_val is not None else "absent in val",
            )
            findings.add("categories_differ", where, f"id {category_id} is {quoted[0]}, {quoted[1]}")


def _check_trainable(summary: AnnotationSummary, findings: Findings, where: str) -> None:
    for category_id, count in summary.per_category.items():
        if not count:
            findings.add("unused_category", where, f"{summary.category_names[category_id]} (id {category_id})")
    if summary.images and not summary.usable:
        findings.add("no_objects", where)
