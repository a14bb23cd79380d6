"""The encoder inside a whole network."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.models.build import build_model
from codetr_cli.models.encoder import EncoderLayer
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


@pytest.mark.parametrize("tokens", [300, 2047, 2048, 2049, 4100, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_encoders_chunks_change_no_bit_on_one_thread(tokens, dtype):
    torch.manual_seed(tokens)
    layer = EncoderLayer(dim=64, num_heads=4, num_levels=1, num_points=2, ffn_dim=256).to(dtype)
    x, pos = torch.randn(2, tokens, 64, dtype=dtype), torch.randn(2, tokens, 64, dtype=dtype)
    references = torch.rand(2, tokens, 1, 2, dtype=dtype)
    with torch.no_grad():
        whole = layer(x, pos, references, [(1, tokens)], None)
        layer.chunk_tokens = 2048
        chunked = layer(x, pos, references, [(1, tokens)], None)
    assert torch.equal(chunked, whole)


def test_a_layout_without_padding_equals_one_whose_mask_is_empty(tiny_settings):
    model = build_model(tiny_settings.model).eval()
    images, mask, _ = make_batch()
    empty = torch.zeros_like(mask)
    with torch.no_grad():
        ours, theirs = model(images, None), model(images, empty)
        layouts = [model.encode(images, m).layout for m in (None, empty)]
        positions = [model.encoder.token_positions(layout) for layout in layouts]
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert torch.equal(positions[0].expand_as(positions[1]), positions[1])
