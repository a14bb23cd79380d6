"""Transfer of a batch from a worker: one block of shared memory, or a pipe where there is no shared memory left.

PyTorch shares every tensor of a batch separately: a file descriptor each, which stays open in both processes. It does
so in a thread whose errors are lost, so that a full /dev/shm becomes a bus error or a batch that never arrives. Here
all large data is in one block that is allocated before it is written, and errors are raised in the worker itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.data.batch import Batch, batch_bytes, batch_views, collate
from codetr_cli.data.targets import Target


@dataclass(frozen=True)
class SharedTensor:
    """Placeholder in a target for a uint8 tensor of this shape in the block."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class SharedBatch:
    """A batch in transfer from one process to another.

    Attributes:
        shape: (B, 3, H, W) of the images.
        block: images, padding masks, and then the objects' masks, uint8: pickled shared memory, or the bytes
            themselves.
        targets: with arrays in place of tensors, and `SharedTensor` in place of masks.
        shm_error: why shared memory could not be used; None when it was.
        received: the batch, once it is in page-locked memory.
    """

    shape: tuple[int, ...]
    block: bytes | np.ndarray
    targets: list[Target]
    shm_error: str | None = None
    received: Batch | None = None

    def open(self) -> Batch:
        """The batch, in the receiving process; call it only once."""
        if self.received is not None:
            return self.received
        block: Tensor = (
            ForkingPickler.loads(self.block) if isinstance(self.block, bytes) else torch.from_numpy(self.block)
        )
        images, padding_mask = batch_views(block, self.shape)
        offset = batch_bytes(self.shape)

        def unpacked(value: Any) -> Any:
            nonlocal offset
            if isinstance(value, SharedTensor):
                start, offset = offset, offset + math.prod(value.shape)
                return block[start:offset].view(value.shape)
            return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

        return Batch(images=images, padding_mask=padding_mask, targets=_mapped(self.targets, unpacked))

    def pin_memory(self) -> SharedBatch:
        """The batch received, in page-locked memory; called by PyTorch's thread for pinned memory."""
        return replace(self, block=b"", targets=[], received=self.open().pin_memory())


def pack(samples: Sequence[tuple[np.ndarray, Target]]) -> SharedBatch:
    """Collates samples like `collate`, for transfer to another process."""
    bitmaps = [value for _, target in samples for value in target.values() if _belongs_in_block(value)]
    extra = sum(bitmap.nbytes for bitmap in bitmaps)
    allocated: list[tuple[Tensor, bytes | np.ndarray, str | None]] = []

    def allocate(size: int) -> Tensor:
        allocated.append(_allocate(size + extra))
        return allocated[0][0]

    batch = collate(samples, allocate)
    ((block, handle, shm_error),) = allocated
    offset = batch_bytes(tuple(batch.images.shape))
    for bitmap in bitmaps:
        block[offset : offset + bitmap.nbytes] = bitmap.flatten()
        offset += bitmap.nbytes
    return SharedBatch(tuple(batch.images.shape), handle, _mapped(batch.targets, _packed), shm_error)


def _allocate(size: int) -> tuple[Tensor, bytes | np.ndarray, str | None]:
    """A block of zeros, the object to send for it, and why it could not be shared."""
    try:
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        if hasattr(os, "posix_fallocate"):
            # Without it, missing memory shows only at the write, as a signal that kills the process.
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
