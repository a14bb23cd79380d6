"""Masks of whole images, for comparisons; the program itself keeps the parts that boxes cover."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_cli.models.mask_grid import paste_crops


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The masks as bool (N, height, width) on the host; arguments as for `paste_crops`."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for i, pasted in paste_crops(probabilities, boxes, size):
        height, width = pasted.pixels.shape
        masks[i, pasted.top : pasted.top + height, pasted.left : pasted.left + width] = pasted.pixels
    return masks
