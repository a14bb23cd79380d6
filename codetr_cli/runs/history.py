"""The course of a training as far as its metrics.jsonl has come: newest values, and series short enough to be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from codetr_cli.runs.metrics_log import ENDS, Line, has_numbers, is_evaluation, parse_line

MAX_POINTS = 2048
MAX_SERIES = 64
SHOWN_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mask_AP")


@dataclass
class Series:
    """Values by step. Where they are many, every second, fourth and so on is kept.

    Attributes:
        points: (step, value), ascending.
    """

    points: list[tuple[int, float]] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def add(self, step: int, value: float) -> None:
        """Adds the newest value."""
        if self._seen % self._every == 0:
            self.points.append((step, value))
            if len(self.points) == MAX_POINTS:
                del self.points[1::2]
                self._every *= 2
        self._seen += 1

    @property
    def values(self) -> list[float]:
        """The values without their steps."""
        return [value for _, value in self.points]


@dataclass
class History:
    """What the lines so far say.

    Attributes:
        newest: line of any kind; None before the first.
        training: newest line of training; None before the first.
        evaluation: newest line of an evaluation with an AP; None before the first.
        best: that of the highest AP; None before the first.
        series: by name: "loss", "lr", "grad_norm", "images_per_s", "data_wait", "loss/GROUP", "eval/METRIC".
        skipped: steps that were skipped because of values that are not finite.
        line_seconds: time between the last two lines of training; 0 where they have no times.
        is_cut: whether the beginning of the file was not read.
    """

    newest: Line | None = None
    training: Line | None = None
    evaluation: Line | None = None
    best: Line | None = None
    series: dict[str, Series] = field(default_factory=dict)
    skipped: int = 0
    line_seconds: float = 0.0
    is_cut: bool = False

    def add(self, text: bytes) -> Line | None:
        """Takes the next line of the file, and returns it if it is one of metrics; others are skipped."""
        line = parse_line(text)
        if line is None:
            return None
        self.newest = line
        if line["kind"] == "train":
            self._add_training(line)
        elif is_evaluation(line):
            self._add_evaluation(line)
        elif line["kind"] == "skip":
            self.skipped += 1
        return line

    @property
    def end(self) -> str | None:
        """The kind of the newest line where it is one that ends a training: "end" or "diverged"."""
        return self.newest["kind"] if self.newest is not None and self.newest["kind"] in ENDS else None

    def groups(self) -> Iterator[tuple[str, float]]:
        """The newest losses by group."""
        groups = None if self.training is None else self.training.get("groups")
        if isinstance(groups, dict):
            yield from ((name, groups[name]) for name in list(groups)[:MAX_SERIES] if has_numbers(groups, name))

    def number(self, name: str) -> float | None:
        """A number of the newest line of training."""
        line = self.training
        return float(line[name]) if line is not None and has_numbers(line, name) else None

    def _add_training(self, line: Line) -> None:
        before, self.training = self.training, line
        if before is not None and has_numbers(before, "time") and has_numbers(line, "time"):
            self.line_seconds = max(0.0, line["time"] - before["time"])
        for name in ("loss", "lr", "grad_norm", "images_per_s", "data_wait"):
            self._add(name, line, name)
        for name, value in self.groups():
            self._append(f"loss/{name}", line["step"], value)

    def _add_evaluation(self, line: Line) -> None:
        self.evaluation = line
        metrics: dict[str, Any] = line["metrics"]
        if self.best is None or metrics["AP"] > self.best["metrics"]["AP"]:
            self.best = line
        for name in SHOWN_METRICS:
            if has_numbers(metrics, name) and metrics[name] >= 0:
                self._append(f"eval/{name}", line["step"], float(metrics[name]))

    def _add(self, series: str, table: dict[str, Any], name: str) -> None:
        if has_numbers(table, name):
            self._append(series, table["step"], float(table[name]))

    def _append(self, name: str, step: int, value: float) -> None:
        if name in self.series or len(self.series) < MAX_SERIES:
            self.series.setdefault(name, Series()).add(step, value)
