"""Recall and AP over the number of detections of an image that count."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from codetr_cli.analysis.classes import known
from codetr_cli.analysis.queries import RecallAt
from codetr_cli.report.charts import Axis, Series, line_chart
from codetr_cli.report.markup import element
from codetr_cli.report.page import Column, Section, Table

LEAD = (
    "Where recall still rises at the end, and an image has as many detections as the detector may give, objects are "
    "lost to this limit: allow more detections (test.max_detections) or train with more queries (model.num_queries). "
    "Where it is flat, fewer are enough."
)


def queries_section(rows: Sequence[RecallAt]) -> Section:
    """The section of the number of detections."""
    columns = {
        "recall at IoU 0.50": [row.recall50 for row in rows],
        "recall": [row.recall for row in rows],
        "AP": [row.ap for row in rows],
    }
    series = [
        Series(
            name,
            [
                (float(row.detections), value)
                for row, value in zip(rows, values, strict=True)
                if known(value) is not None
            ],
        )
        for name, values in columns.items()
    ]
    chart = line_chart(
        "Recall and AP over the number of detections of an image",
        series,
        Axis("best detections of each image that count", is_log=True),
        Axis("share of the objects found, AP", 0.0, 1.0),
    )
    table = Table(
        "Recall and AP by number of detections",
        [
            Column("detections of an image", "number"),
            Column("recall at IoU 0.50", "score", "share of all objects that are found"),
            Column("recall", "score", "the same, mean over IoU 0.50 to 0.95"),
            Column("AP", "score", "over IoU 0.50 to 0.95, of what AP counts of these"),
        ],
        [(row.detections, known(row.recall50), known(row.recall), known(row.ap)) for row in rows],
    )
    return Section("queries", "Detections of an image", LEAD, [chart, *_end(rows), table] if rows else [table])


def _end(rows: Sequence[RecallAt]) -> list[Markup]:
    """How much recall rises at the end, where it is known."""
    if len(rows) < 2 or known(rows[-1].recall50) is None:
        return []
    before, last = rows[-2:]
    text = (
        f"From {before.detections:,} to {last.detections:,} detections, the most that an image has, recall at IoU 0.50 "
        f"rises by {last.recall50 - before.recall50:.3f}."
    )
    return [element("p", text)]
