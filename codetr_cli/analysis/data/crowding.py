"""How much objects of an image overlap each other. Shape letters: I images, N objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.objects import Objects

MAX_PAIRS = 30_000_000
"""Pairs of objects that are compared for crowding: seconds. Of more, images are chosen at random."""
CHUNK_PAIRS = 2_000_000


def largest_overlaps(found: Objects) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest IoU of each object with another one of its image, and with another one of its class there.

    Returns:
        (N,) and (N,), NaN for objects of images that are not compared.
    """
    per_image = np.diff(found.offsets)
    images = np.repeat(np.arange(len(per_image)), per_image)
    largest, in_class = np.zeros((2, len(images)))
    compared = _compared_images(per_image)
    largest[~compared[images]] = in_class[~compared[images]] = np.nan
    # Objects that have later ones in their image, and how many; pairs are made of each and these.
    later = np.where(compared[images], found.offsets[images + 1] - np.arange(len(images)) - 1, 0)
    ends = np.cumsum(later)
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    start = 0
    while start < len(images):
        before = ends[start - 1] if start else 0
        end = max(int(np.searchsorted(ends, before + CHUNK_PAIRS, side="right")), start + 1)
        counts = later[start:end]
        first = np.repeat(np.arange(start, end), counts)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        corners = np.minimum(found.boxes[first, 2:], found.boxes[second, 2:])
        corners -= np.maximum(found.boxes[first, :2], found.boxes[second, :2])
        shared = corners.clip(min=0).prod(axis=1)
        hit = np.flatnonzero(shared > 0)
        first, second, shared = first[hit], second[hit], shared[hit].astype(np.float64)
        ious = shared / (areas[first].astype(np.float64) + areas[second] - shared)
        alike = found.labels[first] == found.labels[second]
        for target, rows in ((largest, slice(None)), (in_class, alike)):
            np.maximum.at(target, first[rows], ious[rows])
            np.maximum.at(target, second[rows], ious[rows])
        start = end
    return largest, in_class


def _compared_images(per_image: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Images whose objects are compared with each other, (I,): all, or as many as `MAX_PAIRS` allows."""
    pairs = per_image * (per_image - 1) // 2
    if pairs.sum() <= MAX_PAIRS:
        return np.ones(len(per_image), bool)
    order = np.random.default_rng(0).permutation(len(per_image))
    kept = order[np.cumsum(pairs[order]) <= MAX_PAIRS]
    compared = np.zeros(len(per_image), bool)
    compared[kept] = True
    return compared
