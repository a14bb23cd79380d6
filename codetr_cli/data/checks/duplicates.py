"""Finds annotations that repeat others exactly, in time and memory that suit millions of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FACTORS = tuple(np.uint64(factor) for factor in (
    0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD,
    0xC4CEB9FE1A85EC53,
))  # fmt: skip
"""Odd numbers without a pattern: equal rows get equal keys, and others hardly ever do."""


def repeated_rows(
    image_ids: NDArray[np.int64], category_ids: NDArray[np.int64] | None, boxes: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], dict[int, int]]:
    """Which annotations repeat an earlier one: same image, class and box, number by number.

    Args:
        image_ids: (N,).
        category_ids: (N,); None: classes are not compared.
        boxes: (N, 4); those with NaN repeat none.

    Returns:
        (N,) bool, and the row of the earliest equal annotation of each of these.
    """
    columns = [image_ids, *([] if category_ids is None else [category_ids])]
    whole = np.column_stack([*(column.view(np.uint64) for column in columns), *(boxes.T + 0.0).view(np.uint64)])
    key = np.zeros(len(image_ids), np.uint64)
    for column, factor in zip(whole.T, _FACTORS, strict=False):
        key = (key ^ column) * factor
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    repeated = np.zeros(len(key), bool)
    first: dict[int, int] = {}
    if not same.any():
        return repeated, first
    members = np.zeros(len(key), bool)
    members[order[1:][same]] = True
    members[order[:-1][same]] = True
    rows = np.flatnonzero(members & ~np.isnan(boxes).any(axis=1))
    # Only rows with equal keys, a few, are compared number by number.
    _, earliest, group = np.unique(whole[rows], axis=0, return_index=True, return_inverse=True)
    sources = rows[earliest[group.ravel()]]
    again = sources != rows
    repeated[rows[again]] = True
    first.update(zip(rows[again].tolist(), sources[again].tolist(), strict=True))
    return repeated, first
