"""What kind of error costs how much AP (TIDE), and how many there are."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from codetr_cli.analysis.classes import known
from codetr_cli.analysis.errors import ERROR_TYPES, ErrorTypes
from codetr_cli.report.charts import Axis, row_chart
from codetr_cli.report.markup import element
from codetr_cli.report.page import Column, Section, Table

LEAD = (
    "Work on the longest bar first: it is the AP at IoU 0.50 that would be gained if all errors of this kind were "
    "fixed. The gains do not add up, since fixing one kind uncovers another."
)
ADVICE: Mapping[str, tuple[str, str]] = {
    "loose box": (
        "the right class, but the box overlaps its object by 10 to 50 % only",
        "resolution; labels whose boxes are loose",
    ),
    "wrong class": ("a box in the right place with another class", "similar classes: see the confusion matrix"),
    "wrong class and loose box": ("both at once", "resolution, more data"),
    "duplicate": ("an object that another detection has found already", "NMS settings"),
    "background": ("nothing is annotated there", "suspected label errors below; training images with such backgrounds"),
    "missed": ("an annotated object without any detection near it", "resolution, queries, more data of these objects"),
}
"""Type of error -> what it is, and where to look."""


def errors_section(errors: ErrorTypes) -> Section:
    """The section of the types of errors."""
    order = sorted(ERROR_TYPES, key=lambda name: -(known(errors.delta_ap.get(name)) or 0.0))
    gains = [known(errors.delta_ap.get(name)) or 0.0 for name in order]
    chart = row_chart(
        f"AP50 that each type of error costs (AP50 is {errors.ap50:.3f})" if known(errors.ap50) is not None else "AP50",
        order,
        [round(gain, 3) for gain in gains],
        Axis("AP50", low=0.0),
    )
    at = f"from score {errors.threshold}"
    columns = [
        Column("type"),
        Column("costs AP50", "score", "AP at IoU 0.50 that is gained if errors of this type are fixed"),
        Column(f"number {at}", "number", "errors of detections from the suggested threshold on"),
        Column("number, all scores", "number", "errors of all detections: most have low scores and cost little"),
        Column("what it is", "text prose"),
        Column("where to look", "text prose"),
    ]
    rows = [
        (
            name,
            errors.delta_ap.get(name),
            errors.counts_at_threshold.get(name),
            errors.counts.get(name),
            *ADVICE.get(name, ("", "")),
        )
        for name in order
    ]
    parts: list[Table | Markup] = [chart, Table("Types of errors", columns, rows)]
    alarms, misses = known(errors.delta_false_alarms), known(errors.delta_misses)
    if alarms is not None and misses is not None:
        text = (
            f"All false alarms together cost {alarms:.3f} of AP50, all objects that are not found {misses:.3f}. Types "
            "by TIDE (arXiv 2008.08115), at IoU 0.50, of the detections that AP counts."
        )
        if errors.missed_classes:
            text += (
                f" Classes of which every object is missed: {errors.missed_classes:,}. TIDE has no gain for them, "
                "though the AP of each is 0."
            )
        parts.append(element("p", text, class_="hint"))
    return Section("errors", "Errors", LEAD, parts)
