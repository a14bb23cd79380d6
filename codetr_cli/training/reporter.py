"""Whom a training tells what it does; the engine itself draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Report(Protocol):
    """What a training tells whoever started it."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def warn(self, text: str) -> None:
        """Something that may be wrong."""

    def step(self, line: Mapping[str, Any], left: int) -> None:
        """A step is done and `left` are to come; `line` is the newest of metrics.jsonl, with this step's number."""

    def evaluating(self, images: int, total: int) -> None:
        """So many more images of an evaluation are done, of so many of this process; 0 when it begins."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """An evaluation is done; `line` is its line of metrics.jsonl."""

    def failed(self, text: str) -> None:
        """The process ends at once because of this. Called from another thread, also where `Silence` is used else."""

    def leave(self) -> None:
        """The process ends at once: the terminal must be left in order. Called from another thread."""


class Silence:
    """A report that nobody reads: that of every process but the one of rank 0."""

    def note(self, text: str) -> None:
        """Says nothing."""

    def warn(self, text: str) -> None:
        """Says nothing."""

    def step(self, line: Mapping[str, Any], left: int) -> None:
        """Says nothing."""

    def evaluating(self, images: int, total: int) -> None:
        """Says nothing."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Says nothing."""

    def failed(self, text: str) -> None:
        """Says nothing."""

    def leave(self) -> None:
        """Says nothing."""
