"""Whether there is anything to learn: refuses data of which every object would be left out, and says why each was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from codetr_cli.data.annotations import Annotations
from codetr_cli.data.formats.cache import source_of
from codetr_cli.errors import DatasetError


def count_learnable(annotations: Annotations, path: Path, *, min_side: int, max_images: int | None) -> np.ndarray:
    """Objects of each class that a training would see.

    Args:
        annotations: of the training images.
        path: their file, for the message.
        min_side: images with a smaller side are left out.
        max_images: only the first of the others are used; None: all.

    Returns:
        (K,) int64 by label.

    Raises:
        DatasetError: not a single one; tells for which reasons objects were left out.
    """
    rows = np.flatnonzero(annotations.sizes.min(axis=1, initial=min_side) >= min_side)[:max_images]
    objects = annotations.usable_objects(rows, with_crowd=False)
    counts = np.bincount(objects.labels, minlength=len(annotations.category_ids))
    if not counts.any():
        reasons = _reasons(annotations, path, rows, min_side)
        raise DatasetError(
            f"{source_of(path).name} has no object of any class to learn from: a training would run and learn nothing. "
            f"{len(annotations.image_ids)} images, {len(annotations.category_ids)} categories; "
            f"{'of the annotations, ' + ', '.join(reasons) if reasons else 'no annotations'}. "
            f"{source_of(path).check} lists what is wrong."
        )
    return counts


def _reasons(annotations: Annotations, path: Path, rows: np.ndarray, min_side: int) -> list[str]:
    """Why objects are left out, with counts; the first reason that applies to an object is its reason."""
    x, y, w, h = annotations.boxes_xywh.T
    heights, widths = annotations.sizes[annotations.image_rows].T
    outside = (np.minimum(x + w, widths) <= np.maximum(x, 0)) | (np.minimum(y + h, heights) <= np.maximum(y, 0))
    small = annotations.sizes.min(axis=1, initial=min_side)[annotations.image_rows] < min_side
    flat = (annotations.area <= 0) | (w < 1) | (h < 1)
    fractions = bool(flat.any()) and bool((annotations.boxes_xywh[flat] <= 1).all())
    hint = " (they look like fractions of the image: COCO counts pixels)" if fractions else ""
    found = (
        [f"{strangers} are of images that `images` does not list"]
        if (strangers := _strangers(annotations, path))
        else []
    )
    left = np.ones(len(w), bool)
    for why, words in (
        (annotations.ignore | (annotations.iscrowd != 0), "are crowd regions or marked `ignore`"),
        (flat, f"have a side under one pixel or no area{hint}"),
        (outside, "lie outside of their image"),
        (small, f"are in images with a side under data.min_side {min_side}"),
        (~np.isin(annotations.image_rows, rows), "are in images beyond the first data.max_images"),
    ):
        count = int((left & why).sum())
        if count:
            found.append(f"{count} {words}")
        left &= ~why
    return found


def _strangers(annotations: Annotations, path: Path) -> int:
    """Annotations that belong to no listed image, which reading left out."""
    try:
        return len(json.loads(path.read_bytes())["annotations"]) - len(annotations.labels)
    except (OSError, ValueError, KeyError, TypeError):
        return 0
