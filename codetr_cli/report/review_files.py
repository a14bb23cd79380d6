"""The folder of a review: page, JSON and proposals; the same command continues in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_errors import LabelError
from codetr_cli.data.writers.folder import receipt_of
from codetr_cli.report.review_proposals import BY, NAMES, ProposalFormat, coco_proposals, write_proposals
from codetr_cli.report.review_report import HTML_NAME, JSON_NAME, review_json, review_page
from codetr_cli.result_files import ResultRecord, free_folder, numbered, write_result, write_results

REQUEST_NAME = "request.json"
"""What was asked for, by which the same command finds its folder."""


@dataclass(frozen=True)
class ReviewFiles:
    """What a review has written.

    Attributes:
        page: HTML.
        table: JSON.
        proposals: a file or folder, by format.
    """

    page: Path
    table: Path
    proposals: dict[str, Path]


def open_review_folder(out: Path, request: str, facts: Mapping[str, Any], *, force: bool) -> Path:
    """The folder of a review: the one where the same request has begun, else the first free one; it is made now.

    Args:
        out: the folder that the user wants.
        request: name of the request.
        facts: what was asked for.
        force: replace own results of another request.

    Raises:
        ConfigError: files that codetr did not make are in the way.
        ResourceError: the folder cannot be written.
    """
    for candidate in numbered(out):
        if ResultRecord(candidate).is_own(candidate / REQUEST_NAME, request=request):
            return candidate
    folder = free_folder(out, REQUEST_NAME, HTML_NAME, JSON_NAME, *NAMES.values(), force=force)
    text = json.dumps({"request": request, **facts}, indent=1, default=str) + "\n"
    with write_result(folder / REQUEST_NAME, by=BY, force=force, request=request, parents=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder


def write_review(
    folder: Path,
    errors: Sequence[LabelError],
    inputs: AnalysisInputs,
    *,
    formats: Sequence[ProposalFormat],
    facts: Mapping[str, Any],
    shown_facts: Mapping[str, str],
    warnings: Sequence[str],
    total: int,
    request: str,
    force: bool,
) -> ReviewFiles:
    """Writes all files of a review: folders first, then all others at once, so that they are of one review.

    Args:
        folder: see `open_review_folder`.
        errors: the listed findings, the most suspicious first.
        inputs: what was reviewed.
        formats: of proposals.
        facts: for JSON.
        shown_facts: for the page.
        warnings: sentences for the page.
        total: number of findings, listed or not.
        request: name of the request.
        force: replace own files of another request.

    Raises:
        ConfigError: files that codetr did not make are in the way.
        DatasetError: a format cannot have a name.
        ResourceError: no space left, or the folder cannot be written.
    """
    formats = [*formats, *_earlier(folder, formats, request)]
    table = review_json(errors, inputs, {**facts, "warnings": list(warnings)}, total=total)
    page = review_page(errors, inputs, shown_facts, total=total, warnings=warnings)
    texts = {JSON_NAME: json.dumps(table, indent=1) + "\n", HTML_NAME: page}
    if "coco" in formats:
        texts[NAMES["coco"]] = coco_proposals(errors, inputs)
    for layout in formats:
        if layout != "coco":
            write_proposals(folder, layout, errors, inputs, request=request, force=force)
    with write_results(folder / HTML_NAME, by=BY, force=force, request=request) as temporary:
        for name, text in texts.items():
            temporary.with_name(name).write_text(text, encoding="utf-8", errors="backslashreplace")
    return ReviewFiles(folder / HTML_NAME, folder / JSON_NAME, {layout: folder / NAMES[layout] for layout in formats})


def _earlier(folder: Path, formats: Sequence[ProposalFormat], request: str) -> list[ProposalFormat]:
    """Other formats that this request has written before, which would not fit the new page."""
    return [
        layout
        for layout, name in NAMES.items()
        if layout not in formats
        and (receipt_of(folder / name).get("request") == request or ResultRecord(folder).is_own(folder / name))
    ]
