"""The findings of `codetr review` in the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr_cli import console

if TYPE_CHECKING:
    from codetr_cli.analysis.inputs import AnalysisInputs
    from codetr_cli.analysis.label_errors import LabelError
    from codetr_cli.report.review_files import ReviewFiles

SHOWN = 20
"""Findings in the terminal; all are in the files."""
WIDE = 100
"""Characters of a line from which the reasons are in the table of the terminal."""


def show_review(
    errors: Sequence[LabelError],
    total: int,
    inputs: AnalysisInputs,
    written: ReviewFiles,
    warnings: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Prints the findings and where the files are.

    Args:
        errors: the ones that are listed.
        total: how many there are.
        inputs: what was compared.
        written: the files.
        warnings: about what the findings are worth.
        facts: about the request.
    """
    from codetr_cli.report.review_report import counts_of, review_json

    files = {
        "page": str(written.page),
        "table": str(written.table),
        "proposals": {layout: str(path) for layout, path in written.proposals.items()},
    }
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in facts.items()}
    console.result_json(
        {**review_json(errors, inputs, {**plain, "warnings": list(warnings)}, total=total), "files": files}
    )
    listed = "" if total == len(errors) else f", the {len(errors):,} most suspicious listed"
    objects, images = len(inputs.object_rows), len(inputs.image_ids)
    console.result(f"{total:,} suspected label errors in {objects:,} annotations of {images:,} images{listed}.")
    if errors:
        counts = counts_of(errors)
        console.table("By kind", list(counts), [list(counts.values())])
        _show_findings(errors, inputs)
    console.result(f"Page: {written.page}")
    for layout, path in written.proposals.items():
        console.result(f"Proposals ({layout}): {path}")


def _show_findings(errors: Sequence[LabelError], inputs: AnalysisInputs) -> None:
    from codetr_cli.report.review_report import PROPOSALS

    truth = inputs.ground_truth
    names = dict(zip(truth.category_ids, truth.class_names, strict=True))
    is_wide = console.columns() >= WIDE
    rows = []
    for number, error in enumerate(errors[:SHOWN], 1):
        annotated = None if error.object_row is None else truth.class_names[truth.labels[error.object_row]]
        proposed = None if error.action == "remove" else names[error.category_id]
        cells = [number, error.kind, f"{error.score:.2f}", inputs.file_name(error.image), annotated, proposed]
        rows.append([*cells, error.explanation if is_wide else PROPOSALS[error.action]])
    more = f", all {len(errors):,} are in the files" if len(errors) > SHOWN else ""
    columns = ["", "kind", "suspicion", "image", "annotated", "proposed", "why" if is_wide else "proposal"]
    console.table(f"The most suspicious{more}", columns, rows)


def shown_facts(facts: Mapping[str, Any], inputs: AnalysisInputs) -> dict[str, str]:
    """What the page says at its head."""
    from codetr_cli.annotations.cache import source_of

    shown = {
        "Checkpoint": facts["checkpoint"],
        "Detections": facts["detections"],
        "Folds": facts["folds"] and f"{facts['folds']}: each image is judged by a model that has not seen it",
        "Annotations": source_of(facts["annotations"]).name,
        "Images": f"{len(inputs.image_ids):,} in {facts['images_dir'] or 'no known folder'}",
        "Command": facts["command"],
    }
    return {name: str(value) for name, value in shown.items() if value}
