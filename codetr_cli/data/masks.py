"""Outlines of objects as bitmaps, pixel by pixel as pycocotools draws them.

`Outlines` keeps the annotation file's text and decodes what is asked for. `Masks` are the bitmaps of one image on their
way through the transforms: each is stored only where it has pixels, and a resize, crop, flip or pad only notes which
source row and column every new one shows, so that pixels are gathered once however many steps there are.
Shape letters: G objects of an image, h w its height and width. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as pycocotools_mask

from codetr_cli.errors import DatasetError

Size = tuple[int, int]
FARTHEST = 100_000.0
"""Coordinates beyond are broken; pycocotools would walk along such an edge pixel by pixel for hours."""


class Block(NamedTuple):
    """The part of a bitmap that may have pixels: its first row and column, and the pixels (bh, bw) uint8, 0 or 1."""

    top: int
    left: int
    pixels: np.ndarray


NOTHING = Block(0, 0, np.zeros((0, 0), np.uint8))


class Masks:
    """Bitmaps of the objects of one image; no method changes them.

    Args:
        blocks: one an object.
        size: of the image.
        rows: (h,) which row of the blocks' image each row shows, -1 for none; absent: the same one.
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
        """Bitmaps (G, h, w) of bool or uint8, as a whole."""
        blocks = [_shrunk(bitmap.astype(np.uint8)) for bitmap in bitmaps != 0]
        return cls(blocks, (bitmaps.shape[1], bitmaps.shape[2]))

    @classmethod
    def from_boxes(cls, boxes: np.ndarray, size: Size) -> Masks:
        """Every pixel that a box touches, for boxes (G, 4) xyxy within the image."""
        blocks = []
        for x1, y1, x2, y2 in boxes.tolist():
            top, left = math.floor(y1), math.floor(x1)
            blocks.append(Block(top, left, np.ones((math.ceil(y2) - top, math.ceil(x2) - left), np.uint8)))
        return cls(blocks, size)

    def __len__(self) -> int:
        return len(self._blocks)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """One an object, in pixels of the image as it is now."""
        if self._rows is None and self._columns is None:
            return self._blocks
        rows, columns = _axis(self._rows, self.size[0]), _axis(self._columns, self.size[1])
        return tuple(_gathered(block, rows, columns) for block in self._blocks)

    def select(self, keep: np.ndarray) -> Masks:
        """Those objects that `keep` (G,) bool marks, or those of the given indices in their order."""
        chosen = np.flatnonzero(keep) if keep.dtype == bool else keep
        if "blocks" in self.__dict__:
            return Masks([self.blocks[i] for i in chosen], self.size)
        return Masks([self._blocks[i] for i in chosen], self.size, self._rows, self._columns)

    def resized(self, size: Size) -> Masks:
        """As OpenCV's nearest neighbour resizes them."""
        rows, columns = (_nearest(old, new) for old, new in zip(self.size, size, strict=True))
        return self._shown(size, rows, columns)

    def cropped(self, top: int, left: int, height: int, width: int) -> Masks:
        """The part in a window within the image."""
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
            inner = _shrunk(block.pixels)
            if inner.pixels.size:
                top, left = block.top + inner.top, block.left + inner.left
                box[:] = left, top, left + inner.pixels.shape[1], top + inner.pixels.shape[0]
        return boxes

    def union(self) -> np.ndarray:
        """Where any object is, (h, w) uint8 of 0 and 1."""
        covered = np.zeros(self.size, np.uint8)
        for block in self.blocks:
            part = _window(covered, block)
            np.bitwise_or(part, block.pixels, out=part)
        return covered

    def without(self, covered: np.ndarray) -> Masks:
        """The bitmaps less the pixels where `covered` (h, w) uint8 is 1."""
        return Masks(
            [block._replace(pixels=block.pixels & (1 - _window(covered, block))) for block in self.blocks], self.size
        )

    def joined(self, others: Masks) -> Masks:
        """These objects and then those of another image of the same size."""
        return Masks([*self.blocks, *others.blocks], self.size)

    def array(self, size: Size | None = None) -> np.ndarray:
        """Whole bitmaps (G, h, w) uint8.

        Args:
            size: not smaller than the image: more rows and columns at the bottom and right, without pixels.
        """
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
    """Which of `old` pixels each of `new` ones takes in OpenCV's nearest-neighbour resize."""
    pixels = np.arange(old, dtype=np.float32)[None]
    return cv2.resize(pixels, (new, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.int64)


def _window(image: np.ndarray, block: Block) -> np.ndarray:
    height, width = block.pixels.shape
    return image[block.top : block.top + height, block.left : block.left + width]


def _gathered(block: Block, rows: np.ndarray, columns: np.ndarray) -> Block:
    """The block as an image shows it whose row i is row rows[i] of the block's."""
    (top, inner_rows), (left, inner_columns) = (
        _overlap(indices, start, length)
        for indices, start, length in zip((rows, columns), (block.top, block.left), block.pixels.shape, strict=True)
    )
    return Block(top, left, block.pixels[inner_rows][:, inner_columns])


def _overlap(indices: np.ndarray, start: int, length: int) -> tuple[int, np.ndarray | slice]:
    """Where the pixels start to length of an axis are shown: the first place, and which of them from there on."""
    shown = np.flatnonzero((indices >= start) & (indices < start + length))
    if not len(shown):
        return 0, slice(0, 0)
    inner = indices[shown] - start
    steps = np.diff(inner)
    if (steps == 1).all():  # a slice copies nothing
        return int(shown[0]), slice(int(inner[0]), int(inner[-1]) + 1)
    return int(shown[0]), inner


def _shrunk(pixels: np.ndarray) -> Block:
    """The smallest block that holds all pixels of a bitmap (h, w) uint8."""
    if not pixels.size:
        return NOTHING
    x, y, w, h = cv2.boundingRect(np.ascontiguousarray(pixels))
    return Block(y, x, np.ascontiguousarray(pixels[y : y + h, x : x + w])) if w else NOTHING


# ------------------------------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Outlines:
    """Outlines of all objects of an annotation file, as text.

    Attributes:
        text: holds them as JSON.
        spans: (N, 2) int64, from where to where in `text` each object's lies; start = end for objects without one.
        entries: (N,) int64, index of each object in the file's list of annotations.
    """

    text: bytes
    spans: np.ndarray
    entries: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Which objects have an outline, (N,) bool."""
        return self.spans[:, 1] > self.spans[:, 0]

    def parse(self, row: int) -> Any:
        """One object's outline as the file has it: polygons or a run-length code; None without."""
        start, end = self.spans[row].tolist()
        return json.loads(self.text[start:end]) if end > start else None

    def masks(self, rows: Sequence[int], size: Size) -> Masks:
        """Bitmaps of some objects of one image.

        Args:
            rows: of the objects.
            size: of their image.

        Raises:
            DatasetError: an outline is missing, broken or made for an image of another size; names the entry.
        """
        blocks = []
        for row in rows:
            try:
                blocks.append(decode(self.parse(row), size))
            except OutlineError as error:
                raise DatasetError(f"annotations[{self.entries[row]}] has {error}") from error
        return Masks(blocks, size)


class OutlineError(ValueError):
    """What is wrong with an outline, to be read after "has"."""


def decode(outline: Any, size: Size) -> Block:
    """Draws one object.

    Args:
        outline: COCO's segmentation: a list of polygons [x1, y1, x2, y2, ...], or {"size": [h, w], "counts": ...} with
            counts as a list of run lengths or compressed to a text.
        size: of the image.

    Returns:
        The pixels that pycocotools sets.

    Raises:
        OutlineError: neither of them, or for an image of another size.
    """
    if isinstance(outline, list):
        check_polygons(outline)
        rle = pycocotools_mask.merge(pycocotools_mask.frPyObjects(outline, *size))
        return _drawn(_uncompressed(rle["counts"]), size)
    if isinstance(outline, dict) and "counts" in outline:
        return _drawn(run_lengths(outline, size), size)
    raise OutlineError("no outline" if outline is None else f"the segmentation {str(outline)[:60]}")


def check_polygons(polygons: list[Any]) -> None:
    """Makes sure that pycocotools can draw them.

    Raises:
        OutlineError: no polygon, fewer than three points, an odd count of numbers, or values that are no coordinates.
    """
    if not polygons:
        raise OutlineError("no outline")
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            found = f"one of {len(polygon)} numbers" if isinstance(polygon, list) else f"{str(polygon)[:40]}"
            raise OutlineError(f"a broken polygon ({found}; three or more points x, y are needed)")
        try:
            near = min(polygon) > -FARTHEST and max(polygon) < FARTHEST and math.isfinite(sum(polygon))
        except TypeError:
            near = False
        if not near:
            raise OutlineError("a broken polygon (with values that are no coordinates in pixels)")


def run_lengths(rle: dict[str, Any], size: Size) -> np.ndarray:
    """The runs (R,) int64 of a run-length code.

    Raises:
        OutlineError: for an image of another size, or not as many pixels as it has.
    """
    listed, counts = rle.get("size"), rle["counts"]
    if not isinstance(listed, list) or tuple(listed) != size:
        raise OutlineError(f"a run-length code of size {listed}, but its image is {size[0]} high and {size[1]} wide")
    if isinstance(counts, str):
        runs = _uncompressed(counts.encode())
    elif isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        runs = np.array(counts, np.int64)
    else:
        raise OutlineError("a broken run-length code (its counts are neither a text nor a list of integers)")
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        # pycocotools would leave the rest of the bitmap as it finds the memory.
        raise OutlineError(f"a broken run-length code (of {runs.sum()} pixels instead of {size[0] * size[1]})")
    return runs


def encode(bitmap: np.ndarray) -> dict[str, Any]:
    """The run-length code of a bitmap (h, w) of bool, with its runs as a list: what `decode` reads."""
    pixels = np.concatenate([[False], bitmap.T.ravel()])
    ends = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]), [bitmap.size]])
    return {"size": list(bitmap.shape), "counts": np.diff(ends).tolist()}


def _uncompressed(code: bytes) -> np.ndarray:
    """Run lengths (R,) int64 of a compressed code.

    A character holds five bits of a number, low ones first, and whether more follow; the last one's fifth bit is the
    sign. From the fourth run on it is the difference to the run two before.
    """
    bits = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((bits & 32) == 0)
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or last[-1:] != len(bits) - 1:
        raise OutlineError("a broken run-length code (its text is no compressed one)")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 10:
        raise OutlineError("a broken run-length code (its numbers are absurdly large)")
    shift = 5 * (np.arange(len(bits)) - np.repeat(first, last - first + 1))
    runs = np.add.reduceat((bits & 31) << shift, first)
    runs -= np.where(bits[last] & 16, 1 << (shift[last] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _drawn(runs: np.ndarray, size: Size) -> Block:
    """The pixels of a run-length code (R,), whose runs go down the columns of an image and begin outside."""
    height = size[0]
    ends = np.cumsum(runs)
    inside = ends[: len(runs) // 2 * 2].reshape(-1, 2)  # from where to where, in pixels down the columns
    inside = inside[inside[:, 1] > inside[:, 0]]
    if not len(inside):
        return NOTHING
    left, right = int(inside[0, 0]) // height, (int(inside[-1, 1]) - 1) // height + 1
    columns = np.zeros((right - left) * height, np.uint8)
    for start, end in (inside - left * height).tolist():
        columns[start:end] = 1
    block = _shrunk(columns.reshape(-1, height).T)
    return block._replace(left=block.left + left)
