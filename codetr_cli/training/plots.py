"""Plots of a training: losses by group, learning rate, AP, precision by recall.

All but the last are drawn from metrics.jsonl alone, also while it trains; that is drawn at each evaluation.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from codetr_cli.files import replace_file
from codetr_cli.runs.folder import RunFolder

logger = logging.getLogger(__name__)

PLOT_SECONDS = 60.0  # between plots drawn within an epoch, and longer where drawing takes more than 1 / PLOT_SHARE
PLOT_SHARE = 50.0
MAX_DRAWN = 10_000  # lines of a kind, far more than a plot has pixels in a row
SIZE_INCHES = (8.0, 4.5)
DPI = 110
MAX_CLASS_CURVES = 10
MAX_NAME = 40
SHOWN_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mask_AP")


class RunPlots:
    """The plots of a run folder, drawn again from time to time."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._due_at = time.monotonic() + PLOT_SECONDS

    @property
    def is_due(self) -> bool:
        """Whether the plots are so old that they should be drawn again."""
        return time.monotonic() > self._due_at

    def draw(self) -> None:
        """Draws the plots; an error is logged and does not stop the training."""
        started = time.monotonic()
        try:
            draw_plots(thinned(self._folder.lines()), self._folder.plots_dir)
        except Exception as error:
            logger.debug("the plots could not be drawn: %s: %s", type(error).__name__, error)
        now = time.monotonic()
        self._due_at = now + max(PLOT_SECONDS, PLOT_SHARE * (now - started))


def thinned(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines to draw: of each kind all, or every second, fourth and so on, in memory no more than `MAX_DRAWN`."""
    kept = {kind: list[Mapping[str, Any]]() for kind in ("train", "eval", "skip")}
    seen, every = dict.fromkeys(kept, 0), dict.fromkeys(kept, 1)
    for line in lines:
        kind = line["kind"]
        if kind not in kept:
            continue
        if seen[kind] % every[kind] == 0:
            kept[kind].append(line)
            if len(kept[kind]) == MAX_DRAWN:
                del kept[kind][1::2]
                every[kind] *= 2
        seen[kind] += 1
    return [line for of_kind in kept.values() for line in of_kind]


def draw_plots(lines: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draws the plots for which a run's metrics have lines: losses.png, learning_rate.png, ap.png.

    Each file is replaced atomically. Skipped steps are ticks at the bottom of the losses.

    Returns:
        the files written.
    """
    training = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    written = []
    if training:
        skipped = [line["step"] for line in lines if line["kind"] == "skip"]
        written.append(_save(_draw_losses(training, skipped), folder / "losses.png"))
        written.append(_save(_draw_learning_rate(training), folder / "learning_rate.png"))
    if evaluations:
        written.append(_save(_draw_ap(evaluations), folder / "ap.png"))
    return written


def draw_pr_curves(
    precision: NDArray[np.float64], class_names: Sequence[str], objects: Sequence[int], step: int, folder: Path
) -> Path:
    """Draws pr_curves.png: the mean of all classes at IoU 0.50 and 0.75, and the classes with most objects at 0.50.

    Args:
        precision: (2, 101, K) as `Scores.pr_curves`.
        class_names: of the K classes.
        objects: of each class, to find.
        step: of the evaluation.
        folder: of the file.

    Returns:
        the file.
    """
    figure, axes = _figure(f"precision by recall after step {step:,}", "precision")
    axes.set(xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    recalls = np.linspace(0, 1, precision.shape[1])
    known = np.flatnonzero((precision[0] > -1).any(axis=0))
    drawn: list[tuple[Any, str]] = []
    for iou, name, style in ((0, "IoU 0.50", "-"), (1, "IoU 0.75", "--")) if len(known) else ():
        mean = precision[iou][:, known].mean(axis=1)
        (line,) = axes.plot(recalls, mean, style, color="black", linewidth=2.0, zorder=3)
        drawn.append((line, f"{mean.mean():.3f}  all classes, {name}"))
    most = sorted(known.tolist(), key=lambda label: -objects[label])[:MAX_CLASS_CURVES] if len(known) > 1 else []
    for label in most:
        (line,) = axes.plot(recalls, precision[0, :, label], linewidth=1.0)
        drawn.append((line, f"{precision[0, :, label].mean():.3f}  {_shown_name(class_names[label])}"))
    if drawn:
        lines, texts = zip(*drawn, strict=True)
        title = "AP; of a class at IoU 0.50" if most else "AP"
        legend = axes.legend(lines, texts, fontsize=8, title=title, title_fontsize=8, loc="lower left")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class may be named $x$
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the font lacks characters of a name
        return _save(figure, folder / "pr_curves.png")


def _shown_name(name: str) -> str:
    text = "".join(char if char.isprintable() else " " for char in name)
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}..."


def _draw_losses(lines: Sequence[Mapping[str, Any]], skipped: Sequence[int]) -> Figure:
    figure, axes = _figure("training losses", "loss")
    steps = [line["step"] for line in lines]
    names = list(dict.fromkeys(name for line in lines for name in line["groups"]))
    axes.plot(steps, [line["loss"] for line in lines], color="black", linewidth=1.8, label="total")
    for name in names:
        axes.plot(steps, [line["groups"].get(name, float("nan")) for line in lines], linewidth=1.2, label=name)
    values = [value for line in lines for value in (line["loss"], *line["groups"].values())]
    # Groups differ by orders of magnitude; a logarithmic axis cannot show a loss that is switched off.
    if all(value > 0 for value in values):
        axes.set_yscale("log")
    if skipped:
        bottom = axes.get_xaxis_transform()
        axes.plot(skipped, [0.01] * len(skipped), "|r", markersize=12, transform=bottom, label="step skipped")
    axes.legend(fontsize=8, ncols=2)
    return figure


def _draw_learning_rate(lines: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = _figure("learning rate", "learning rate")
    axes.plot([line["step"] for line in lines], [line["lr"] for line in lines], drawstyle="steps-post")
    axes.set_ylim(bottom=0)
    return figure


def _draw_ap(lines: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = _figure("evaluation", "average precision")
    for name in SHOWN_METRICS:
        points = [(line["step"], line["metrics"][name]) for line in lines if line["metrics"].get(name, -1) >= 0]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker="o", markersize=3, linewidth=2.0 if name == "AP" else 1.0, label=name)
    axes.set_ylim(0, 1)
    if axes.lines:
        axes.legend(fontsize=8, ncols=2)
    return figure


def _figure(title: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="step", ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
    return path
