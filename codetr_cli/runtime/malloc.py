"""Settings of glibc's memory allocator, for training on a CPU and for servers."""

from __future__ import annotations

import ctypes
import os
import sys

LARGE_BYTES = 20 * 2**20
"""Blocks of this size and larger are returned to the system when freed.

Above the activations of a chunk of the inference encoder (16 MiB), which are better reused; below those of an image of
half a megapixel.
"""

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h


def return_large_blocks() -> bool:
    """Makes glibc return large blocks to the system as soon as they are freed.

    By default glibc raises its threshold to the largest block freed so far, up to 32 MiB. The activations of a training
    step then share a heap with longer-lived data, and fragmentation takes a fifth of the step's memory.

    Returns:
        whether it was set: not with another C library, or where the environment sets the threshold.
    """
    return _set(M_MMAP_THRESHOLD, LARGE_BYTES, "MALLOC_MMAP_THRESHOLD_")


def share_one_heap() -> bool:
    """Makes threads that start from now on use the heap of the process.

    By default each gets one of its own. Images and results are allocated by one thread and freed by another, which
    leaves holes in all heaps: a server under load grew by 1 % in ten minutes without having more in memory.

    Returns:
        as `return_large_blocks`.
    """
    return _set(M_ARENA_MAX, 1, "MALLOC_ARENA_MAX")


def _set(parameter: int, value: int, variable: str) -> bool:
    """Sets a parameter, unless a variable of the environment does."""
    if sys.platform != "linux" or variable in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(parameter, value) == 1
