"""RoIAlign (arXiv 1703.06870) as in mmcv: bins without quantization, as many samples as a bin has cells.

The kernels of torchvision do the work. Their backward pass on a GPU adds in no fixed order; where deterministic
algorithms are enabled, an own backward pass of matrix products replaces it. (`torchvision.ops.roi_align` would replace
the forward pass too, by a formulation whose tensors have as many elements as all bins of all regions have cells.)

Bilinear interpolation and the mean over the samples of a bin are separable, so a pooled region is Y F X^T: with the
map F (H, W) of a channel, and matrices Y (P, H), X (P, W) of the weights of rows and columns in each bin.
Shape letters: B batch, C channels, P side of a pooled region, R regions, S samples per bin.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision  # noqa: F401 (registers the operator)
from torch import Tensor

CHUNK_ELEMENTS = 2**26
"""Elements of the largest temporary tensor of the ordered backward pass."""


def roi_align(feature_map: Tensor, regions: Tensor, *, size: int, scale: float) -> Tensor:
    """Pools regions of a map.

    Args:
        feature_map: (B, C, H, W).
        regions: (R, 5) of the same dtype: image index and xyxy pixels. No gradient.
        size: side of a pooled region in cells, P.
        scale: cells of the map per pixel.

    Returns:
        (R, C, P, P).
    """
    if torch.are_deterministic_algorithms_enabled() and feature_map.device.type != "cpu" and feature_map.requires_grad:
        return _OrderedRoiAlign.apply(feature_map, regions, size, scale)
    return _pool(feature_map, regions, size, scale)


def ordered_backward(gradient: Tensor, regions: Tensor, shape: tuple[int, int, int, int], scale: float) -> Tensor:
    """The gradient of the map, from sums in a fixed order.

    Args:
        gradient: (R, C, P, P) of the pooled regions.
        regions: (R, 5) as for `roi_align`.
        shape: (B, C, H, W) of the map.
        scale: as for `roi_align`.

    Returns:
        (B, C, H, W), in the dtype of the gradient, at least float32.
    """
    batch, channels, height, width = shape
    size = gradient.shape[-1]
    gradient, regions = gradient.to(_wide(gradient.dtype)), regions.to(_wide(gradient.dtype))
    result = gradient.new_zeros(batch, channels, height, width)
    if not len(regions):
        return result
    start = regions[:, 1:3] * scale - 0.5  # (R, 2) as (x, y)
    bins = (regions[:, 3:5] - regions[:, 1:3]) * scale / size
    samples = bins.ceil().clamp(min=0)
    image = regions[:, 0].long()
    order = image.argsort(stable=True)
    # The only wait: regions of each image, and the largest number of samples.
    counts = (image == torch.arange(batch, device=image.device)[:, None]).sum(1)  # (B,)
    *of_image, most = torch.cat([counts, samples.amax().long().view(1)]).tolist()
    at_once = max(1, CHUNK_ELEMENTS // (channels * size * height))
    for image_map, of_this in zip(result, torch.split(order, of_image), strict=True):
        for rows in torch.split(of_this, at_once):
            columns, lines = (
                _axis_weights(start[rows, axis], bins[rows, axis], samples[rows, axis], size, cells, most)
                for axis, cells in ((0, width), (1, height))
            )
            # (R, 1, H, P) @ (R, C, P, P) -> (C, H, R * P) @ (R * P, W)
            by_line = (lines.transpose(1, 2)[:, None] @ gradient[rows]).permute(1, 2, 0, 3).flatten(2)
            image_map += by_line @ columns.flatten(0, 1)
    return result


def _axis_weights(start: Tensor, bins: Tensor, samples: Tensor, size: int, cells: int, most: int) -> Tensor:
    """Weights of the cells of an axis in each bin.

    Args:
        start: (R,) of the region, in cells.
        bins: (R,) size of a bin in cells.
        samples: (R,) per bin; their mean is taken.
        size: bins of a region, P.
        cells: of the axis.
        most: largest of `samples`.

    Returns:
        (R, P, cells).
    """
    index = torch.arange(cells, device=start.device, dtype=start.dtype)
    of_bin = start[:, None] + torch.arange(size, device=start.device) * bins[:, None]  # (R, P)
    weights = start.new_zeros(len(start), size, cells)
    for sample in range(most):
        # Without samples nothing is added: the divisions by zero below do not matter.
        place = of_bin + (sample + 0.5) * (bins / samples)[:, None]
        counts = (sample < samples)[:, None] & (place >= -1) & (place <= cells)
        distance = (place.clamp(0, cells - 1)[..., None] - index).abs()  # (R, P, cells)
        weights += torch.where(counts[..., None], (1 - distance).clamp(min=0), 0)
    return weights / samples.clamp(min=1)[:, None, None]


class _OrderedRoiAlign(torch.autograd.Function):
    """Pools with torchvision's kernel, and adds the gradients in a fixed order."""

    @staticmethod
    def forward(ctx: Any, feature_map: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
        ctx.save_for_backward(regions)
        ctx.shape, ctx.scale, ctx.dtype = feature_map.shape, scale, feature_map.dtype
        return _pool(feature_map, regions, size, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (regions,) = ctx.saved_tensors
        return ordered_backward(gradients[0], regions, ctx.shape, ctx.scale).to(ctx.dtype), None, None, None


def _pool(feature_map: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    return torch.ops.torchvision.roi_align(feature_map, regions, scale, size, size, 0, True)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
