"""Progress of a training for the user interface; messages go through `logging`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """A completed optimizer step.

    Attributes:
        step: number of the step, from 1.
        total_steps: optimizer steps of the whole run.
        line: the newest line of training in metrics.jsonl.
    """

    step: int
    total_steps: int
    line: Mapping[str, Any]


class Reporter(Protocol):
    """Shows the progress of a training; a method that a subclass does not define shows nothing."""

    def step_done(self, progress: StepProgress) -> None:
        """A step is done."""
        return

    def evaluating(self, images: int, total: int) -> None:
        """This process has evaluated `images` more of its `total` images; 0 when an evaluation starts."""
        return

    def evaluated(self, ap: float, best_ap: float) -> None:
        """An evaluation is done; AP of the newest and of the best one so far, -1 if there is nothing to measure."""
        return

    def close(self) -> None:
        """Removes the progress from the terminal; called from another thread when the process ends at once."""
        return


class SilentReporter(Reporter):
    """Shows nothing; for every process but that of rank 0."""
