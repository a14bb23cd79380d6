"""Pools regions from a pyramid of maps. Behaviour of mmdet's SingleRoIExtractor with RoIAlign.

Shape letters: C channels, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from codetr_cli.boxes import box_area


def number_regions(boxes: Sequence[Tensor]) -> Tensor:
    """The boxes (R_i, 4) of every image as one tensor (R, 5) whose first column is the image index."""
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b], -1) for i, b in enumerate(boxes)])


def pool_map(feature_map: Tensor, regions: Tensor, *, size: int, stride: float) -> Tensor:
    """Pools regions of one map; also without any region, so that the map stays part of the graph.

    Args:
        feature_map: (B, C, H, W).
        regions: (R, 5) image index and xyxy pixels.
        size: side of a pooled region in cells.
        stride: pixels per cell of the map.

    Returns:
        (R, C, size, size).
    """
    regions = regions.to(feature_map.dtype)
    return roi_align(feature_map, regions, size, 1 / stride, sampling_ratio=0, aligned=True)


class RegionPooling(nn.Module):
    """Pools each region from the map for its size; it has no parameters.

    Args:
        strides: pixels per cell of the maps that are pooled from; other maps are ignored.
        output_size: side of a pooled region in cells.
        finest_scale: regions up to this size (square root of the area, pixels) use the first map.
    """

    def __init__(self, *, strides: Sequence[int], output_size: int, finest_scale: int) -> None:
        super().__init__()
        self.strides, self.output_size, self.finest_scale = tuple(strides), output_size, finest_scale

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Pools regions.

        Args:
            maps: (B, C, H, W), at least as many as there are strides.
            regions: (R, 5) image index and xyxy pixels.

        Returns:
            (R, C, output_size, output_size).
        """
        scale = box_area(regions[:, 1:]).sqrt()
        levels = torch.floor(torch.log2(scale / self.finest_scale + 1e-6)).clamp(0, len(self.strides) - 1)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], self.output_size, self.output_size)
        for level, stride in enumerate(self.strides):
            index = (levels == level).nonzero()[:, 0]
            of_level = pool_map(maps[level], regions[index], size=self.output_size, stride=stride)
            pooled = pooled.index_add(0, index, of_level)
        return pooled
