"""How the evaluated checkpoint was trained: losses and AP over the steps, and validation images after some of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from codetr_cli.images.decoder import BrokenImageError, read_image
from codetr_cli.report.charts import Axis, Series, line_chart
from codetr_cli.report.markup import element, joined
from codetr_cli.report.page import Section
from codetr_cli.report.pictures import picture
from codetr_cli.runs.history import History
from codetr_cli.runs.history import Series as Course
from codetr_cli.runs.lineage import run_of
from codetr_cli.runs.plot_files import ValPicture, plot_files
from codetr_cli.runs.watch import RunWatcher

LEAD = (
    "Losses should fall and AP should rise: an AP that falls while the losses still fall means that the network learns "
    "the training images by heart, one that still rises at the end that more epochs would help."
)
PICTURES_LEAD = (
    "The same validation images after some of the evaluations: hits in blue, misses in yellow and dashed, false alarms "
    "in red, of detections with a score of 0.3 or more."
)
MOST_POINTS = 200
MOST_IMAGES, MOST_STEPS = 4, 3
SIDE_PX = 360
MAX_PIXELS = 1 << 21
GROUPS = 7


def training_section(checkpoint: str | None) -> Section | None:
    """The section of the run that a checkpoint is in; None where it is in none, or nothing is logged there.

    Args:
        checkpoint: a run folder, a folder or a file in it, as the user has given it; None: not known.
    """
    run = None if checkpoint is None else _run_of(Path(checkpoint))
    if run is None:
        return None
    history = RunWatcher(run).look().status.history
    parts = [*_charts(history), *_pictures(plot_files(run).val_pictures)]
    return Section("training", "Training", LEAD, parts) if parts else None


def _run_of(path: Path) -> Path | None:
    try:
        places = (path, run_of(path), run_of(path / "model.safetensors"))
        return next((place for place in places if place is not None and (place / "metrics.jsonl").is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _charts(history: History) -> list[Markup]:
    charts = []
    steps = Axis("step")
    if (loss := history.series.get("loss")) is not None and len(loss.points) > 1:
        groups = [name for name, _ in history.groups()][:GROUPS]
        lines = [_line("total", loss), *(_line(name, history.series[f"loss/{name}"]) for name in groups)]
        is_log = all(value > 0 for line in lines for _, value in line.points)
        charts.append(line_chart("Losses over the steps", lines, steps, Axis("loss", is_log=is_log)))
    metrics = {name: history.series.get(f"eval/{name}") for name in ("AP", "AP50", "AP75")}
    lines = [_line(name, course) for name, course in metrics.items() if course is not None and len(course.points) > 1]
    if lines:
        charts.append(line_chart("AP over the steps", lines, steps, Axis("AP", 0.0, 1.0)))
    return charts


def _line(name: str, course: Course) -> Series:
    points = course.points[:: len(course.points) // MOST_POINTS + 1]
    if points[-1] != course.points[-1]:
        points = [*points, course.points[-1]]
    return Series(name, [(float(step), value) for step, value in points])


def _pictures(found: Sequence[ValPicture]) -> list[Markup]:
    """Some images after the first, a middle and the newest evaluation."""
    steps = sorted({each.step for each in found})
    shown = {steps[round(part * (len(steps) - 1) / (MOST_STEPS - 1))] for part in range(MOST_STEPS)} if steps else set()
    rows: dict[int, list[Markup]] = {}
    for each in found:
        if each.image < MOST_IMAGES and each.step in shown:
            try:
                pixels = read_image(each.path, max_pixels=MAX_PIXELS)
            except (BrokenImageError, OSError):
                continue
            caption = f"image {each.image + 1} after step {each.step:,}"
            figure = picture(pixels, [], caption, longest_side=SIDE_PX)
            rows.setdefault(each.image, []).append(element("li", figure))
    if not rows:
        return []
    lists = [element("ul", joined(figures), class_="steps") for figures in rows.values()]
    return [element("h3", "Validation images"), element("p", PICTURES_LEAD, class_="hint"), *lists]
