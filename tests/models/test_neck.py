"""Necks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from codetr_cli.models.neck import ChannelMapper, FeaturePyramid


@pytest.mark.parametrize(("height", "width"), [(8, 12), (13, 15), (5, 7)])
def test_pyramid_gives_five_maps_around_the_backbones(height, width):
    neck = FeaturePyramid(in_channels=32, out_channels=8)
    maps = neck([torch.randn(2, 32, height, width)])
    half, quarter = ((-(-s // 2)) for s in (height, width)), ((-(-s // 4)) for s in (height, width))
    sizes = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width), tuple(half), tuple(quarter)]
    assert [tuple(m.shape) for m in maps] == [(2, 8, *size) for size in sizes]


def test_coarse_paths_pool_before_they_project():
    neck = FeaturePyramid(in_channels=16, out_channels=8).double()
    x = torch.randn(1, 16, 9, 6, dtype=torch.float64)
    pooled = F.max_pool2d(x, 3, stride=2, padding=1)
    conv, norm, gelu = neck.p5[1:4]
    expected = neck.p5[5](neck.p5[4](gelu(norm(conv(pooled)))))
    torch.testing.assert_close(neck([x])[3], expected)
    torch.testing.assert_close(gelu(x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))


def test_fine_paths_repeat_pixels_before_their_convolution():
    neck = FeaturePyramid(in_channels=16, out_channels=8).double()
    x = torch.randn(1, 16, 4, 5, dtype=torch.float64)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(neck([x])[1], neck.p3[1:](doubled))


def test_pyramid_has_the_published_modules():
    names = {name for name, _ in FeaturePyramid(in_channels=16, out_channels=8).named_parameters()}
    weights = {"p2": (1, 2, 5, 6, 8, 9, 11, 12), "p3": (1, 2, 4, 5, 7, 8), "p4": (0, 1, 3, 4), "p5": (1, 2, 4, 5)}
    weights["p6"] = (1, 2, 4, 5, 7, 8)
    assert {name for name in names if name.endswith("weight")} == {
        f"{path}.{i}.weight" for path, indices in weights.items() for i in indices
    }
    assert "p4.0.bias" not in names


def test_mapper_makes_further_levels_of_the_backbones_last_map():
    neck = ChannelMapper(in_channels=[4, 8], out_channels=8, num_levels=4, norm_groups=4)
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)]
    found = neck(maps)
    assert [tuple(m.shape) for m in found] == [(1, 8, 8, 8), (1, 8, 4, 4), (1, 8, 2, 2), (1, 8, 1, 1)]
    torch.testing.assert_close(found[2], neck.extra_convs[0](maps[1]))
    torch.testing.assert_close(found[3], neck.extra_convs[1](found[2]))
