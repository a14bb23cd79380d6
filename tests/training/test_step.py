"""One optimizer step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetr_cli.config.schema import Settings
from tests.training.fakes import begin, train

pytestmark = pytest.mark.usefixtures("no_plots")


def test_accumulated_micro_batches_are_averaged(tmp_path: Path, tiny_settings: Settings):
    """One step over two micro batches moves as plain AdamW does on the mean of their losses."""
    overrides = ("train.max_steps=1", "train.batch_size=4", "train.clip_norm=0")
    training = begin(tmp_path / "ours", tiny_settings, *overrides, accumulation=2)
    train(training)
    theirs = begin(tmp_path / "theirs", tiny_settings, *overrides, accumulation=2)
    state = torch.get_rng_state()
    batches = list(theirs.loader)[:2]
    torch.set_rng_state(state)  # opening a loader must not move the generators
    data = tiny_settings.data
    for batch in batches:
        images = (batch.images.float() - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
        (sum(theirs.objective(images, batch.padding_mask, batch.targets).values()) / 2).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in theirs.model.parameters()]).norm()
    assert training.run.metrics()[0]["grad_norm"] == pytest.approx(norm.item())
    theirs.state.optimizer.step()
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(value, theirs.model.state_dict()[name], rtol=1e-6, atol=1e-8)
