"""Progress of a run in steps, epochs and micro batches, and the results of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from codetr_cli.data.loading.loader import Segment

STORED_KEYS = {
    "epoch_segments": "segments",
    "evals_without_improvement": "fruitless",
    "nonfinite_steps": "bad_steps",
    "reshuffled_from": "other_order",
    "micro_batch_splits": "parts",
    "recompute_all": "recompute",
}
"""Keys of a checkpoint's `position` that differ from the attribute's name; they are the same in all versions."""


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        step: completed optimizer steps.
        epoch: current epoch, from 0.
        batch: micro batches of the epoch, after its segments, that this process has used.
        epoch_segments: parts of the epoch that were trained with another number of processes or images per pass.
        best: highest AP so far, -1 before the first evaluation.
        evaluated_step: step of the newest evaluation, -1 before the first.
        evals_without_improvement: evaluations since that of the highest AP.
        nonfinite_steps: consecutive steps up to this one that were skipped because of non-finite values.
        reshuffled_from: epoch and micro batch from which on the images are in another order than planned; None before
            the run has gone back to a checkpoint.
        micro_batch_splits: number of forward passes per micro batch; more than 1 after running out of memory.
        recompute_all: recompute all supported activations in the backward pass; also after running out of memory.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    epoch_segments: list[Segment] = field(default_factory=list)
    best: float = -1.0
    evaluated_step: int = -1
    evals_without_improvement: int = 0
    nonfinite_steps: int = 0
    reshuffled_from: tuple[int, int] | None = None
    micro_batch_splits: int = 1
    recompute_all: bool = False

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Progress:
        """The progress in a checkpoint; keys that earlier versions did not write keep their defaults."""
        names = {key: name for name, key in STORED_KEYS.items()}
        return cls(**{names.get(key, key): value for key, value in stored.items()})

    def as_stored(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {STORED_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @property
    def is_between_epochs(self) -> bool:
        """Whether the epoch has no trained micro batch yet."""
        return self.batch == 0 and not self.epoch_segments

    @property
    def reshuffled_from_batch(self) -> int | None:
        """Micro batch of the current epoch from which on the images are reshuffled; None when they are not."""
        if self.reshuffled_from is None or self.epoch < self.reshuffled_from[0]:
            return None
        return self.reshuffled_from[1] if self.epoch == self.reshuffled_from[0] else 0

    def start_next_epoch(self) -> None:
        """Moves on to the next epoch; all images of the current one are used."""
        self.epoch, self.batch, self.epoch_segments = self.epoch + 1, 0, []

    def close_segment(self, world_size: int, micro_batch: int) -> None:
        """Ends the segment of the epoch that was trained with this world size and micro batch."""
        if not self.batch:
            return
        self.epoch_segments.append((world_size, micro_batch, self.batch, self.reshuffled_from_batch))
        self.batch = 0
        if self.reshuffled_from is not None and self.reshuffled_from[0] == self.epoch:
            self.reshuffled_from = self.epoch, 0

    def count_evaluation(self, step: int, ap: float) -> None:
        """Records the AP of the evaluation after a step."""
        self.evaluated_step = step
        self.evals_without_improvement = 0 if ap > self.best else self.evals_without_improvement + 1
        self.best = max(self.best, ap)
