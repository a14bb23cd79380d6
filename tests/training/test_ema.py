"""The average of the weights."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from codetr_cli.training.ema import ModelEma, step_momentum


def test_average_copies_at_first_and_leaves_integers_alone():
    model = nn.BatchNorm1d(2)
    ema = ModelEma(model, momentum=1e-4)
    with torch.no_grad():
        model.weight.fill_(5.0)
        model.num_batches_tracked.fill_(7)
    ema.update(model, step=0)
    assert ema.state["weight"].tolist() == pytest.approx([1 + 4 * step_momentum(0, 1e-4)] * 2)
    assert ema.state["num_batches_tracked"] == 0


def test_swapping_shows_the_average_and_restores_the_weights():
    model = nn.Linear(2, 1)
    ema = ModelEma(model, momentum=1e-4)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    with ema.swapped_into(model):
        assert torch.equal(model.weight, start)
    assert torch.equal(model.weight, start + 1.0)
    with suppress(KeyboardInterrupt), ema.swapped_into(model):
        raise KeyboardInterrupt
    assert torch.equal(model.weight, start + 1.0)
