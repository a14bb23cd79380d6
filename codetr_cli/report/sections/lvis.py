"""AP of LVIS's rare, common and frequent classes."""

from __future__ import annotations

from collections.abc import Sequence

from codetr_cli.analysis.classes import FrequencyGroup
from codetr_cli.report.charts import Axis, row_chart
from codetr_cli.report.page import Column, Section, Table

LEAD = (
    "A large gap between rare and frequent classes asks for more images of the rare ones, or for images with them to "
    "be repeated in training."
)


def lvis_section(groups: Sequence[FrequencyGroup]) -> Section:
    """The section of the frequency groups."""
    has_masks = any(group.mask_ap is not None for group in groups)
    columns = [
        Column("classes"),
        Column("number", "number"),
        Column("with objects here", "number"),
        Column("nothing found", "number", "of those with objects"),
        Column("objects", "number"),
        Column("AP", "score", "mean over the classes with objects here"),
        *([Column("mask AP", "score")] if has_masks else []),
    ]
    rows = [
        (
            f"{group.name}: {group.hint}",
            *(group.classes, group.scored, group.unfound, group.objects, group.ap),
            *([group.mask_ap] if has_masks else []),
        )
        for group in groups
    ]
    defined = [(group.name, group.ap) for group in groups if group.ap is not None]
    chart = row_chart("AP by frequency", [name for name, _ in defined], [ap for _, ap in defined], Axis("AP", 0.0))
    return Section("lvis", "Rare, common, frequent", LEAD, [chart, Table("Frequency groups", columns, rows)])
