"""Detections of many images as columns: 1.5 million dicts would take gigabytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.annotation_json import SIDE

Rle = dict[str, Any]
"""A mask in COCO's compressed run-length encoding: `size` [height, width] of its image, and `counts`, a string."""

ROWS_AT_ONCE = 20_000
"""Records that exist as Python objects at the same time while a table is written."""


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """Detections of any number of images, one row each; N rows.

    Attributes:
        image_ids: (N,) int64, ids in the annotations.
        category_ids: (N,) int64, original ids.
        boxes_xywh: (N, 4) float64 (x, y, width, height) in pixels of the original image.
        scores: (N,) float64 in [0, 1].
        masks: N masks of the size of the original image; None: boxes only.
        mask_scores: (N,) float64 that masks are ranked by; None: `scores`.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    scores: NDArray[np.float64]
    masks: list[Rle] | None = None
    mask_scores: NDArray[np.float64] | None = None

    @classmethod
    def of_image(
        cls,
        image_id: int,
        boxes_xyxy: NDArray[Any],
        scores: NDArray[Any],
        category_ids: Sequence[int] | NDArray[np.int64],
        masks: list[Rle] | None = None,
        mask_scores: NDArray[Any] | None = None,
    ) -> DetectionTable:
        """The detections of one image.

        Boxes are rounded to 1e-4 pixel and scores to 1e-8: far below the resolution of any metric, and half the file
        size. The rounded values are scored too, so that a file scores exactly like the run that wrote it.

        Args:
            image_id: the image's id in the annotations.
            boxes_xyxy: (N, 4) in pixels of the original image.
            scores: (N,) in [0, 1].
            category_ids: N original category ids.
            masks: N masks of the size of the original image.
            mask_scores: (N,) if they differ from `scores`.
        """
        boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        return cls(
            image_ids=np.full(len(boxes), image_id, np.int64),
            category_ids=np.asarray(category_ids, np.int64).reshape(-1),
            boxes_xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(4),
            scores=np.asarray(scores, dtype=np.float64).round(8),
            masks=masks,
            mask_scores=None if mask_scores is None else np.asarray(mask_scores, dtype=np.float64).round(8),
        )

    @classmethod
    def empty(cls) -> DetectionTable:
        """No detections."""
        return cls.of_image(0, np.zeros((0, 4)), np.zeros(0), [])

    @classmethod
    def join(cls, tables: Iterable[DetectionTable]) -> DetectionTable:
        """Concatenates tables. Masks are kept if every detection has one."""
        filled = [table for table in tables if len(table)]
        if not filled:
            return cls.empty()
        with_masks = all(table.masks is not None for table in filled)
        has_mask_scores = with_masks and any(table.mask_scores is not None for table in filled)
        return cls(
            image_ids=np.concatenate([table.image_ids for table in filled]),
            category_ids=np.concatenate([table.category_ids for table in filled]),
            boxes_xywh=np.concatenate([table.boxes_xywh for table in filled]),
            scores=np.concatenate([table.scores for table in filled]),
            masks=[mask for table in filled for mask in table.masks or ()] if with_masks else None,
            mask_scores=np.concatenate([table.ranking_of_masks() for table in filled]) if has_mask_scores else None,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def ranking_of_masks(self) -> NDArray[np.float64]:
        """(N,) scores that masks are ranked by."""
        return self.scores if self.mask_scores is None else self.mask_scores

    def select(self, rows: slice | NDArray[Any]) -> DetectionTable:
        """The rows of a slice, index or bool array, in its order."""
        chosen = np.arange(len(self))[rows]
        return DetectionTable(
            image_ids=self.image_ids[chosen],
            category_ids=self.category_ids[chosen],
            boxes_xywh=self.boxes_xywh[chosen],
            scores=self.scores[chosen],
            masks=None if self.masks is None else [self.masks[row] for row in chosen.tolist()],
            mask_scores=None if self.mask_scores is None else self.mask_scores[chosen],
        )

    def of_images(self, image_ids: Iterable[int]) -> DetectionTable:
        """The detections on some images."""
        keep = np.isin(self.image_ids, np.fromiter(image_ids, np.int64))
        return self if keep.all() else self.select(keep)

    def in_order_of(self, image_ids: Sequence[int]) -> DetectionTable:
        """The detections on some images, in the order of these; those of one image keep their order."""
        place = {image_id: index for index, image_id in enumerate(image_ids)}
        places = np.array([place.get(image_id, -1) for image_id in self.image_ids.tolist()], np.int64)
        rows = np.argsort(places, kind="stable")
        return self.select(rows[np.sort(places) >= 0])

    def to_records(self) -> list[dict[str, Any]]:
        """Every detection in COCO's result format."""
        columns: list[list[Any]] = [
            column.tolist() for column in (self.image_ids, self.category_ids, self.boxes_xywh, self.scores)
        ]
        names = ["image_id", "category_id", "bbox", "score"]
        if self.masks is not None:
            columns.append(self.masks)
            names.append("segmentation")
        if self.mask_scores is not None:
            columns.append(self.mask_scores.tolist())
            names.append("mask_score")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def to_json(self) -> str:
        """The content of a result file in COCO's format, with `mask_score` if masks have scores of their own."""
        starts = range(0, len(self), ROWS_AT_ONCE)
        chunks = (self.select(slice(start, start + ROWS_AT_ONCE)).to_records() for start in starts)
        return f"[{', '.join(json.dumps(chunk)[1:-1] for chunk in chunks)}]"


def is_rle(mask: Any) -> bool:
    """Whether a value of JSON is a mask, its counts unread."""
    if type(mask) is not dict or type(mask.get("counts")) is not str:
        return False
    size = mask.get("size")
    return type(size) is list and len(size) == 2 and all(type(side) is int and 0 < side <= SIDE.high for side in size)
