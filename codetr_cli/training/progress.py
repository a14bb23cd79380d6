"""How far a run is, in steps, epochs and micro batches, and what its evaluations have brought."""

from __future__ import annotations

from dataclasses import dataclass, field

from codetr_cli.data.loading.loader import Segment


@dataclass
class Position:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        epoch: being trained, from 0.
        batch: micro batches of it, after the segments, that this process has used.
        segments: of the epoch that were trained by other numbers of processes or images at once, before.
        best: highest AP so far, -1 before the first evaluation.
        evaluated_step: step of the newest evaluation, -1 before the first.
        fruitless: evaluations since that of the highest AP.
        bad_steps: steps left out in a row up to this one because their numbers were not finite.
        other_order: epoch and micro batch from which on images come in another order, None before the run went back to
            a checkpoint.
        parts: that the images of a forward pass are split into, more than 1 since memory ran out.
        recompute: everything that can be is recomputed in the backward pass, also since then.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    segments: list[Segment] = field(default_factory=list)
    best: float = -1.0
    evaluated_step: int = -1
    fruitless: int = 0
    bad_steps: int = 0
    other_order: tuple[int, int] | None = None
    parts: int = 1
    recompute: bool = False

    @property
    def is_between_epochs(self) -> bool:
        """Whether nothing of the epoch is trained yet."""
        return self.batch == 0 and not self.segments

    def begin_next_epoch(self) -> None:
        """Leaves the epoch, all images of which are used."""
        self.epoch, self.batch, self.segments = self.epoch + 1, 0, []

    def change_width(self, world_size: int, micro_batch: int) -> None:
        """Closes the segment that was trained by so many processes with so many images at once."""
        if not self.batch:
            return
        self.segments.append((world_size, micro_batch, self.batch, other_order_from(self)))
        self.batch = 0
        if self.other_order is not None and self.other_order[0] == self.epoch:
            self.other_order = self.epoch, 0


def count_evaluation(position: Position, step: int, ap: float) -> None:
    """Takes note of the AP of an evaluation after a step."""
    position.evaluated_step = step
    position.fruitless = 0 if ap > position.best else position.fruitless + 1
    position.best = max(position.best, ap)


def other_order_from(position: Position) -> int | None:
    """The micro batch of the position's epoch from which on images come in another order than planned."""
    if position.other_order is None or position.epoch < position.other_order[0]:
        return None
    return position.other_order[1] if position.epoch == position.other_order[0] else 0
