"""Precision, recall and F1-score over all thresholds, and the threshold that is suggested for each class."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from codetr_cli.analysis.classes import known
from codetr_cli.analysis.curves import ClassCurve
from codetr_cli.report.charts import Axis, Series, curve_tile, line_chart
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Section, Table

LEAD = (
    "Choose the score from which detections count: a higher threshold gives fewer false alarms and more missed "
    "objects. The dashed line marks the suggested threshold, with the best F1-score at IoU 0.50; where a missed "
    "object costs more than a false alarm, take a lower one."
)
SHOWN = 24
"""Classes whose curves are open at first: those with the most objects."""
STEPS = [number / 100 for number in range(101)]


def curves_section(overall: ClassCurve, classes: Sequence[ClassCurve]) -> Section:
    """The section of the curves.

    Args:
        overall: of all classes together.
        classes: of each class; those without objects have no curve.
    """
    parts: list[Table | Markup] = [element("div", joined(_overall_charts(overall)), class_="charts")]
    threshold = known(overall.best_threshold)
    if threshold is not None:
        parts.append(
            element(
                "p",
                f"One threshold for all classes: {threshold}, with a precision of "
                f"{100 * overall.precision_at_best:.0f} % and a recall of {100 * overall.recall_at_best:.0f} %; ",
                element("code", f"codetr predict --score {threshold}"),
                " uses it.",
            )
        )
    if len(classes) > 1:
        parts.append(_tiles(classes))
    absent = sum(curve.objects == 0 for curve in classes)
    if absent:
        what = f"{absent:,} classes have" if absent > 1 else "1 class has"
        parts.append(element("p", f"{what} no object in these images, and no curve.", class_="hint"))
    return Section("curves", "Curves and thresholds", LEAD, parts)


def _overall_charts(curve: ClassCurve) -> list[Markup]:
    if not curve.objects:
        return [element("p", "There is no annotated object: no curve is defined.")]
    return [
        line_chart(
            "Precision over recall, all classes",
            [Series("precision", list(zip(STEPS, curve.precision.tolist(), strict=True)))],
            Axis("recall", 0.0, 1.0),
            Axis("precision", 0.0, 1.0),
        ),
        line_chart(
            "Precision, recall and F1-score over the threshold, all classes",
            [
                Series(name, list(zip(STEPS, values.tolist(), strict=True)))
                for name, values in (
                    ("F1-score", curve.f1),
                    ("precision", curve.precision_at),
                    ("recall", curve.recall_at),
                )
            ],
            Axis("threshold of the score", 0.0, 1.0),
            Axis("", 0.0, 1.0),
            mark=known(curve.best_threshold),
        ),
    ]


def _tiles(classes: Sequence[ClassCurve]) -> Markup:
    """Small curves of each class, those with the most objects first."""
    drawn = sorted((curve for curve in classes if curve.objects), key=lambda curve: -curve.objects)
    tiles = [
        curve_tile(
            curve.name, _described(curve), curve.precision.tolist(), curve.f1.tolist(), known(curve.best_threshold)
        )
        for curve in drawn
    ]
    first = element("ul", joined(tiles[:SHOWN]), class_="curves")
    more: Markup | str = ""
    if len(tiles) > SHOWN:
        more = element(
            "details",
            element("summary", f"Curves of the other {len(tiles) - SHOWN:,} classes"),
            element("ul", joined(tiles[SHOWN:]), class_="curves"),
        )
    title = element("h3", "Each class, those with the most objects first")
    return element("div", title, first, more, data_find="a class")


def _described(curve: ClassCurve) -> str:
    threshold = known(curve.best_threshold)
    if threshold is None or not curve.best_f1 > 0:
        return f"{curve.objects:,} objects, none found"
    return f"threshold {threshold:.2f}, F1 {curve.best_f1:.2f}, {curve.objects:,} objects"
