"""The bitmaps of one image's objects on their way through the transforms.

A bitmap is stored only where it has pixels. A resize, crop, flip or pad records only which source row and column every
new one shows, so that pixels are gathered once however many steps there are.
Shape letters: G objects of an image, h w its height and width. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from codetr_cli.images.image_header import Size


class Block(NamedTuple):
    """The part of a bitmap that may have pixels: its first row and column, and the pixels (bh, bw) uint8, 0 or 1."""

    top: int
    left: int
    pixels: np.ndarray


EMPTY = Block(0, 0, np.zeros((0, 0), np.uint8))


class Masks:
    """Bitmaps of the objects of one image; immutable.

    Args:
        blocks: one an object.
        size: of the image.
        rows: (h,) the row of the blocks' image that each row shows, -1 for none; None: the same row.
        columns: (w,) likewise.
    """

    def __init__(
        self, blocks: Sequence[Block], size: Size, rows: np.ndarray | None = None, columns: np.ndarray | None = None
    ) -> None:
        self.size = size
        self._blocks = tuple(blocks)
        self._rows = rows
        self._columns = columns

    @classmethod
    def from_array(cls, bitmaps: np.ndarray) -> Masks:
        """From whole bitmaps (G, h, w) bool or uint8."""
        blocks = [tight_block(bitmap.astype(np.uint8)) for bitmap in bitmaps != 0]
        return cls(blocks, (bitmaps.shape[1], bitmaps.shape[2]))

    @classmethod
    def from_boxes(cls, boxes: np.ndarray, size: Size) -> Masks:
        """From boxes (G, 4) xyxy inside the image: all pixels that a box touches."""
        blocks = []
        for x1, y1, x2, y2 in boxes.tolist():
            top, left = math.floor(y1), math.floor(x1)
            blocks.append(Block(top, left, np.ones((math.ceil(y2) - top, math.ceil(x2) - left), np.uint8)))
        return cls(blocks, size)

    def __len__(self) -> int:
        return len(self._blocks)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """One an object, in pixels of the current image."""
        if self._rows is None and self._columns is None:
            return self._blocks
        rows, columns = _axis(self._rows, self.size[0]), _axis(self._columns, self.size[1])
        return tuple(_gathered(block, rows, columns) for block in self._blocks)

    def select(self, keep: np.ndarray) -> Masks:
        """The objects where `keep` (G,) bool is true, or those of the given indices in their order."""
        chosen = np.flatnonzero(keep) if keep.dtype == bool else keep
        if "blocks" in self.__dict__:
            return Masks([self.blocks[i] for i in chosen], self.size)
        return Masks([self._blocks[i] for i in chosen], self.size, self._rows, self._columns)

    def resized(self, size: Size) -> Masks:
        """Resized like OpenCV's nearest neighbour."""
        rows, columns = (_nearest(old, new) for old, new in zip(self.size, size, strict=True))
        return self._shown(size, rows, columns)

    def cropped(self, top: int, left: int, height: int, width: int) -> Masks:
        """The part in a window inside the image."""
        return self._shown((height, width), np.arange(top, top + height), np.arange(left, left + width))

    def flipped(self) -> Masks:
        """Mirrored left to right."""
        height, width = self.size
        return self._shown(self.size, np.arange(height), np.arange(width)[::-1])

    def padded(self, size: Size) -> Masks:
        """With empty rows and columns at the bottom and right."""
        rows, columns = (
            np.concatenate([np.arange(old), np.full(new - old, -1)]) for old, new in zip(self.size, size, strict=True)
        )
        return self._shown(size, rows, columns)

    def areas(self) -> np.ndarray:
        """Pixels of each object, (G,) int64."""
        return np.array([np.count_nonzero(block.pixels) for block in self.blocks], np.int64)

    def tight_boxes(self) -> np.ndarray:
        """(G, 4) float32 xyxy from the first pixel to the end of the last one; all zero for an empty bitmap."""
        boxes = np.zeros((len(self), 4), np.float32)
        for box, block in zip(boxes, self.blocks, strict=True):
            inner = tight_block(block.pixels)
            if inner.pixels.size:
                top, left = block.top + inner.top, block.left + inner.left
                box[:] = left, top, left + inner.pixels.shape[1], top + inner.pixels.shape[0]
        return boxes

    def union(self) -> np.ndarray:
        """The pixels of any object, (h, w) uint8 of 0 and 1."""
        covered = np.zeros(self.size, np.uint8)
        for block in self.blocks:
            part = _window(covered, block)
            np.bitwise_or(part, block.pixels, out=part)
        return covered

    def without(self, covered: np.ndarray) -> Masks:
        """The bitmaps without the pixels where `covered` (h, w) uint8 is 1."""
        return Masks(
            [block._replace(pixels=block.pixels & (1 - _window(covered, block))) for block in self.blocks], self.size
        )

    def joined(self, others: Masks) -> Masks:
        """These objects followed by those of another image of the same size."""
        return Masks([*self.blocks, *others.blocks], self.size)

    def array(self, size: Size | None = None) -> np.ndarray:
        """Whole bitmaps (G, h, w) uint8, padded at the bottom and right to `size` if it is given."""
        bitmaps = np.zeros((len(self), *(size or self.size)), np.uint8)
        for bitmap, block in zip(bitmaps, self.blocks, strict=True):
            _window(bitmap, block)[:] = block.pixels
        return bitmaps

    def _shown(self, size: Size, rows: np.ndarray, columns: np.ndarray) -> Masks:
        """The image whose row i is row rows[i] of this one, columns likewise."""
        if "blocks" in self.__dict__:
            return Masks(self.blocks, size, rows, columns)
        return Masks(self._blocks, size, _composed(self._rows, rows), _composed(self._columns, columns))


def _axis(indices: np.ndarray | None, length: int) -> np.ndarray:
    return np.arange(length) if indices is None else indices


def _composed(first: np.ndarray | None, second: np.ndarray) -> np.ndarray:
    return second if first is None else np.where(second < 0, -1, first[second])


@lru_cache(maxsize=256)
def _nearest(old: int, new: int) -> np.ndarray:
    """The source pixel, of `old` ones, of each of `new` pixels in OpenCV's nearest-neighbour resize."""
    pixels = np.arange(old, dtype=np.float32)[None]
    return cv2.resize(pixels, (new, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.int64)


def _window(image: np.ndarray, block: Block) -> np.ndarray:
    height, width = block.pixels.shape
    return image[block.top : block.top + height, block.left : block.left + width]


def _gathered(block: Block, rows: np.ndarray, columns: np.ndarray) -> Block:
    """The block in an image whose row i is row rows[i] of the block's image, columns likewise."""
    (top, inner_rows), (left, inner_columns) = (
        _overlap(indices, start, length)
        for indices, start, length in zip((rows, columns), (block.top, block.left), block.pixels.shape, strict=True)
    )
    return Block(top, left, block.pixels[inner_rows][:, inner_columns])


def _overlap(indices: np.ndarray, start: int, length: int) -> tuple[int, np.ndarray | slice]:
    """Where the pixels from `start` of an axis are shown: the first index, and the pixels shown from there on."""
    shown = np.flatnonzero((indices >= start) & (indices < start + length))
    if not len(shown):
        return 0, slice(0, 0)
    inner = indices[shown] - start
    steps = np.diff(inner)
    if (steps == 1).all():  # a slice copies nothing
        return int(shown[0]), slice(int(inner[0]), int(inner[-1]) + 1)
    return int(shown[0]), inner


def tight_block(pixels: np.ndarray) -> Block:
    """The smallest block with all pixels of a bitmap (h, w) uint8."""
    if not pixels.size:
        return EMPTY
    x, y, w, h = cv2.boundingRect(np.ascontiguousarray(pixels))
    return Block(y, x, np.ascontiguousarray(pixels[y : y + h, x : x + w])) if w else EMPTY
