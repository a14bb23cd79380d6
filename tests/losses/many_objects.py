"""Many objects, and the memory that a computation takes: nothing of anchors x objects may be held as a whole."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STRIDES = [4, 8, 16, 32]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make: how many live now and at most.

    `summed` is the most numbers that one sum was of: sums of whole numbers turn them into int64 within.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.summed = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.sum:
            self.summed = max(self.summed, args[0].numel())
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage):
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak_bytes(function):
    with LiveBytes() as live:
        result = function()
    del result
    return live.peak


def make_objects(count, size=(200, 160), *, dtype=torch.float32):
    """Boxes on a grid of 8 pixels, so that distances and IoUs are often equal; some boxes come twice."""
    generator = torch.Generator().manual_seed(count)
    limit = torch.tensor([size[1], size[0]]) // 8
    first = (torch.rand(count, 2, generator=generator) * (limit - 2)).floor()
    last = first + 1 + (torch.rand(count, 2, generator=generator) * (limit - first - 1)).floor()
    boxes = (torch.cat([first, last], 1) * 8).to(dtype)
    boxes[count // 2 : count // 2 + 2] = boxes[:1]
    return boxes
