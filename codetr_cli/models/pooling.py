"""Pools regions from a pyramid of maps. Behaviour of mmdet's SingleRoIExtractor with RoIAlign.

Shape letters: C channels, L maps, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr_cli.boxes import box_area, host_numbers
from codetr_cli.ops.roi_align import roi_align
from codetr_cli.tracing import is_exporting


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
    return roi_align(feature_map, regions, size=size, scale=1 / stride)


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

    def levels(self, boxes: Tensor) -> Tensor:
        """The number of the map (...,), int64, that each box (..., 4) xyxy pixels is pooled from."""
        scale = box_area(boxes).sqrt()
        levels = torch.floor(torch.log2(scale / self.finest_scale + 1e-6)).clamp(0, len(self.strides) - 1)
        return torch.nan_to_num(levels).long()

    def count_levels(self, boxes: Tensor, counted: Tensor) -> Tensor:
        """How many boxes are pooled from each map, (L,) int64 on the device of the boxes.

        Args:
            boxes: (..., 4) xyxy pixels.
            counted: bool (...,); other boxes do not count.
        """
        levels = torch.where(counted, self.levels(boxes), -1)
        numbers = torch.arange(len(self.strides), device=levels.device)
        return (levels.flatten() == numbers[:, None]).sum(1)

    def forward(self, maps: Sequence[Tensor], regions: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Pools regions.

        Args:
            maps: (B, C, H, W), at least as many as there are strides.
            regions: (R, 5) image index and xyxy pixels.
            counts: of `count_levels`; None: counted here, which waits for the device.

        Returns:
            (R, C, output_size, output_size).
        """
        if is_exporting():
            return self._pool_each_map(maps, regions)
        if counts is None:
            whole = torch.ones_like(regions[:, 0], dtype=torch.bool)
            (counts,) = host_numbers(self.count_levels(regions[:, 1:], whole))
        order = self.levels(regions[:, 1:]).argsort(stable=True)
        of_levels = zip(maps, torch.split(regions[order], list(counts)), self.strides, strict=False)
        pooled = torch.cat([pool_map(m, own, size=self.output_size, stride=stride) for m, own, stride in of_levels])
        return torch.empty_like(pooled).index_copy(0, order, pooled)

    def _pool_each_map(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Pools every region from every map, and selects; no shape depends on a value. Arguments as for `forward`."""
        levels = self.levels(regions[:, 1:])
        pooled = None
        for level, (feature_map, stride) in enumerate(zip(maps, self.strides, strict=False)):
            chosen = levels == level
            own = torch.where(chosen[:, None], regions, 0.0)  # an empty region costs nothing
            of_map = pool_map(feature_map, own, size=self.output_size, stride=stride)
            pooled = of_map if pooled is None else torch.where(chosen[:, None, None, None], of_map, pooled)
        assert pooled is not None
        return pooled
