"""The numbers of an evaluation on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codetr_cli import console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from codetr_cli.evaluation.scoring import ClassScore

CLASS_COLUMNS = {
    "name": "class",
    "category_id": "category id",
    "frequency": "frequency",
    "objects": "objects",
    "AP": "AP",
    "AP50": "AP50",
    "mask_AP": "mask AP",
    "mask_AP50": "mask AP50",
}
"""Columns of the table of classes -> their titles; a column that no class has a value for is not shown."""


def show_scores(metrics: Mapping[str, float], per_class: Sequence[ClassScore], what: str) -> None:
    """Prints tables of precision and recall, and one of classes.

    Args:
        metrics: by name, e.g. AP50 or mask_AR; negative where there are no objects.
        per_class: the classes to show; none: no table of them.
        what: was evaluated, for the titles.
    """
    for subject, prefix in (("Box", ""), ("Mask", "mask_")):
        for kind, start in (("precision", "AP"), ("recall", "AR")):
            names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix + start)]
            if names:
                values = [_metric_text(metrics[prefix + name]) for name in names]
                console.table(f"{subject} {kind} ({what})", names, [values])
    if per_class:
        tables = [score.as_dict() for score in per_class]
        columns = [name for name in CLASS_COLUMNS if any(name in table for table in tables)]
        rows = [
            [_metric_text(table[name]) if "AP" in name and name in table else table.get(name) for name in columns]
            for table in tables
        ]
        console.table("Per class", [CLASS_COLUMNS[name] for name in columns], rows)


def _metric_text(value: float) -> str:
    """Three digits as in COCO's tables; a dash where there are no objects."""
    return "-" if value < 0 else f"{value:.3f}"
