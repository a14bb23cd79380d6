"""Exponential moving average of a model's weights, by the published rule.

After optimizer step i (from 0) the average moves by m = (1 - momentum) * exp(-(1 + i) / 2000) + momentum towards the
weights: the first steps almost copy them, later ones change the average little. There is no bias correction. Floating
parameters and buffers are averaged; integer entries keep the value from the start of the run (mmdet's
ExpMomentumEMAHook).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import shard_like

WARMUP_STEPS = 2000


def step_momentum(step: int, momentum: float) -> float:
    """The share by which the average moves towards the weights after this optimizer step, counted from 0."""
    return (1 - momentum) * math.exp(-(1 + step) / WARMUP_STEPS) + momentum


class ModelEma:
    """The moving average of a model's state dict, on the model's device and sharded like the model.

    The current weights initialize it. `momentum` is that of the rule after the first few thousand steps, e.g. 1e-4.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.momentum = momentum
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Updates the average after optimizer step number `step`, counted from 0."""
        pairs: dict[
            torch.dtype, tuple[list[Tensor], list[Tensor]]
        ] = {}  # one dtype at a time, so that a GPU fuses them
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averages, values = pairs.setdefault(value.dtype, ([], []))
                averages.append(process_group.local_part(self.state[name]))
                values.append(process_group.local_part(value))
        momentum = step_momentum(step, self.momentum)
        for averages, values in pairs.values():
            torch._foreach_lerp_(averages, values, momentum)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads a saved average that is not sharded; names and shapes must be the model's."""
        for name, value in self.state.items():
            value.copy_(shard_like(state[name], value))

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside the context, and its own weights again after it."""
        raw = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(raw)
