"""Regions are pooled from the map of their size."""

from __future__ import annotations

import torch

from codetr_cli.models.pooling import RegionPooling


def test_regions_are_pooled_from_the_map_of_their_size():
    pooling = RegionPooling(strides=[4, 8, 16], output_size=3, finest_scale=56)
    maps = [torch.full((1, 1, 64 // 2**i, 64 // 2**i), float(i)) for i in range(3)]
    sides = torch.tensor([10.0, 55, 111, 113, 223, 225])
    regions = torch.stack([0 * sides, 0 * sides, 0 * sides, sides, sides], 1)
    assert pooling(maps, regions)[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 2]
    backwards = regions.flip(0)
    assert pooling(maps, backwards, [3, 2, 1])[:, 0, 0, 0].tolist() == [2, 1, 1, 0, 0, 0]


def test_regions_are_counted_before_it_is_known_which_count():
    pooling = RegionPooling(strides=[4, 8, 16], output_size=3, finest_scale=56)
    sides = torch.tensor([[10.0, 113, 225], [120, 0, 55]])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], -1)
    counted = torch.tensor([[True, True, True], [True, False, False]])
    assert pooling.count_levels(boxes, counted).tolist() == [1, 2, 1]
    assert pooling.count_levels(boxes, torch.ones_like(counted)).tolist() == [3, 2, 1]
