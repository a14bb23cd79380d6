"""Does a score of 0.8 mean that 8 of 10 detections are right?"""

from __future__ import annotations

from codetr_cli.analysis.calibration import Calibration
from codetr_cli.report.charts import Axis, Series, bar_chart, line_chart
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Column, Section, Table

LEAD = (
    "On the diagonal a score can be read as a probability; below it, scores are too high, above it too low. Choose "
    "thresholds from the curves, not from scores, where the two differ."
)


def calibration_section(calibration: Calibration) -> Section:
    """The section of the calibration."""
    used = [each for each in calibration.bins if each.count]
    if not used:
        return Section("calibration", "Calibration", LEAD, [element("p", "There are no detections.")])
    charts = [
        line_chart(
            "Part of the detections that is right, over their score",
            [
                Series("detections", [(each.confidence, each.accuracy) for each in used]),
                Series("perfect", [(0.0, 0.0), (1.0, 1.0)]),
            ],
            Axis("score", 0.0, 1.0),
            Axis("part that is right at IoU 0.50", 0.0, 1.0),
        ),
        bar_chart(
            "Detections by score",
            [f"{each.low:.2f}-{each.high:.2f}" for each in calibration.bins],
            [float(each.count) for each in calibration.bins],
            Axis("detections", 0.0),
        ),
    ]
    columns = [
        Column("scores"),
        Column("detections", "number"),
        Column("mean score", "score"),
        Column("right", "score", "part of them that find an object at IoU 0.50"),
        Column("difference", "score", "mean score minus right: above zero, scores are too high"),
    ]
    rows = [
        (
            f"{each.low:.2f} to {each.high:.2f}",
            each.count,
            each.confidence,
            each.accuracy,
            each.confidence - each.accuracy,
        )
        for each in used
    ]
    text = (
        f"Expected calibration error {calibration.ece:.3f}: the mean difference of score and part that is right, over "
        f"{calibration.count:,} detections with scores from {calibration.min_score:g} on. The largest is "
        f"{calibration.mce:.3f}."
    )
    return Section(
        "calibration",
        "Calibration",
        LEAD,
        [element("p", text), element("div", joined(charts), class_="charts"), Table("Bins of scores", columns, rows)],
    )
