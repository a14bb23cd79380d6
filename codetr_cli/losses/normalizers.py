"""What the processes of a training step agree on: normalisers, and numbers that belong to a whole batch.

As published, some normalisers are means over processes and others each process's own, and images of different
processes share neither a group of denoising queries nor a number of positive queries. `whole_batch` treats the images
of all processes as one batch instead: what one process computes on them is what many do.
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
    """How processes agree; the default is one process alone.

    Attributes:
        reduce_mean: averages a tensor over processes.
        reduce_max: the largest of each whole number in any process.
        processes: how many there are.
        whole_batch: whether their images count as one batch; False: as published.
    """

    reduce_mean: Callable[[Tensor], Tensor] = _same
    reduce_max: Callable[[Sequence[int]], list[int]] = list
    processes: int = 1
    whole_batch: bool = False

    def shared(self, amount: Tensor) -> Tensor:
        """A normaliser that is published as a mean over processes of at least 1.

        A whole batch has at least 1 in all processes together: gradients are averaged over processes afterwards.
        """
        return self.reduce_mean(amount).clamp(min=1 / self.processes if self.whole_batch else 1)

    def own(self, amount: float | Tensor, like: Tensor) -> float | Tensor:
        """A normaliser that is published as each process's own, at least 1.

        Args:
            amount: of this process.
            like: gives its dtype and device to a number that other processes are asked for.
        """
        if self.whole_batch:
            return self.shared(torch.as_tensor(amount, dtype=like.dtype, device=like.device))
        return amount.clamp(min=1) if isinstance(amount, Tensor) else max(amount, 1)

    def largest(self, number: int) -> int:
        """The largest of a number that an image of the batch has."""
        return self.reduce_max([number])[0] if self.whole_batch else number

    def smallest(self, number: int) -> int:
        """The smallest of a number that an image of the batch has."""
        return -self.largest(-number)


ALONE = Normalizers()
