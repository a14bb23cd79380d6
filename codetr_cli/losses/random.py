"""The source of all random numbers of a training step: tests replace it to replay recorded steps.

The default uses torch's global generators, whose state a checkpoint keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RandomSource:
    """Random tensors for denoising and sampling."""

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) with the dtype and device of `like`."""
        return torch.rand(shape, dtype=like.dtype, device=like.device)

    def integers(self, high: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uniform int64 numbers in [0, high) on the device of `like`."""
        return torch.randint(high, shape, device=like.device)

    def permutation(self, count: int, like: Tensor) -> Tensor:
        """A random permutation of 0 ... count - 1, int64 on the device of `like`."""
        return torch.randperm(count, device=like.device)
