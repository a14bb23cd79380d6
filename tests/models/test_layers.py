"""Layers that several parts of the network share."""

from __future__ import annotations

import torch

from codetr_cli.models.layers import LayerNorm2d, float64_device


def test_norm_is_over_the_channels_of_a_cell():
    norm = LayerNorm2d(6).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_constants_in_float64_are_computed_on_the_cpu_for_apple():
    assert float64_device(torch.device("mps")) == torch.device("cpu")
    for name in ("cpu", "cuda:1", "xpu", "meta"):
        assert float64_device(torch.device(name)) == torch.device(name)
