"""Annotations that are probably wrong: what the detector disagrees with most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_errors import LabelError
from codetr_cli.report.markup import element
from codetr_cli.report.page import Column, Section, Table
from codetr_cli.report.pictures import DrawnBox, gallery, legend
from codetr_cli.report.sections.drawn import Boxes
from codetr_cli.report.thumbnails import Thumbnails

LEAD = (
    "Check the first ones: where the detector is right, the label is wrong, and AP counts a good detection as an "
    "error. codetr review makes a list of all and a file of proposals for a labelling tool."
)
PICTURES, SHOWN = 48, 12
"""Pictures, and those that are open at first."""


def label_errors_section(errors: Sequence[LabelError], inputs: AnalysisInputs, thumbnails: Thumbnails) -> Section:
    """The section of the suspected label errors, the most suspicious first."""
    boxes = Boxes(inputs)
    counts = Counter(error.kind for error in errors)
    text = ", ".join(f"{count:,} x {kind}" for kind, count in counts.most_common())
    parts: list[Table | Markup] = [
        element("p", f"Suspected: {len(errors):,} ({text})." if errors else "None is suspected.")
    ]
    found = (_picture(error, inputs.file_name(error.image), boxes, thumbnails) for error in errors[:PICTURES])
    pictures = [drawn for drawn in found if drawn is not None]
    if pictures:
        parts += [legend(["suspected", "proposed"]), gallery(pictures[:SHOWN], small=True)]
    if len(pictures) > SHOWN:
        summary = element("summary", f"The next {len(pictures) - SHOWN}")
        parts.append(element("details", summary, gallery(pictures[SHOWN:], small=True)))
    columns = [
        Column("image", "text name"),
        Column("kind"),
        Column("suspicion", "score", "1: the label is wrong for sure, in the detector's eyes"),
        Column("why", "text prose"),
    ]
    rows = [(inputs.file_name(error.image), error.kind, error.score, error.explanation) for error in errors[:200]]
    if rows:
        parts.append(Table("Suspected label errors", columns, rows, shown=12))
    return Section("labels", "Suspected label errors", LEAD, parts)


def _picture(error: LabelError, name: str, boxes: Boxes, thumbnails: Thumbnails) -> Markup | None:
    drawn = [] if error.object_row is None else boxes.objects([error.object_row], "suspected")
    if error.action != "remove":
        drawn.append(DrawnBox(error.box_xyxy, "proposed", f"proposed: {boxes.name(error.category_id)}"))
    around = _union(drawn)
    caption = f"{name}: {error.kind}, suspicion {error.score:.2f}: {error.explanation}"
    return thumbnails.crop(error.image, around, drawn, caption)


def _union(drawn: Sequence[DrawnBox]) -> tuple[float, float, float, float]:
    columns = list(zip(*(each.box for each in drawn), strict=True))
    return min(columns[0]), min(columns[1]), max(columns[2]), max(columns[3])
