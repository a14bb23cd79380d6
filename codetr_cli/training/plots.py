"""Pictures of a training: losses by group, learning rate, AP. Drawn from metrics.jsonl alone, also while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from codetr_cli.files import replace_file

SIZE_INCHES = (8.0, 4.5)
DPI = 110
SHOWN_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mask_AP")


def draw_plots(lines: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draws what the lines of a run's metrics allow.

    Args:
        lines: of metrics.jsonl, in order.
        folder: where losses.png, learning_rate.png and ap.png are written, each replaced as a whole. Steps that were
            left out are ticks at the foot of the losses.

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
        foot = axes.get_xaxis_transform()
        axes.plot(skipped, [0.01] * len(skipped), "|r", markersize=12, transform=foot, label="step left out")
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
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
    return path
