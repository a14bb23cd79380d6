"""AP of parts of the data: by size, shape, crowding and place of objects, and by properties of images."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from codetr_cli.analysis.slices import Slice, SliceGroup
from codetr_cli.report.charts import table_bar
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Cell, Column, Section, Table, table_markup

LEAD = (
    "Where AP falls from one row to the next, this property makes objects hard: more such images, a higher resolution "
    "or tiles may help. Each row averages over the classes that have objects in it. The line in a bar is the 95 % "
    "interval of AP: two rows whose intervals overlap by half may differ by chance."
)


def slices_section(groups: Sequence[SliceGroup]) -> Section:
    """The section of the parts of the data."""
    parts: list[Markup] = []
    columns = [
        Column("part"),
        Column("images", "number"),
        Column("objects", "number"),
        Column("AP", "score", "over IoU 0.50 to 0.95"),
        Column(
            "±",
            "number",
            "half the width of the 95 % interval of AP; none where the objects are in fewer than 5 images",
        ),
        Column("", "chart"),
        Column("AP50", "score", "at IoU 0.50, of the detections that AP counts"),
        Column("AR", "score", "part of the objects that are found, over IoU 0.50 to 0.95, by detections of any score"),
    ]
    plain = [Column(column.title, column.kind) for column in columns]
    for number, group in enumerate(groups):
        rows = [
            [
                *(each.label, each.images, each.objects, each.ap),
                _margin(each),
                *(table_bar(each.ap, each.ap_interval), each.ap50, each.recall),
            ]
            for each in group.slices
        ]
        table = Table(group.title, plain if number else columns, rows)
        hint = element("p", group.how_to_read, class_="hint")
        parts.append(element("div", element("h3", group.title), hint, table_markup(table)))
    return Section("slices", "Where it is good", LEAD, [element("div", joined(parts), class_="groups")])


def _margin(part: Slice) -> Cell | None:
    """Half the width of the interval of AP, which may end at 0 or 1."""
    if part.ap_interval is None or part.ap is None:
        return None
    margin = max(part.ap - part.ap_interval[0], part.ap_interval[1] - part.ap)
    return Cell(escape(f"{margin:.3f}"), round(margin, 6))
