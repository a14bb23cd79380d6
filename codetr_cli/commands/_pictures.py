"""The pictures of `codetr predict`: options, and the table of a comparison with annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr_cli import console
from codetr_cli.errors import DatasetError

if TYPE_CHECKING:
    from codetr_cli.prediction.outcome import PredictOutcome
    from codetr_cli.prediction.pictures import PictureOptions

KINDS = ("hits", "misses", "false_alarms")
MAX_WORST = 10
"""Images with errors that are shown."""


def picture_options(
    *,
    draw: bool,
    look: Mapping[str, Any],
    file: Mapping[str, Any],
    grid: str | None,
    against: Path | None,
    view: str,
) -> PictureOptions:
    """The options that the user gave.

    Args:
        draw: whether images are drawn.
        look: labels, thickness and font_size.
        file: image_format and quality.
        grid: as typed.
        against: annotations.
        view: "side" or "overlay".

    Raises:
        ConfigError: `--grid` is no number of images, nor rows and columns.
        DatasetError: the annotations do not exist.
    """
    from codetr_cli.inference.draw_options import DrawOptions
    from codetr_cli.prediction.montage import GridShape
    from codetr_cli.prediction.pictures import PictureOptions

    if against is not None and not against.exists():
        raise DatasetError(f"there is no {against}: --against is an annotation file or the folder of a data set")
    how: dict[str, Any] = {"view": view}
    return PictureOptions(
        draw=draw,
        drawing=DrawOptions(**look, **file),
        grid=GridShape.parse(grid) if grid is not None else None,
        against=against,
        **how,
    )


def comparison_columns(
    outcome: PredictOutcome,
) -> tuple[list[str], Callable[[Mapping[str, Any]], Sequence[object]]]:
    """Further columns of the table of images, and their values for an image; none if detections are not compared."""
    if not outcome.tally.comparisons.is_used:
        return [], lambda image: []
    return [kind.replace("_", " ") for kind in KINDS], lambda image: [
        "-" if image["against"] is None else image["against"][kind] for kind in KINDS
    ]


def show_comparison(outcome: PredictOutcome) -> None:
    """Prints the sums of a comparison, and the images with most errors."""
    totals = outcome.tally.comparisons
    if not totals.is_used:
        return
    facts = totals.summary()
    worst = facts["worst"][:MAX_WORST]
    if len(worst) > 1:
        rows = [[image["file_name"], *(image[kind] for kind in KINDS)] for image in worst]
        console.table("Images with most errors", ["image", *(kind.replace("_", " ") for kind in KINDS)], rows)
    shares = ", ".join(f"{name} {facts[name]:.2f}" for name in ("precision", "recall") if facts[name] is not None)
    console.result(
        f"{totals.hits} hits, {totals.misses} misses, {totals.false_alarms} false alarms at IoU {facts['min_iou']} "
        f"in {totals.compared} images{f': {shares}' if shares else ''}"
    )
    if totals.others:
        console.warn(f"{totals.others} images have no annotations of their name and size, and were not compared")
