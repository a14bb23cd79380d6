"""Numbers in COCO's compressed run-length codes, without pycocotools, which reads beyond the end of broken ones.

A character is 48 + six bits: five bits of a number, low ones first, and a flag (32) for whether more follow; the last
character's fifth bit is the sign. From the fourth run of a code on, the number is the difference to the run two before.
Shape letters: C characters of some codes, R runs of them, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 2**29 - 1
"""Of an image with masks: pycocotools reads run lengths of 30 bits, with their sign."""
MAX_CHARACTERS = 6
"""Of a number: 30 bits."""
CHARACTERS_AT_ONCE = 1 << 18
"""Of codes that are checked together: what is made of them stays in the processor's cache."""

KEPT_BYTES = 1 << 24


class OutlineError(ValueError):
    """The problem with an outline, a phrase that follows "has"."""


def decompress(code: bytes) -> NDArray[np.int64]:
    """The runs (R,) of one code, perhaps negative ones.

    Raises:
        OutlineError: it is broken.
    """
    runs = _numbers([code])[0].astype(np.int64)
    np.cumsum(runs[1::2], out=runs[1::2])
    np.cumsum(runs[2::2], out=runs[2::2])
    return runs


def check_compressed(masks: Sequence[dict[str, Any]]) -> None:
    """Checks compressed run-length codes, `size` and `counts`, much faster than one by one.

    Raises:
        OutlineError: any of them is broken, or does not have the pixels of its size.
    """
    pixels = np.array([mask["size"][0] * mask["size"][1] for mask in masks], np.int64)
    if len(masks) and pixels.max() > MAX_PIXELS:
        raise OutlineError("too many pixels for a mask")
    codes = [mask["counts"].encode("utf-8", "surrogatepass") for mask in masks]
    # glibc keeps memory of the largest size that was freed (mallopt(3), M_MMAP_THRESHOLD). Otherwise the system clears
    # the memory of each group's arrays, which takes as long as the check.
    np.empty(KEPT_BYTES, np.uint8)
    for group in _groups(codes):
        if (_pixels(codes[group]) != pixels[group]).any():
            raise OutlineError("a run-length code with another number of pixels")


def _groups(codes: Sequence[bytes]) -> Iterator[slice]:
    """Slices of the codes, of about `CHARACTERS_AT_ONCE`."""
    ends = np.cumsum(np.fromiter(map(len, codes), np.int64, len(codes)))
    bounds = [0, *(np.flatnonzero(np.diff(ends // CHARACTERS_AT_ONCE)) + 1).tolist(), len(codes)]
    return (slice(start, end) for start, end in pairwise(bounds) if start < end)


def _pixels(codes: Sequence[bytes]) -> NDArray[np.int64]:
    """The sum (K,) of the runs of each code, all of which are in range.

    Raises:
        OutlineError: a code is broken, or has a run that is negative or beyond `MAX_PIXELS`.
    """
    numbers, first = _numbers(codes)
    third = first[np.diff(first, append=len(numbers)) > 2] + 2
    numbers[third] -= numbers[third - 2]  # now also the third run is a difference to the one two before
    sums = np.zeros(len(codes), np.int64)
    for parity in (0, 1):  # runs at even and at odd places of the group add up on their own
        column = np.append(numbers[parity::2], np.int32(0))
        begins = (first + 1 - parity) // 2
        # What the runs of earlier codes add up to is taken away at the first run of each. As 32 bits wrap around,
        # and no number has more than 30, the first run out of range is seen as such.
        before = np.append(np.int32(0), np.cumsum(column, dtype=np.int32))[begins]
        np.subtract.at(column, begins, np.diff(before, prepend=np.int32(0)))
        np.cumsum(column, dtype=np.int32, out=column)
        column[-1] = 0
        if column.view(np.uint32).max() > MAX_PIXELS:
            raise OutlineError("a run-length code with a run out of range")
        found = np.add.reduceat(column, begins, dtype=np.int64)
        sums += np.where(np.diff(begins, append=len(column) - 1) > 0, found, 0)  # not of no run
    return sums


def _numbers(codes: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The numbers (R,) of some codes, and the index (K,) of the first one of each code.

    Raises:
        OutlineError: a code is broken.
    """
    bits = np.frombuffer(b"".join(codes), np.uint8) - np.uint8(48)
    lengths = np.fromiter(map(len, codes), np.int64, len(codes))
    stops = np.cumsum(lengths)
    flags = bits & np.uint8(32)
    if not lengths.all() or bits.max() > 63 or flags[stops - 1].any():
        raise OutlineError("a broken run-length code (its string is not a compressed one)")
    more = flags != 0
    longer = np.flatnonzero(more[1:] & more[:-1])  # first of three or more characters of a number
    digits = bits & np.uint8(31)
    # At its last character, the number as if it had at most two.
    values = ((digits ^ np.uint8(16)).view(np.int8) - np.int8(16)).astype(np.int16)
    last_one = ~more
    values[1:] *= (flags | last_one)[:-1]  # 32 or 1
    values[1:] += (digits * more)[:-1]
    last = np.flatnonzero(last_one)
    numbers = values.take(last).astype(np.int32)
    first = np.searchsorted(last, stops - lengths)
    rows = np.unique(np.searchsorted(last, longer))
    place = 2
    while len(rows):
        if place == MAX_CHARACTERS:
            raise OutlineError("a broken run-length code (its numbers are too large)")
        numbers[rows] = numbers[rows] << 5 | digits[last[rows] - place]
        place += 1
        rows = rows[last[rows] >= place]
        rows = rows[more[last[rows] - place]]
    return numbers, first
