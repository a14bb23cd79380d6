"""Normalizers of losses, and counts that the images of a global batch share, across the processes of a training step.

As published, some normalizers are means over ranks and others are each rank's own, and images of different ranks share
neither the number of denoising groups nor that of positive queries. With `global_batch` the images of all ranks count
as one batch: several processes then compute what one process computes on the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, kw_only=True)
class Normalizers:
    """Reductions over ranks; the defaults are those of a single process.

    Attributes:
        reduce_mean: averages a tensor over ranks.
        reduce_max: maximum over ranks of each integer.
        world_size: number of processes.
        global_batch: whether the images of all ranks count as one batch; False: as published.
    """

    reduce_mean: Callable[[Tensor], Tensor] = _same
    reduce_max: Callable[[Sequence[int]], list[int]] = list
    world_size: int = 1
    global_batch: bool = False

    def mean_over_ranks(self, amount: Tensor) -> Tensor:
        """A normalizer that is published as a mean over ranks of at least 1.

        In a global batch the sum over all ranks is at least 1: gradients are averaged over ranks afterwards.
        """
        return self.reduce_mean(amount).clamp(min=1 / self.world_size if self.global_batch else 1)

    def per_rank(self, amount: float | Tensor, like: Tensor) -> float | Tensor:
        """A normalizer that is published as each rank's own amount, at least 1.

        Args:
            amount: of this rank.
            like: a tensor whose dtype and device the reduction over ranks uses.
        """
        if self.global_batch:
            return self.mean_over_ranks(torch.as_tensor(amount, dtype=like.dtype, device=like.device))
        return amount.clamp(min=1) if isinstance(amount, Tensor) else max(amount, 1)

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Maximum of each count over the images of the batch, given those of this rank."""
        return self.reduce_max(numbers) if self.global_batch else list(numbers)

    def smallest(self, numbers: Sequence[int]) -> list[int]:
        """Minimum of each count over the images of the batch, given those of this rank."""
        return [-number for number in self.largest([-number for number in numbers])]


SINGLE_PROCESS = Normalizers()
