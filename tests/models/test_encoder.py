"""The encoder inside a whole network."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.models.build import build_model
from codetr_cli.models.encoder import EncoderLayer, interpolate_nearest, nearest_cells
from tests.models.networks import make_batch
from tests.strict_device import strict_device, values, why_not


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
def test_the_encoders_chunks_change_no_number_on_one_thread(tokens, dtype):
    torch.manual_seed(tokens)
    layer = EncoderLayer(dim=64, num_heads=4, num_levels=1, num_points=2, ffn_dim=256).to(dtype)
    x, pos = torch.randn(2, tokens, 64, dtype=dtype), torch.randn(2, tokens, 64, dtype=dtype)
    references = torch.rand(2, tokens, 1, 2, dtype=dtype)
    with torch.no_grad():
        whole = layer(x, pos, references, [(1, tokens)], None)
        layer.chunk_tokens = 2048
        chunked = layer(x, pos, references, [(1, tokens)], None)
    # On some processors, float64 products of matrices with other numbers of rows round differently.
    tolerance = 8 * torch.finfo(dtype).eps if dtype == torch.float64 else 0.0
    torch.testing.assert_close(chunked, whole, rtol=tolerance, atol=tolerance)


def test_chunks_of_float32_tokens_are_finished_in_mixed_precision(monkeypatch):
    torch.manual_seed(0)
    layer = EncoderLayer(dim=16, num_heads=2, num_levels=1, num_points=2, ffn_dim=32)
    x, pos, references = torch.randn(2, 60, 16), torch.randn(2, 60, 16), torch.rand(2, 60, 1, 2)
    pieces, finish = [], layer.finish
    monkeypatch.setattr(layer, "finish", lambda own, out: pieces.append(own.shape[-2]) or finish(own, out))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        whole = layer(x, pos, references, [(6, 10)], None)
        layer.chunk_tokens = 20
        chunked = layer(x, pos, references, [(6, 10)], None)
    assert pieces == [60, *[20] * 6]
    assert chunked.dtype == whole.dtype == torch.float32
    torch.testing.assert_close(chunked, whole, rtol=0, atol=0.05)


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_detection_on_a_gpu_in_mixed_precision_runs_in_chunks(tiny_settings, precision, monkeypatch):
    model, lengths, finish = build_model(tiny_settings.model).eval(), [], EncoderLayer.finish
    monkeypatch.setattr(
        EncoderLayer, "finish", lambda layer, own, out: lengths.append(own.shape[-2]) or finish(layer, own, out)
    )
    images, mask, _ = make_batch()
    with strict_device(), torch.no_grad(), torch.autocast("cuda", dtype=precision):
        model, images, mask = model.to("cuda"), images.to("cuda"), mask.to("cuda")
        whole = values(model.encode(images, mask).memory)
        tokens = max(lengths)
        for layer in model.encoder.layers:
            layer.chunk_tokens = tokens // 2
        lengths.clear()
        chunked = values(model.encode(images, mask).memory)
    assert tokens // 3 <= min(lengths) <= max(lengths) <= tokens // 2
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole, rtol=0, atol=0.1)


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


def test_masks_of_exported_programs_are_those_of_the_network():
    generator = torch.Generator().manual_seed(0)
    for side in (1, 31, 150, 200, 608, 800, 1333):
        mask = torch.rand(1, side, side + 7, generator=generator) < 0.5
        shapes = [(-(-side // stride), (side + 7) // stride or 1) for stride in (1, 4, 8, 16, 32, 64, 3)]
        found, expected = (resize(mask, shapes, torch.float32) for resize in (nearest_cells, interpolate_nearest))
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs.bool())
