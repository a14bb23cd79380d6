"""The encoder inside a whole network."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.models.build import build_model
from tests.models.networks import make_batch


@pytest.fixture
def model(tiny_settings):
    return build_model(tiny_settings.model).eval()


def test_nothing_that_lies_in_the_padding_changes_the_memory_of_the_image(model):
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    again = model.encoder(
        [
            m.masked_fill(p[:, None], 7.0)
            for m, p in zip(model.neck(model.backbone(images)), encoded.layout.level_masks, strict=True)
        ],
        encoded.layout,
    )
    inside = ~encoded.layout.padding_mask
    torch.testing.assert_close(again[inside], encoded.memory[inside])
