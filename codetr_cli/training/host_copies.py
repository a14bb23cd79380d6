"""Copies of tensors in host memory, for checkpoints that are written while training continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BUFFER_BYTES = 32 * 2**20
"""Of each of two page-locked buffers: large enough for the full speed of the bus, and all that stays page-locked.

PyTorch rounds page-locked blocks up to powers of two and keeps them: a copy of a whole network, its optimizer and its
average would take up to twice their size for the rest of the training.
"""


class HostCopies:
    """Copies tensors into ordinary host memory: from a GPU through two page-locked buffers in turn.

    While one buffer is filled by the GPU, the other one is emptied. Copies are complete after `finish`.

    Args:
        device: of the tensors, which may be on the CPU too.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: list[_Buffer] = []

    def __call__(self, value: Any) -> Any:
        """A copy of a tensor, or of all tensors in dicts, lists and tuples, with their strides."""
        if isinstance(value, Tensor):
            return self._copy(value.detach())
        if isinstance(value, Mapping):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self(item) for item in value)
        return value

    def finish(self) -> None:
        """Waits until all copies are complete."""
        for buffer in self._buffers:
            buffer.mark(self.device)
        for buffer in self._buffers:
            buffer.empty()

    def _copy(self, value: Tensor) -> Tensor:
        if value.device.type == "cpu":
            return value.clone()
        if self.device.type != "cuda":
            return value.cpu()
        host = torch.empty_like(value, device="cpu")
        if host.stride() != value.stride():  # not dense: elements are not next to each other
            value, host = value.contiguous(), host.contiguous()
        source, target = _bytes(value), _bytes(host)
        done = 0
        while done < len(source):
            buffer = self._with_room()
            done += buffer.take(source[done:], target[done:])
        return host

    def _with_room(self) -> _Buffer:
        """The buffer to fill; the last of the list, because they take turns."""
        if not self._buffers:
            self._buffers = [_Buffer(), _Buffer()]
        buffer = self._buffers[-1]
        if buffer.room == 0:
            buffer.mark(self.device)
            self._buffers.reverse()
            buffer = self._buffers[-1]
            buffer.empty()
        return buffer


class _Buffer:
    """Page-locked memory, and where its content belongs."""

    def __init__(self) -> None:
        self.memory = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True)
        self.room = BUFFER_BYTES
        self.targets: list[Tensor] = []
        self.filled: torch.cuda.Event | None = None

    def take(self, source: Tensor, target: Tensor) -> int:
        """Starts to copy as many of the bytes as there is room for, and returns their number."""
        count = min(len(source), self.room)
        start = BUFFER_BYTES - self.room
        self.memory[start : start + count].copy_(source[:count], non_blocking=True)
        self.targets.append(target[:count])
        self.room -= count
        return count

    def mark(self, device: torch.device) -> None:
        """Remembers the point in the GPU's queue at which the content is complete."""
        self.filled = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.filled.record(torch.cuda.current_stream(device))

    def empty(self) -> None:
        """Waits for the content and moves it to where it belongs."""
        if self.filled is not None:
            self.filled.synchronize()
        parts = torch.split(self.memory[: BUFFER_BYTES - self.room], [len(target) for target in self.targets])
        for target, part in zip(self.targets, parts, strict=True):
            target.copy_(part)
        self.room, self.targets, self.filled = BUFFER_BYTES, [], None


def _bytes(dense: Tensor) -> Tensor:
    """The memory of a dense tensor, uint8."""
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
