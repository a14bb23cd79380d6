"""Checks an annotation file of COCO's kind: that it is whole, follows the schema, and that its content makes sense.

What stops training is found by the reader of training itself, see `annotation_columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from codetr_cli.annotations.annotation_columns import read_columns
from codetr_cli.annotations.annotation_json import read_tables
from codetr_cli.annotations.findings import Findings
from codetr_cli.annotations.json_text import UnusableFileError, without_collector
from codetr_cli.annotations.objects import Annotations, assemble, dataset_of, unmatched_classes
from codetr_cli.class_names import storable_class_name
from codetr_cli.config.data_settings import DatasetName
from codetr_cli.data.checks.boxes import check_boxes
from codetr_cli.data.checks.schema import AllProblems, AnnotationSummary, summarize_categories, summarize_images
from codetr_cli.errors import shown


def check_annotations(
    path: Path, findings: Findings, where: str, *, training: bool, min_side: int = 0
) -> AnnotationSummary | None:
    """Checks one annotation file, named `where` in the findings.

    Args:
        path: the file.
        findings: what is found is added to them.
        where: the name of the file.
        training: every class needs an object to train on.
        min_side: images with a smaller side are not trained on, in pixels.

    Returns:
        its counts, or None when it cannot be parsed at all.
    """
    with without_collector():
        return _check(path, findings, where, training=training, min_side=min_side)


def _check(path: Path, findings: Findings, where: str, *, training: bool, min_side: int) -> AnnotationSummary | None:
    try:
        tables = read_tables(path, with_outlines=True)
    except UnusableFileError as error:
        findings.add(error.kind, where, error.detail)
        return None
    summary = AnnotationSummary(annotations=len(tables.annotations))
    problems = AllProblems(findings, where)
    categories, images, objects = read_columns(tables, problems)
    summary.errors = problems.errors
    summarize_images(images, summary, findings, where)
    summarize_categories(categories, summary, findings, where)
    summary.knows_categories = 0 < len(summary.category_names) == len(tables.categories)
    assert tables.outlines is not None
    check_boxes(tables, categories, images, objects, summary, findings, where)
    annotations = assemble(categories, images, objects, None)
    summary.is_lvis = annotations.is_lvis
    trained = annotations.usable_objects(np.arange(len(images.ids)), with_crowd=False)
    summary.usable = len(trained.labels)
    if training:
        _check_trainable(annotations, trained.labels, summary, findings, where)
        large = np.flatnonzero(annotations.sizes.min(axis=1, initial=min_side) >= min_side)
        if summary.usable and not len(annotations.usable_objects(large, with_crowd=False).labels):
            findings.add("only_small_images", where)
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
    """Reports classes that differ between two files, by the rule of training; not if some are unusable."""
    if not (train.knows_categories and val.knows_categories):
        return
    names, val_names = (dict(sorted(summary.category_names.items())) for summary in (train, val))
    extra, lacking = unmatched_classes((list(names.values()), list(names)), (list(val_names.values()), list(val_names)))
    differ = {each for each, name in val_names.items() if storable_class_name(name) in extra}
    differ |= {each for each, name in names.items() if storable_class_name(name) in lacking}
    for category_id in sorted(differ):
        quoted = (
            f"{shown(side[category_id])} in {split}" if category_id in side else f"absent in {split}"
            for split, side in (("train", names), ("val", val_names))
        )  # fmt: skip
        findings.add("categories_differ", where, f"id {category_id} is {', '.join(quoted)}")
    if extra or lacking or train.category_names == val.category_names:
        return
    ids = {name: category_id for category_id, name in val.category_names.items()}
    for category_id, name in train.category_names.items():
        if ids.get(name, category_id) != category_id:
            findings.add("category_ids_differ", where, f"{shown(name)} is {category_id} in train, {ids[name]} in val")


def check_kinds(
    summaries: Mapping[str, AnnotationSummary], dataset: DatasetName, findings: Findings, wheres: Mapping[str, str]
) -> DatasetName:
    """Reports files of another kind than training expects: that of the first one, or of the settings.

    Args:
        summaries: of the files of the splits, training first.
        dataset: of the settings.
        findings: what is found is added to them.
        wheres: the names of the files.

    Returns:
        the data set whose rules apply.
    """
    first = next(iter(summaries.values()), None)
    expected = dataset if first is None else dataset_of(first.is_lvis, dataset)
    for name, summary in summaries.items():
        if summary.is_lvis != (expected == "lvis") and summary.images:
            findings.add("other_kind", wheres[name], "LVIS" if summary.is_lvis else "not LVIS")
    return expected


def _check_trainable(
    annotations: Annotations, labels: np.ndarray, summary: AnnotationSummary, findings: Findings, where: str
) -> None:
    if not len(labels):
        if not summary.errors:  # else a follow-up
            findings.add("no_objects", where)
        return
    counts = np.bincount(labels, minlength=len(annotations.category_ids)).tolist()
    for category_id, count in zip(annotations.category_ids, counts, strict=True):
        name = f"{summary.category_names.get(category_id)} (id {category_id})"
        if not count and not summary.per_category.get(category_id):
            findings.add("unused_category", where, name)
        elif not count:
            findings.add("excluded_category", where, f"{name}: {summary.per_category[category_id]:,} annotation(s)")
