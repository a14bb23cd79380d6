from __future__ import annotations

import pytest
import torch

from codetr_cli.models.feed_forward import FeedForward


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return FeedForward(8, 32).double()


def gradients(layer, x, chunk):
    layer.training_chunk_tokens = chunk
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("shape", [(2, 37, 8), (1, 3, 8), (50, 8)])
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_change_neither_result_nor_gradients(layer, shape, chunk):
    x = torch.randn(shape, dtype=torch.float64)
    for ours, plain in zip(gradients(layer, x, chunk), gradients(layer, x, 0), strict=True):
        torch.testing.assert_close(ours, plain)


def test_strided_inputs_and_gradients_are_taken(layer):
    x = torch.randn(8, 37, 2, dtype=torch.float64).permute(2, 1, 0)
    for ours, plain in zip(gradients(layer, x, 5), gradients(layer, x.contiguous(), 0), strict=True):
        torch.testing.assert_close(ours, plain)
    layer.training_chunk_tokens = 5
    layer(x).sum().backward()  # the gradient of a sum is one number, expanded


def test_numerical_gradients(layer):
    layer.training_chunk_tokens = 3
    x = torch.randn(1, 7, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_nothing_of_the_hidden_numbers_is_kept(layer):
    kept = []
    layer.training_chunk_tokens = 16
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(torch.randn(2, 50, 8, dtype=torch.float64, requires_grad=True))
    assert kept
    assert all(shape[0] != 100 and 32 not in shape[:-1] for shape in kept if len(shape) == 3)
    assert (2, 50, 32) not in kept


def test_mixed_precision_and_inference_take_the_plain_way(layer):
    x = torch.randn(2, 5000, 8, dtype=torch.float64)
    assert layer.recomputes_hidden(x)
    with torch.no_grad():
        assert not layer.recomputes_hidden(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not layer.recomputes_hidden(x)
    assert not layer.recomputes_hidden(x[:, :3])
