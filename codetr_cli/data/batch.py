"""Batches: padding at the bottom and right, the padding mask, and normalisation on the device.

Images are transferred as uint8 (a quarter of the RAM and of the copy to the device) and become floats in `normalize`.
Images on a canvas include their grey padding, which is part of the image: no padding mask covers it.
Shape letters: B batch, H W the batch's own height and width (the largest of its images), G boxes of one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import host_values
from codetr_cli.data.targets import Target


@dataclass
class Batch:
    """Images of different sizes on one canvas.

    Attributes:
        images: uint8 RGB (B, 3, H, W), each image at the top left, 0 elsewhere.
        padding_mask: bool (B, H, W), True = padding. It covers all but each target's `size`.
        targets: one an image, in the order of `images`.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, first: int, last: int, *, keep_padding: bool = False) -> Batch:
        """The images from `first` to before `last`, by default without the padding that only the others need."""
        targets = self.targets[first:last]
        height, width = self.images.shape[2:]
        if not keep_padding:
            height, width = (max(target["pad_size"][side] for target in targets) for side in (0, 1))
        return Batch(
            images=self.images[first:last, :, :height, :width],
            padding_mask=self.padding_mask[first:last, :height, :width],
            targets=targets,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device; asynchronous when this one is pinned."""
        asynchronous = torch.device(device).type == "cuda"  # others get no page-locked batches
        return self._map(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        targets = [
            {key: function(value) if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in self.targets
        ]
        return Batch(images=function(self.images), padding_mask=function(self.padding_mask), targets=targets)


def pad(batch: Batch, height: int, width: int) -> Batch:
    """The batch with more padding at the bottom and right, up to `height` and `width`; the images do not move."""
    padding = (0, width - batch.images.shape[3], 0, height - batch.images.shape[2])
    if not any(padding):
        return batch
    return Batch(F.pad(batch.images, padding), F.pad(batch.padding_mask, padding, value=True), batch.targets)


def _zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def collate(samples: Sequence[tuple[np.ndarray, Target]], allocate: Callable[[int], Tensor] = _zeros) -> Batch:
    """Pads images to the largest `pad_size` of the batch.

    Args:
        samples: pairs of a uint8 RGB image (h, w, 3) and its target, whose `size` is the valid (height, width) and
            whose `pad_size` the size the image counts as padded to on its own, not smaller than the image.
        allocate: returns one block of the given number of bytes, uint8, all 0, for images and then padding masks.
    """
    count = len(samples)
    height = max(target["pad_size"][0] for _, target in samples)
    width = max(target["pad_size"][1] for _, target in samples)
    block = allocate(batch_bytes((count, 3, height, width)))
    images, padding_mask = batch_views(block, (count, 3, height, width))
    for i, (image, target) in enumerate(samples):
        planes = list(images[i, :, : image.shape[0], : image.shape[1]].numpy())
        cv2.mixChannels([image], planes, [0, 0, 1, 1, 2, 2])  # interleaved pixels into planes
        valid_height, valid_width = target["size"]
        padding_mask[i, valid_height:] = True
        padding_mask[i, :valid_height, valid_width:] = True
    return Batch(images=images, padding_mask=padding_mask, targets=[target for _, target in samples])


def batch_bytes(shape: tuple[int, ...]) -> int:
    """Size of the block that holds images of `shape` (B, 3, H, W) and their padding masks."""
    count, channels, height, width = shape
    return count * (channels + 1) * height * width


def batch_views(block: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and padding masks (B, H, W) within a block of `batch_bytes` or more."""
    count, _, height, width = shape
    pixels = math.prod(shape)
    masks = block[pixels : batch_bytes(shape)].view(torch.bool)
    return block[:pixels].view(shape), masks.view(count, height, width)


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
