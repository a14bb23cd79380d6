"""One image with its objects on the way through the transforms, and its conversion to a target.

Shape letters: h w the image's height and width, G its objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from codetr_cli.annotations.masks import Masks
from codetr_cli.data.targets import Target
from codetr_cli.images.image_header import Size


@dataclass(frozen=True)
class Sample:
    """One image and its objects on the way through the transforms.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        boxes: (G, 4) float32, xyxy in pixels of `image`.
        labels: (G,) int64 class indices.
        iscrowd: (G,) int64, 1 for a region of many objects.
        area: (G,) float32 as annotated, in square pixels of the original image; no transform changes it.
        scale_factor: (w, h) of the last resize, new / old side.
        masks: bitmaps of the objects; None when they are not needed.
        pad_size: (height, width) that the image counts as padded to; None: to multiples of a divisor.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    scale_factor: tuple[float, float] = (1.0, 1.0)
    masks: Masks | None = None
    pad_size: Size | None = None

    @classmethod
    def from_image(cls, image: np.ndarray) -> Sample:
        """An image (h, w, 3) uint8 RGB without objects."""
        return cls(
            image=image,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            iscrowd=np.zeros(0, np.int64),
            area=np.zeros(0, np.float32),
        )

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.image.shape[0], self.image.shape[1]

    def select(self, keep: np.ndarray) -> Sample:
        """The sample with only the objects where `keep` (G,) is true, or those of the given indices."""
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            iscrowd=self.iscrowd[keep],
            area=self.area[keep],
            masks=None if self.masks is None else self.masks.select(keep),
        )

    def to_target(self, *, image_id: int, orig_size: Size, pad_divisor: int) -> Target:
        """The target of this image, see `codetr_cli.data.targets`.

        The image, of `orig_size` as decoded, counts as padded to `pad_size`, or to multiples of `pad_divisor`.
        """
        height, width = self.size
        multiples = (-(-height // pad_divisor) * pad_divisor, -(-width // pad_divisor) * pad_divisor)
        pad_size = self.pad_size or multiples
        masks = {} if self.masks is None else {"masks": torch.from_numpy(self.masks.array(pad_size))}
        return {
            "boxes": torch.from_numpy(self.boxes),
            "labels": torch.from_numpy(self.labels),
            "iscrowd": torch.from_numpy(self.iscrowd),
            "area": torch.from_numpy(self.area),
            "image_id": image_id,
            "orig_size": orig_size,
            "size": (height, width),
            "norm_size": (height, width),
            "pad_size": pad_size,
            "scale_factor": self.scale_factor,
            **masks,
        }
