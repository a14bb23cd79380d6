"""Layers that several parts of the network share."""

from __future__ import annotations

import torch

from codetr_cli.models.layers import LayerNorm2d


def test_norm_is_over_the_channels_of_a_cell():
    norm = LayerNorm2d(6).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)
