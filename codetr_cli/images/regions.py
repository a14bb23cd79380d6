"""Parts of an image: what a detector of tiles reads, so that a large image need not be in memory as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from codetr_cli.images.image_header import Size


class ImageRegions(Protocol):
    """An image that is read in parts, upright. Several threads may read it."""

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""

    def read(self, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """A part of the image, (height, width, 3) uint8 RGB, which is inside of it."""

    def reduced(self, height: int, width: int) -> NDArray[np.uint8]:
        """The whole image resized to (height, width, 3) uint8 RGB, larger or smaller than it is."""


@dataclass(frozen=True, eq=False)
class ArrayRegions:
    """The regions of an image in memory.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
    """

    pixels: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Of its pixels in memory."""
        return self.pixels.nbytes

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """A part of the image, a view of its pixels (height, width, 3)."""
        return self.pixels[top : top + height, left : left + width]

    def reduced(self, height: int, width: int) -> NDArray[np.uint8]:
        """The image as the test transform resizes it: bilinear, without antialiasing."""
        return np.asarray(cv2.resize(self.pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
