"""Masks in four sizes, each computed from the one before and the finest map (RefineMask, arXiv 2104.08569).

Behaviour of Sense-X/Co-DETR's SimpleRefineMaskHead with MultiBranchFusionAvg.
Shape letters: C channels, K classes, R regions, s cells along a pooled region's side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.models.layers import LayerNorm2d
from codetr_cli.models.mask_grid import MASK_THRESHOLD, boundary, enlarge
from codetr_cli.models.mask_heads.fcn import init_mask_convs
from codetr_cli.models.pooling import pool_map

NUM_STAGES = 3
"""Number of refinements; there is one more mask."""
NORM_EPS = 1e-5
"""Parity: ten times the epsilon of the layer norms of the neck."""


class RefineMaskHead(nn.Module):
    """Predicts the mask of each region's class at s, 2 s and 4 s cells, and a class-agnostic one at 8 s.

    Args:
        in_dim: channels of the maps.
        dim: C; each refinement halves it.
        num_classes: K.
        instance_convs: convolutions on each pooled region.
        semantic_convs: convolutions on the whole finest map.
        dilations: of the parallel convolutions of a refinement.
        stride: pixels per cell of the finest map.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        num_classes: int,
        instance_convs: int,
        semantic_convs: int,
        dilations: Sequence[int],
        stride: int,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.instance_convs = nn.ModuleList(NormedConv(in_dim if i == 0 else dim, dim) for i in range(instance_convs))
        self.semantic_convs = nn.ModuleList(NormedConv(in_dim if i == 0 else dim, dim) for i in range(semantic_convs))
        channels = [dim // 2**i for i in range(NUM_STAGES + 1)]
        self.semantic = nn.ModuleList(nn.Conv2d(dim, count, 1) for count in channels[:-1])
        self.stages = nn.ModuleList(RefineStage(dim=count, dilations=dilations) for count in channels[:-1])
        self.logits = nn.ModuleList(nn.Conv2d(count, num_classes, 1) for count in channels[:-1])
        self.logits.append(nn.Conv2d(channels[-1], 1, 1))
        init_mask_convs(self)

    def semantic_maps(self, finest_map: Tensor) -> list[Tensor]:
        """Maps (B, C / 2**i, H, W) that each refinement pools from, computed from the finest map (B, in_dim, H, W)."""
        x = finest_map
        for conv in self.semantic_convs:
            x = conv(x)
        return [F.relu(conv(x)) for conv in self.semantic]

    def forward(self, pooled: Tensor, semantic_maps: Sequence[Tensor], regions: Tensor, labels: Tensor) -> list[Tensor]:
        """Predicts masks.

        Args:
            pooled: (R, in_dim, s, s).
            semantic_maps: of `semantic_maps`.
            regions: (R, 5) image index and xyxy pixels.
            labels: (R,) classes.

        Returns:
            logits (R, 1, s, s), (R, 1, 2 s, 2 s), (R, 1, 4 s, 4 s) and (R, 1, 8 s, 8 s).
        """
        x, size = pooled, pooled.shape[-1]
        for conv in self.instance_convs:
            x = conv(x)
        masks = []
        for i, (stage, semantic) in enumerate(zip(self.stages, semantic_maps, strict=True)):
            masks.append(logits_of_class(self.logits[i], x, labels))
            cut = pool_map(semantic, regions, size=size * 2**i, stride=self.stride)
            x = stage(x, cut, masks[-1].sigmoid())
            if i < NUM_STAGES - 1:
                # Parity: the only interpolation that aligns cell edges instead of centres.
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        # Parity: the last mask is computed at 4 s and then enlarged.
        masks.append(enlarge(self.logits[-1](x), size * 8))
        return masks


class NormedConv(nn.Module):
    """A 3x3 convolution, layer norm over the channels, ReLU.

    Args:
        in_dim: channels of the input.
        dim: channels of the output.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, padding=1, bias=False)
        self.norm = LayerNorm2d(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, H, W) to (B, dim, H, W)."""
        return F.relu(self.norm(self.conv(x)))


class RefineStage(nn.Module):
    """Fuses a region, the same region of the finest map, and the previous mask.

    Args:
        dim: channels of the region; the output has half.
        dilations: of the parallel convolutions.
    """

    def __init__(self, *, dim: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(2 * dim + 1, dim, 1)
        self.branches = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=d, dilation=d) for d in dilations)
        self.merge = nn.Conv2d(dim, dim, 1)
        self.out = nn.Conv2d(dim, dim // 2 - 1, 1)

    def forward(self, x: Tensor, semantic: Tensor, mask: Tensor) -> Tensor:
        """Maps the region (R, dim, s, s), its part of the finest map, likewise, and its mask to (R, dim / 2, s, s).

        Parity: the mask (R, 1, s, s) comes as probabilities.
        """
        x = F.relu(self.fuse(torch.cat([x, semantic, mask], 1)))
        joined = x.mean((2, 3), keepdim=True)
        for branch in self.branches:
            joined = joined + F.relu(branch(x))
        x = F.relu(self.merge(joined))
        return torch.cat([F.relu(self.out(x)), mask], 1)


def logits_of_class(conv: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Output of a 1x1 convolution for one class of each region; all classes would take gigabytes with LVIS.

    Args:
        conv: with K output channels.
        x: (R, C, s, s).
        labels: (R,) classes.

    Returns:
        (R, 1, s, s).
    """
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    weight, bias = conv.weight[:, :, 0, 0][labels], conv.bias[labels]  # (R, C), (R,)
    flat = torch.baddbmm(bias[:, None, None], weight[:, None], x.flatten(2))  # (R, 1, s * s)
    return flat.view(-1, 1, *x.shape[2:])


def keep_fine_boundaries(masks: Sequence[Tensor]) -> Tensor:
    """The final logits (R, 1, 8 s, 8 s): each finer mask replaces the coarser one only at its boundary.

    Args:
        masks: logits of `RefineMaskHead.forward`. Parity: the first of them is not used.
    """
    merged = masks[1]
    for finer in masks[2:]:
        size = finer.shape[-1]
        inside = ~boundary(merged[:, 0].sigmoid() >= MASK_THRESHOLD, width=1)
        keeps = enlarge(inside[:, None].to(finer.dtype), size) >= 0.5
        merged = torch.where(keeps, enlarge(merged, size), finer)
    return merged
