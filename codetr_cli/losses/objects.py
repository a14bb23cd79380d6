"""The objects of all images of a batch, prepared once for the matching and the losses of a step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from codetr_cli.boxes import Targets, host_values, xyxy_to_cxcywh


@dataclass(frozen=True)
class BatchObjects:
    """Objects of B images, one image after another: T in all.

    Attributes:
        counts: of each image.
        labels: (T,) int64.
        boxes_xyxy: (T, 4) pixels.
        boxes_cxcywh: (T, 4) normalised.
        factors: (B, 4) = (w, h, w, h) of each image in pixels.
        object_factors: (T, 4), the same of each object's image.
    """

    counts: list[int]
    labels: Tensor
    boxes_xyxy: Tensor
    boxes_cxcywh: Tensor
    factors: Tensor
    object_factors: Tensor

    @staticmethod
    def of(targets: Targets, dtype: torch.dtype) -> BatchObjects:
        """The objects of targets, with boxes of a dtype.

        Args:
            targets: per image `boxes` (G, 4) xyxy pixels, `labels` (G,) int64, `norm_size` (h, w).
            dtype: of boxes and factors.
        """
        counts = [len(target["labels"]) for target in targets]
        boxes = torch.cat([target["boxes"] for target in targets]).to(dtype)
        of_image = [[w, h, w, h] for h, w in (target["norm_size"] for target in targets)]
        of_object = [row for row, count in zip(of_image, counts, strict=True) for _ in range(count)]
        # One upload for both; repeating rows on the device would synchronize with it.
        factors, object_factors = torch.split(host_values(of_image + of_object, boxes), [len(targets), sum(counts)])
        labels = torch.cat([target["labels"] for target in targets])
        return BatchObjects(counts, labels, boxes, xyxy_to_cxcywh(boxes) / object_factors, factors, object_factors)

    @property
    def starts(self) -> list[int]:
        """Index of each image's first object."""
        return [0, *accumulate(self.counts[:-1])]

    def rows(self, image: int) -> slice:
        """Rows of an image's objects."""
        start = self.starts[image]
        return slice(start, start + self.counts[image])
