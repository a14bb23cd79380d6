"""A setting of glibc's memory allocator for training on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

LARGE_BYTES = 20 * 2**20
"""Blocks of this size and larger are returned to the system when freed.

Above the activations of a chunk of the inference encoder (16 MiB), which are better reused; below those of an image of
half a megapixel.
"""

M_MMAP_THRESHOLD = -3  # malloc.h


def return_large_blocks() -> bool:
    """Makes glibc return large blocks to the system as soon as they are freed.

    By default glibc raises its threshold to the largest block freed so far, up to 32 MiB. The activations of a training
    step then share a heap with longer-lived data, and fragmentation takes a fifth of the step's memory.

    Returns:
        whether it was set: not with another C library, or where the environment sets the threshold.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, LARGE_BYTES) == 1
