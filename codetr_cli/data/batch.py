"""Samples into batches: padding at the bottom and right, the padding mask, and normalisation on the device.

Images travel as uint8 (a quarter of the memory and of the copy to the device) and become floats in `normalize`.
Images on a canvas come with their grey padding, which is part of the image: no padding mask covers it.
Shape letters: B batch, H W the batch's own height and width (the largest of its images), G boxes of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.boxes import host_values

Target = dict[str, Any]
"""What is known of one image; see `codetr_cli.data.coco` for the keys."""


@dataclass
class Batch:
    """Images of different sizes on one canvas.

    Attributes:
        images: uint8 RGB (B, 3, H, W), each image at the top left, 0 elsewhere.
        padding_mask: bool (B, H, W), True = padding. It covers all but each target's `size`.
        targets: one dict an image, in the order of `images`.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device; asynchronous when this one is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        targets = [
            {key: function(value) if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in self.targets
        ]
        return Batch(images=function(self.images), padding_mask=function(self.padding_mask), targets=targets)


def collate(samples: Sequence[tuple[np.ndarray, Target]]) -> Batch:
    """Pads images to the largest `pad_size` of the batch.

    Args:
        samples: pairs of a uint8 RGB image (h, w, 3) and its target, whose `size` is the valid (height, width) and
            whose `pad_size` the size the image counts as padded to on its own, not smaller than the image.
    """
    height = max(target["pad_size"][0] for _, target in samples)
    width = max(target["pad_size"][1] for _, target in samples)
    images = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    padding_mask = torch.ones(len(samples), height, width, dtype=torch.bool)
    for i, (image, target) in enumerate(samples):
        images[i, :, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
        valid_height, valid_width = target["size"]
        padding_mask[i, :valid_height, :valid_width] = False
    return Batch(images=images, padding_mask=padding_mask, targets=[target for _, target in samples])


def normalize(images: Tensor, padding_mask: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turns pixels into the network's input.

    Parity: mean and std are float32 values, subtraction and division are rounded to float32 one after the other. For
    every pixel value this equals MMDetection's division and, to the last bit, mmcv's multiplication by 1 / std.

    Args:
        images: uint8 (or float, 0..255) RGB (B, 3, H, W).
        padding_mask: bool (B, H, W), True = padding.
        mean: of each RGB channel, 0..255.
        std: standard deviation of each RGB channel, 0..255.

    Returns:
        float32 (B, 3, H, W), exactly 0 where padded.
    """
    shape = (1, 3, 1, 1)
    values = images.to(torch.float32, copy=True)
    values.sub_(host_values(mean, values).view(shape))
    values.div_(host_values(std, values).view(shape))
    return values.masked_fill_(padding_mask[:, None], 0.0)
