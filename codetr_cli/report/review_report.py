"""The page of suspected label errors, each as it is annotated beside what is proposed, and all of them as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.jsonable import jsonable
from codetr_cli.analysis.label_errors import KINDS, Action, Box, Kind, LabelError
from codetr_cli.report.markup import element
from codetr_cli.report.page import Cell, Column, Section, Table, render_page
from codetr_cli.report.pictures import DrawnBox, gallery, legend
from codetr_cli.report.thumbnails import Thumbnails

HTML_NAME = "review.html"
JSON_NAME = "review.json"
VERSION = 1
KIND_OF_FILE = "codetr review"
BUDGET_BYTES = 12_000_000
LEADS: Mapping[Kind, str] = {
    "missing box": "Something is detected where nothing is annotated.",
    "wrong class": "Another class than the annotated one is detected, far ahead of the others.",
    "loose box": "The annotated box fits worse than the boxes of this network usually do.",
    "duplicate": "Two annotations seem to be of one object; the one in question is less like the detection.",
    "crowd": "A box is around several objects and not marked as a crowd, or one object is marked as a crowd.",
    "spurious box": "Nothing is detected where something is annotated; this network may also have missed it.",
}
TITLES: Mapping[Kind, str] = {
    "missing box": "Missing boxes",
    "wrong class": "Wrong classes",
    "loose box": "Loose boxes",
    "duplicate": "Duplicates",
    "crowd": "Crowds",
    "spurious box": "Spurious boxes",
}
PROPOSALS: Mapping[Action, str] = {
    "add": "annotate it",
    "change class": "new class",
    "change box": "new box",
    "remove": "remove it",
    "split": "annotate each",
    "unmark crowd": "no crowd",
}


def counts_of(errors: Sequence[LabelError]) -> dict[str, int]:
    """Findings of each kind."""
    found = Counter(error.kind for error in errors)
    return {kind: found[kind] for kind in KINDS}


def review_json(
    errors: Sequence[LabelError], inputs: AnalysisInputs, facts: Mapping[str, Any], *, total: int
) -> dict[str, Any]:
    """All findings with what they are about, as values of JSON.

    Args:
        errors: the listed findings, the most suspicious first.
        inputs: what was reviewed.
        facts: on the review.
        total: number of findings, listed or not.
    """
    names = inputs.ground_truth.class_names
    by_id = dict(zip(inputs.ground_truth.category_ids, names, strict=True))
    found: dict[str, Any] = jsonable(
        {
            "kind": KIND_OF_FILE,
            "version": VERSION,
            **facts,
            "images": len(inputs.image_ids),
            "objects": len(inputs.object_rows),
            "findings_total": total,
            "counts": counts_of(errors),
            "findings": [
                {
                    "number": number,
                    "kind": error.kind,
                    "action": error.action,
                    "suspicion": error.score,
                    "image_id": error.image_id,
                    "file_name": inputs.file_name(error.image),
                    "annotated_class": _class_of(inputs, error.object_row),
                    "annotated_box_xyxy": _box_of(inputs, error.object_row),
                    "class": by_id[error.category_id],
                    "category_id": error.category_id,
                    "box_xyxy": list(error.box_xyxy),
                    "parts_xyxy": [list(box) for box in error.parts_xyxy],
                    "explanation": error.explanation,
                }
                for number, error in enumerate(errors, 1)
            ],
        }
    )
    return found


def review_page(
    errors: Sequence[LabelError],
    inputs: AnalysisInputs,
    facts: Mapping[str, str],
    *,
    total: int,
    warnings: Sequence[str] = (),
) -> str:
    """The text of the page.

    Args:
        errors: the listed findings, the most suspicious first.
        inputs: what was reviewed; images may be absent.
        facts: what was reviewed and how, by name.
        total: number of findings, listed or not.
        warnings: sentences above everything else.
    """
    thumbnails = Thumbnails(inputs, BUDGET_BYTES)
    numbers: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
    for number, error in enumerate(errors, 1):
        numbers[error.kind].append(number)
    # In the order of suspicion, so that the budget is for the most suspicious ones.
    pictures = {number: _pair(thumbnails, error, number, inputs) for number, error in enumerate(errors, 1)}
    sections = [_list(errors, inputs, pictures)]
    for kind in KINDS:
        shown = [drawn for number in numbers[kind] if (drawn := pictures[number]) is not None]
        if numbers[kind]:
            parts = [legend(["annotated", "suspected", "proposed"]), gallery(shown)] if shown else []
            sections.append(Section(kind.replace(" ", "-"), TITLES[kind], LEADS[kind], parts))
    texts = [*warnings, _summary(errors, inputs, total), thumbnails.remark()]
    summary = Markup().join(element("p", text) for text in texts if text)
    return render_page("Suspected label errors", facts=facts, summary=summary, sections=sections)


def _summary(errors: Sequence[LabelError], inputs: AnalysisInputs, total: int) -> str:
    of_all = f" (of {total:,})" if total > len(errors) else ""
    kinds = ", ".join(
        f"{count:,} {kind if count == 1 else TITLES[kind].lower()}"
        for kind in KINDS
        if (count := counts_of(errors)[kind])
    )
    return (
        f"{len(errors):,} findings{of_all} among {len(inputs.object_rows):,} annotations of "
        f"{len(inputs.image_ids):,} images{': ' if kinds else ''}{kinds}. Nothing was changed."
    )


def _list(errors: Sequence[LabelError], inputs: AnalysisInputs, pictures: Mapping[int, Markup | None]) -> Section:
    """The table of all findings."""
    by_id = dict(zip(inputs.ground_truth.category_ids, inputs.ground_truth.class_names, strict=True))
    rows: list[list[Any]] = []
    has_pictures = all(drawn is not None for drawn in pictures.values())  # whose captions say why
    for number, error in enumerate(errors, 1):
        name = inputs.file_name(error.image)
        link: Any = number
        if pictures[number] is not None:
            link = Cell(element("a", f"{number:,}", href=f"#{_key(number)}"), number)
        rows.append(
            [
                link,
                error.kind,
                error.score,
                name,
                _class_of(inputs, error.object_row),
                by_id[error.category_id] if error.action != "remove" else None,
                PROPOSALS[error.action],
                *([] if has_pictures else [error.explanation]),
            ]
        )
    columns = [
        Column("finding", "number", "the most suspicious is 1; a link to its picture"),
        Column("kind"),
        Column("suspicion", "score", "how likely the annotation is wrong, 0 to 1, by the scores of all detections"),
        Column("image", "text name"),
        Column("annotated", "text name", "class of the annotation in question"),
        Column("proposed", "text name", "class of the proposal"),
        Column("proposal"),
        *([] if has_pictures else [Column("why")]),
    ]
    lead = (
        "The most suspicious findings first. A suspicion is computed from how often detections with such a score agree "
        "with the annotations of this data set; it is no proof, so look at the pictures."
    )
    return Section("findings", "Findings", lead, [Table("Findings", columns, rows, shown=25)])


def _key(number: int) -> str:
    return f"finding-{number}"


def _pair(thumbnails: Thumbnails, error: LabelError, number: int, inputs: AnalysisInputs) -> Markup | None:
    """A finding as it is annotated, beside the proposal."""
    truth = inputs.ground_truth
    annotated = _box_of(inputs, error.object_row)
    suspect = [DrawnBox(annotated, "suspected", f"{_class_of(inputs, error.object_row)}?")] if annotated else []
    crop = _around([error.box_xyxy, *error.parts_xyxy, *([annotated] if annotated else [])])
    others = []
    for row in (truth.image_rows == inputs.file_rows[error.image]).nonzero()[0].tolist():
        box = _box_of(inputs, row)
        if row != error.object_row and box is not None and _meet(box, crop):
            others.append(DrawnBox(box, "annotated", truth.class_names[truth.labels[row]]))
    by_id = dict(zip(truth.category_ids, truth.class_names, strict=True))
    name = by_id[error.category_id]
    proposed: list[DrawnBox] = []
    if error.action != "remove":
        proposed = [DrawnBox(box, "proposed", name) for box in error.parts_xyxy or [error.box_xyxy]]
    before = "annotated" if annotated is None else f"annotated: {_class_of(inputs, error.object_row)}"
    after = f"proposed: {name if error.action in ('add', 'change class') else PROPOSALS[error.action]}"
    caption = (
        f"{number}. {error.kind}, suspicion {error.score:.2f}, {inputs.file_name(error.image)}: {error.explanation}"
    )
    return thumbnails.pair(
        error.image,
        (before, [*others, *suspect]),
        (after, [*others, *proposed]),
        caption,
        key=_key(number),
        crop=crop,
    )


def _class_of(inputs: AnalysisInputs, row: int | None) -> str | None:
    return None if row is None else inputs.ground_truth.class_names[inputs.ground_truth.labels[row]]


def _box_of(inputs: AnalysisInputs, row: int | None) -> Box | None:
    if row is None:
        return None
    x, y, width, height = inputs.ground_truth.boxes_xywh[row].tolist()
    return x, y, x + width, y + height


def _around(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _meet(box: Box, crop: Box) -> bool:
    """Whether a box is in a crop or its margin, about."""
    margin = max(crop[2] - crop[0], crop[3] - crop[1])
    return (
        box[0] < crop[2] + margin
        and box[2] > crop[0] - margin
        and box[1] < crop[3] + margin
        and box[3] > crop[1] - margin
    )
