"""How a worker hands a batch over: one block of shared memory, or a pipe where there is no shared memory left.

Torch's own way shares every tensor of a batch on its own: a file descriptor each, kept open in both processes. It does
so in a thread whose errors nobody sees, so that a full /dev/shm becomes a bus error or a batch that never comes. Here
everything large lies in one block that is reserved before it is written, and what fails, fails in the worker's sight.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.data.batch import Batch, Target, batch_bytes, batch_views, collate


@dataclass(frozen=True)
class SharedTensor:
    """Stands in a target for a tensor that lies in the block.

    Attributes:
        shape: of the uint8 tensor.
    """

    shape: tuple[int, ...]


@dataclass(frozen=True)
class SharedBatch:
    """A batch on its way from one process to another.

    Attributes:
        shape: (B, 3, H, W) of the images.
        block: images, padding masks, and then the objects' masks, uint8: pickled shared memory, or the bytes
            themselves.
        targets: with arrays in place of tensors, and `SharedTensor` in place of masks.
        trouble: why the bytes had to go through the pipe; absent when they did not.
    """

    shape: tuple[int, ...]
    block: bytes | np.ndarray
    targets: list[Target]
    trouble: str | None = None

    def open(self) -> Batch:
        """The batch, in the receiving process; once only."""
        block: Tensor = (
            ForkingPickler.loads(self.block) if isinstance(self.block, bytes) else torch.from_numpy(self.block)
        )
        images, padding_mask = batch_views(block, self.shape)
        position = batch_bytes(self.shape)

        def unpacked(value: Any) -> Any:
            nonlocal position
            if isinstance(value, SharedTensor):
                start, position = position, position + math.prod(value.shape)
                return block[start:position].view(value.shape)
            return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

        return Batch(images=images, padding_mask=padding_mask, targets=_mapped(self.targets, unpacked))

    def pin_memory(self) -> Pinned:
        """The batch in page-locked memory; torch's thread for that calls it."""
        return Pinned(self.open().pin_memory(), self.trouble)


@dataclass(frozen=True)
class Pinned:
    """A batch that has arrived, in page-locked memory.

    Attributes:
        batch: itself.
        trouble: as the parcel's.
    """

    batch: Batch
    trouble: str | None

    def open(self) -> Batch:
        """The batch."""
        return self.batch


def pack(samples: Sequence[tuple[np.ndarray, Target]]) -> SharedBatch:
    """Puts samples together as `collate` does, ready to be handed over."""
    bitmaps = [value for _, target in samples for value in target.values() if _belongs_in_block(value)]
    extra = sum(bitmap.nbytes for bitmap in bitmaps)
    reserved: list[tuple[Tensor, bytes | np.ndarray, str | None]] = []

    def allocate(size: int) -> Tensor:
        reserved.append(_reserve(size + extra))
        return reserved[0][0]

    batch = collate(samples, allocate)
    ((block, handle, trouble),) = reserved
    position = batch_bytes(tuple(batch.images.shape))
    for bitmap in bitmaps:
        block[position : position + bitmap.nbytes] = bitmap.flatten()
        position += bitmap.nbytes
    return SharedBatch(tuple(batch.images.shape), handle, _mapped(batch.targets, _packed), trouble)


def _reserve(size: int) -> tuple[Tensor, bytes | np.ndarray, str | None]:
    """A block of zeros, what is sent of it, and why it could not be shared."""
    try:
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        if hasattr(os, "posix_fallocate"):
            # Without it, memory that is not there is noticed by the write that kills the process.
            os.posix_fallocate(storage._share_fd_cpu_()[0], 0, size)
        block = torch.tensor([], dtype=torch.uint8).set_(storage)
        return block, bytes(ForkingPickler.dumps(block)), None
    except (OSError, RuntimeError) as error:
        block = torch.zeros(size, dtype=torch.uint8)
        return block, block.numpy(), getattr(error, "strerror", None) or str(error).splitlines()[0]


def _belongs_in_block(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8


def _packed(value: Any) -> Any:
    if _belongs_in_block(value):
        return SharedTensor(tuple(value.shape))
    return value.numpy() if isinstance(value, Tensor) else value


def _mapped(targets: Sequence[Target], function: Callable[[Any], Any]) -> list[Target]:
    return [{key: function(value) for key, value in target.items()} for target in targets]
