"""One setting of the C library's memory allocator that training on a CPU needs."""

from __future__ import annotations

import ctypes
import os
import sys

LARGE_BYTES = 20 * 2**20
"""Blocks from this size on go back to the system when they are freed.

Above the hidden numbers of a chunk of the lean encoder (16 MiB), which are better kept; below the activations of an
image of half a megapixel.
"""

M_MMAP_THRESHOLD = -3  # malloc.h


def return_large_blocks() -> bool:
    """Makes glibc give large blocks back as soon as they are freed, instead of learning to keep them.

    glibc raises its limit to the largest block it has seen freed, up to 32 MiB. The activations of a training step then
    share one heap with everything that outlives them, and a fifth of the step's memory lies in the gaps between.

    Returns:
        whether it was done: nothing happens with another C library, or where the environment sets the limit.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, LARGE_BYTES) == 1
