"""Regions are pooled from the map of their size."""

from __future__ import annotations

import torch

from codetr_cli.models.pooling import RegionPooling


def test_regions_are_pooled_from_the_map_of_their_size():
    pooling = RegionPooling(strides=[4, 8, 16], output_size=3, finest_scale=56)
    maps = [torch.full((1, 1, 64 // 2**i, 64 // 2**i), float(i)) for i in range(3)]
    sides = torch.tensor([10.0, 55, 111, 113, 223, 225])
    regions = torch.stack([0 * sides, 0 * sides, 0 * sides, sides, sides], 1)
    levels = pooling(maps, regions)[:, 0, 0, 0]
    assert levels.tolist() == [0, 0, 0, 1, 1, 2]
