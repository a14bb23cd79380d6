"""Losses that turn to NaN at chosen steps or images, and what a run then holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from codetr_cli.losses.collaborative import CollaborativeObjective
from tests.training.fakes import FakeRun


def spoil(training: FakeRun, *steps: int, again: bool = True) -> None:
    """Makes the losses of some optimizer steps NaN; not `again` where images are reshuffled."""
    forward = training.objective.forward

    def spoiled(*inputs: Any) -> dict[str, Tensor]:
        losses = forward(*inputs)
        position = training.progress
        if position.step + 1 in steps and (again or position.reshuffled_from is None):
            losses["loss_bbox"] = losses["loss_bbox"] * math.nan
        return losses

    training.objective.forward = spoiled


def spoiled_forward(bad_image: int, seen: list[dict[str, float]] | None = None) -> Callable[..., dict[str, Tensor]]:
    """The real objective with a NaN among the losses of one image."""
    forward = CollaborativeObjective.forward

    def run(self: CollaborativeObjective, images: Tensor, mask: Tensor, targets: list[Any]) -> dict[str, Tensor]:
        losses = forward(self, images, mask, targets)
        if bad_image in [target["image_id"] for target in targets]:
            losses["loss_rpn_bbox"] = losses["loss_rpn_bbox"] * math.nan
        if seen is not None:
            seen.append({name: float(value.detach()) for name, value in losses.items()})
        return losses

    return run


def lines(training: FakeRun, kind: str) -> list[dict[str, Any]]:
    return [line for line in training.run.metrics() if line["kind"] == kind]


def weights(training: FakeRun) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}
