"""Annotations for tests of statistics, as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codetr_cli.annotations.objects import Annotations

Box = tuple[int, int, float, float, float, float]
"""Image, class, and x, y, width and height of an object."""


def annotations_of(
    objects: Sequence[Box],
    sizes: Sequence[tuple[int, int]],
    *,
    names: Sequence[str] = ("cat", "dog", "owl"),
    crowds: Sequence[int] = (),
    ignored: Sequence[int] = (),
) -> Annotations:
    """Annotations of images of (height, width) `sizes`; `crowds` and `ignored` are rows of objects."""
    table = np.array(objects, np.float64).reshape(-1, 6)
    rows = np.arange(len(table))
    return Annotations(
        class_names=list(names),
        category_ids=list(range(1, len(names) + 1)),
        image_ids=np.arange(len(sizes), dtype=np.int64) + 100,
        file_names=[f"{number}.jpg" for number in range(len(sizes))],
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        image_rows=table[:, 0].astype(np.int64),
        labels=table[:, 1].astype(np.int64),
        boxes_xywh=table[:, 2:],
        area=table[:, 4] * table[:, 5],
        iscrowd=np.isin(rows, crowds).astype(np.int64),
        ignore=np.isin(rows, ignored),
    )


def repeated(objects: Sequence[Box], times: int) -> list[Box]:
    """The objects of image 0 in so many images."""
    return [(image, *each[1:]) for image in range(times) for each in objects]
