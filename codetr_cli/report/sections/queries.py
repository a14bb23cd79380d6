"""Recall and AP over the number of detections of an image that count."""

from __future__ import annotations

from collections.abc import Sequence

from codetr_cli.analysis.classes import known
from codetr_cli.report.charts import Axis, Series, line_chart
from codetr_cli.report.page import Column, Section, Table

LEAD = (
    "Where recall still rises at the end, objects are lost to the limit: allow more detections (test.max_detections) "
    "or train with more queries (model.num_queries). Where it is flat, fewer are enough."
)


def queries_section(rows: Sequence[tuple[int, float, float]]) -> Section:
    """The section of the number of detections; a row is the number, the recall at IoU 0.50:0.95 and the AP."""
    series = [
        Series(name, [(float(row[0]), row[column]) for row in rows if known(row[column]) is not None])
        for name, column in (("recall", 1), ("AP", 2))
    ]
    chart = line_chart(
        "Recall and AP over the number of detections of an image",
        series,
        Axis("best detections of each image that count", is_log=True),
        Axis("over IoU 0.50 to 0.95", 0.0, 1.0),
    )
    columns = [Column("detections of an image", "number"), Column("recall", "score"), Column("AP", "score")]
    table = Table("Recall and AP by number of detections", columns, [(n, known(r), known(ap)) for n, r, ap in rows])
    return Section("queries", "Detections of an image", LEAD, [chart, table] if rows else [table])
