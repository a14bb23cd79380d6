"""Reads a recorded case and compares our tensors with it, key by key in the order in which they were recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

TOLERANCE = 1e-9
GRADIENT_TOLERANCE = 1e-7
MOST_LISTED = 12
CPU = torch.device("cpu")


class UnsupportedCaseError(ValueError):
    """A case whose kind or network is not part of this version; the message says what is missing."""


@dataclass
class Line:
    """One compared stage."""

    key: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


@dataclass
class Report:
    """All compared stages of one case. Calling it adds a comparison."""

    name: str
    lines: list[Line] = field(default_factory=list)

    def __call__(self, key: str, ours: Any, recorded: Any, tolerance: float = TOLERANCE, exact: bool = False) -> None:
        """Compares our value with the recorded one: largest absolute difference relative to the largest recorded value.

        Args:
            key: name of the stage.
            ours: array, tensor or number.
            recorded: the same shape.
            tolerance: largest relative error.
            exact: any difference at all fails.
        """
        a, b = _array(ours), _array(recorded)
        if a.shape != b.shape:
            self.lines.append(Line(key, float("inf"), tolerance, f"shape {a.shape} instead of {b.shape}"))
            return
        if exact or b.dtype.kind in "iub":
            wrong = int((a != b).sum())
            self.lines.append(Line(key, float(wrong), 0.0, f"{wrong} of {b.size} differ" if wrong else ""))
            return
        error = relative_error(a.astype(np.float64), b.astype(np.float64))
        self.lines.append(Line(key, error, tolerance))

    def fail(self, key: str, note: str) -> None:
        """Adds a stage that could not be compared."""
        self.lines.append(Line(key, float("inf"), 0.0, note))

    @property
    def ok(self) -> bool:
        return bool(self.lines) and all(line.ok for line in self.lines)


def relative_error(ours: np.ndarray, recorded: np.ndarray) -> float:
    """Largest difference over largest recorded magnitude; infinities are recorded as 1e30 and must be infinite here."""
    infinite = recorded >= 1e30
    if not np.array_equal(np.isposinf(ours) | (ours >= 1e30), infinite):
        return float("inf")
    ours, recorded = np.where(infinite, 0.0, ours), np.where(infinite, 0.0, recorded)
    if recorded.size == 0:
        return 0.0
    difference = float(np.abs(ours - recorded).max())
    if not np.isfinite(difference):
        return float("inf")
    scale = float(np.abs(recorded).max())
    return difference / scale if scale else difference


@dataclass
class Case:
    """A case folder, and the device that it is rebuilt on."""

    folder: Path
    description: dict[str, Any]
    recorded: dict[str, np.ndarray]
    device: torch.device = CPU

    @classmethod
    def load(cls, folder: Path, device: torch.device = CPU) -> Case:
        """Reads `case.json` and `tensors.safetensors`."""
        description = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        path = folder / "tensors.safetensors"
        return cls(folder, description, load_file(path) if path.is_file() else {}, device)

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.description.get("facts", {})
        return facts

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = self.description.get("tensors", {})
        return entries

    @property
    def publisher(self) -> str:
        """Whose names, layouts and post-processing the case has: mmdet3 or sensex."""
        publisher: str = self.description["published_by"]
        return publisher

    @cached_property
    def manifest(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Published name, shape and dtype of every entry of the model."""
        entries = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return [(name, tuple(shape), dtype) for name, shape, dtype in entries]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Published name -> shape of every floating entry."""
        return {name: shape for name, shape, dtype in self.manifest if dtype.startswith("float")}

    def of_first_steps(self, count: int) -> Case:
        """The same case with its first optimizer steps only, each compared as in the whole."""
        ours = {f"step/{index}/" for index in range(count)}
        facts = {**self.facts, "steps": self.facts["steps"][:count]}
        tensors = {key: entry for key, entry in self.tensors.items() if any(key.startswith(step) for step in ours)}
        return replace(self, description={**self.description, "facts": facts, "tensors": tensors})

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array as a tensor on the case's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def compare(self, report: Report, ours: Mapping[str, Any], tolerance_of: Callable[[str], float]) -> None:
        """Compares every stored tensor, in recorded order; a tensor that we do not compute is a failure."""
        for key, entry in self.tensors.items():
            if key not in self.recorded:
                report.fail(key, "listed in case.json, missing in tensors.safetensors")
                continue
            if ours.get(key) is None:
                report.fail(key, "not computed by this runner")
                continue
            value = _array(ours[key])
            if list(value.shape) != list(entry["shape"]):
                report.fail(key, f"shape {list(value.shape)} instead of {entry['shape']}")
                continue
            report(key, value.reshape(-1)[:: entry["every"]], self.recorded[key].reshape(-1), tolerance_of(key))


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def failing_lines(report: Report) -> str:
    """The first stages that differ, one per line: start with the first one."""
    failing = [
        f"{line.key}: {line.error:.2e} > {line.tolerance:.0e} {line.note}" for line in report.lines if not line.ok
    ]
    return "\n".join([f"{report.name}: {len(failing)} of {len(report.lines)} stages differ", *failing[:MOST_LISTED]])
