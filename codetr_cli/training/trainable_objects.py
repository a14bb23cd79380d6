"""Refuses data without a single object to train on, and reports why objects are not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from codetr_cli.annotations.cache import source_of
from codetr_cli.annotations.objects import Annotations
from codetr_cli.errors import DatasetError


def count_trainable(annotations: Annotations, path: Path, *, min_side: int, max_images: int | None) -> np.ndarray:
    """Objects of each class that a training uses.

    Images with a side under `min_side` are skipped; only the first `max_images` of the others are used.

    Returns:
        (K,) int64 by label.

    Raises:
        DatasetError: there is none; lists why objects are not used, with counts.
    """
    rows = np.flatnonzero(annotations.sizes.min(axis=1, initial=min_side) >= min_side)[:max_images]
    objects = annotations.usable_objects(rows, with_crowd=False)
    counts = np.bincount(objects.labels, minlength=len(annotations.category_ids))
    if not counts.any():
        reasons = _reasons(annotations, rows, min_side)
        raise DatasetError(
            f"{source_of(path).name} has no object of any class to train on. "
            f"{len(annotations.image_ids)} images, {len(annotations.category_ids)} categories; "
            f"{'of the annotations, ' + ', '.join(reasons) if reasons else 'no annotations'}. "
            f"{source_of(path).check} lists what is wrong."
        )
    return counts


def _reasons(annotations: Annotations, rows: np.ndarray, min_side: int) -> list[str]:
    """Why objects are not used, with counts; an object counts for the first reason that applies."""
    x, y, w, h = annotations.boxes_xywh.T
    heights, widths = annotations.sizes[annotations.image_rows].T
    outside = (np.minimum(x + w, widths) <= np.maximum(x, 0)) | (np.minimum(y + h, heights) <= np.maximum(y, 0))
    small = annotations.sizes.min(axis=1, initial=min_side)[annotations.image_rows] < min_side
    flat = (annotations.area <= 0) | (w < 1) | (h < 1)
    fractions = bool(flat.any()) and bool((annotations.boxes_xywh[flat] <= 1).all())
    hint = " (they look like fractions of the image: COCO counts pixels)" if fractions else ""
    unlisted = annotations.unlisted
    found = [f"{unlisted} are of images that `images` does not list"] if unlisted else []
    remaining = np.ones(len(w), bool)
    for why, words in (
        (annotations.ignore | (annotations.iscrowd != 0), "are crowd regions or marked `ignore`"),
        (flat, f"have a side under one pixel or no area{hint}"),
        (outside, "are outside their image"),
        (small, f"are in images with a side under data.min_side {min_side}"),
        (~np.isin(annotations.image_rows, rows), "are in images beyond the first data.max_images"),
    ):
        count = int((remaining & why).sum())
        if count:
            found.append(f"{count} {words}")
        remaining &= ~why
    return found
