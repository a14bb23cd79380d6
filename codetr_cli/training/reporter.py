"""Progress of a training for the user interface; messages go through `logging`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """A completed optimizer step.

    Attributes:
        step: number of the step, from 1.
        total_steps: optimizer steps of the whole run.
        epoch: current epoch, from 0.
        loss: sum of all losses.
        loss_groups: losses summed by group.
        lr: learning rate.
        images_per_s: of all processes together.
        data_wait: share of the time spent waiting for data, 0 to 1.
        memory_bytes: peak memory of this process.
        eta_s: estimated seconds to the end of the run.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    loss_groups: Mapping[str, float]
    lr: float
    images_per_s: float
    data_wait: float
    memory_bytes: int
    eta_s: float


class Reporter(Protocol):
    """Shows the progress of a training."""

    def step_done(self, progress: StepProgress) -> None:
        """A step is done; all values but the step are those of the newest line in metrics.jsonl."""

    def evaluating(self, images: int, total: int) -> None:
        """This process has evaluated `images` more of its `total` images; 0 when an evaluation starts."""

    def evaluated(self, ap: float, best_ap: float) -> None:
        """An evaluation is done; AP of the newest and of the best one so far, -1 if there is nothing to measure."""

    def close(self) -> None:
        """Removes the progress from the terminal; called from another thread when the process ends at once."""


class SilentReporter:
    """Shows nothing; for every process but that of rank 0."""

    def step_done(self, progress: StepProgress) -> None:
        """Shows nothing."""

    def evaluating(self, images: int, total: int) -> None:
        """Shows nothing."""

    def evaluated(self, ap: float, best_ap: float) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Shows nothing."""
