"""A row for each class: AP with its interval, number of objects, and what is found at the suggested threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codetr_cli.analysis.classes import FREQUENCY_NAMES, ClassRow
from codetr_cli.analysis.curves import ClassCurve
from codetr_cli.report.charts import table_line
from codetr_cli.report.page import Column, Section, Table

LEAD = (
    "Look for classes with many objects and a low AP: they cost most. An interval as wide as its AP means that the "
    "class has too few objects to say anything."
)
STEP = 4
"""Every so many points of a curve are drawn in a row."""


def classes_section(rows: Sequence[ClassRow], curves: Sequence[ClassCurve] | None, *, shown: int = 40) -> Section:
    """The section of the classes.

    Args:
        rows: of the classes.
        curves: of the same classes; None: there are none.
        shown: rows that are shown at first.
    """
    by_id = {curve.category_id: curve for curve in curves or ()}
    has_masks = any(row.mask_ap is not None for row in rows)
    has_frequencies = any(row.frequency for row in rows)
    columns = [
        Column("class", "text name"),
        *([Column("frequency", hint="LVIS: rare, common or frequent in training images")] if has_frequencies else []),
        Column("objects", "number", "annotated, without crowds"),
        Column("AP", "score", "over IoU 0.50 to 0.95"),
        Column("low", "score", "start of the 95 % interval of AP"),
        Column("high", "score", "end of the 95 % interval of AP"),
        Column("AP50", "score", "at IoU 0.50, of the detections that AP counts"),
        Column("AR", "score", "part of the objects that are found, over IoU 0.50 to 0.95, by detections of any score"),
        *([Column("mask AP", "score")] if has_masks else []),
        Column("threshold", "score", "suggested: the score with the best F1-score at IoU 0.50"),
        Column("precision", "share", "part of the detections from the threshold on that are right"),
        Column("recall", "share", "part of the objects that are found from the threshold on"),
        Column("F1", "score", "harmonic mean of precision and recall at the threshold"),
        Column("PR", "chart", "precision (upwards) over recall, at IoU 0.50"),
    ]
    cells: list[list[Any]] = []
    for row in rows:
        low, high = row.ap_interval or (None, None)
        curve = by_id.get(row.category_id)
        cells.append(
            [
                row.name,
                *([FREQUENCY_NAMES.get(row.frequency or "")] if has_frequencies else []),
                row.objects,
                *(row.ap, low, high, row.ap50, row.ar),
                *([row.mask_ap] if has_masks else []),
                *(row.best_threshold, row.precision, row.recall, row.best_f1),
                table_line(curve.precision.tolist()[::STEP]) if curve is not None and row.objects else None,
            ]
        )
    caption = f"{len(rows):,} classes" if len(rows) != 1 else "1 class"
    return Section("classes", "Classes", LEAD, [Table(caption, columns, cells, shown=shown)])
