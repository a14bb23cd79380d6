"""Segmentations of an annotation file: polygons and run-length codes, drawn pixel by pixel as pycocotools draws them.

`Outlines` keeps the annotation file's text and decodes on request.
Shape letters: N objects of the file, R runs of a code, h w the image's height and width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as pycocotools_mask

from codetr_cli.data.masks import EMPTY, Block, Masks, tight_block
from codetr_cli.data.targets import Size
from codetr_cli.errors import DatasetError

MAX_COORDINATE = 100_000.0
"""Coordinates beyond are broken; pycocotools would walk along such an edge pixel by pixel for hours."""


@dataclass(frozen=True)
class Outlines:
    """Outlines of all objects of an annotation file, as text.

    Attributes:
        text: contains them as JSON.
        spans: (N, 2) int64, start and end of each object's outline in `text`; equal for objects without one.
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
        """One object's outline as in the file: polygons or a run-length code; None if it has none."""
        start, end = self.spans[row].tolist()
        return json.loads(self.text[start:end]) if end > start else None

    def masks(self, rows: Sequence[int], size: Size) -> Masks:
        """Bitmaps of the objects of some rows, all in one image of `size`.

        Raises:
            DatasetError: an outline is missing, broken or for an image of another size; names the entry.
        """
        blocks = []
        for row in rows:
            try:
                blocks.append(decode(self.parse(row), size))
            except OutlineError as error:
                raise DatasetError(f"annotations[{self.entries[row]}] has {error}") from error
        return Masks(blocks, size)


class OutlineError(ValueError):
    """The problem with an outline, a phrase that follows "has"."""


def decode(outline: Any, size: Size) -> Block:
    """Draws one object of an image of `size`; sets the pixels that pycocotools sets.

    Args:
        outline: COCO's segmentation: a list of polygons [x1, y1, x2, y2, ...], or {"size": [h, w], "counts": ...} with
            counts as a list of run lengths or compressed to a text.
        size: of the image.

    Raises:
        OutlineError: neither of these, or for an image of another size.
    """
    if isinstance(outline, list):
        check_polygons(outline)
        rle = pycocotools_mask.merge(pycocotools_mask.frPyObjects(outline, *size))
        return _drawn(_uncompressed(rle["counts"]), size)
    if isinstance(outline, dict) and "counts" in outline:
        return _drawn(run_lengths(outline, size), size)
    raise OutlineError("no outline" if outline is None else f"the segmentation {str(outline)[:60]}")


def check_polygons(polygons: list[Any]) -> None:
    """Checks that pycocotools can draw polygons.

    Raises:
        OutlineError: no polygon, fewer than three points, an odd count of numbers, or values that are not coordinates.
    """
    if not polygons:
        raise OutlineError("no outline")
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            found = f"one of {len(polygon)} numbers" if isinstance(polygon, list) else f"{str(polygon)[:40]}"
            raise OutlineError(f"a broken polygon ({found}; three or more points x, y are needed)")
        try:
            near = min(polygon) > -MAX_COORDINATE and max(polygon) < MAX_COORDINATE and math.isfinite(sum(polygon))
        except TypeError:
            near = False
        if not near:
            raise OutlineError("a broken polygon (with values that are not coordinates in pixels)")


def run_lengths(rle: dict[str, Any], size: Size) -> np.ndarray:
    """The runs (R,) int64 of a run-length code.

    Raises:
        OutlineError: for an image of another size, or with another number of pixels.
    """
    listed, counts = rle.get("size"), rle["counts"]
    if not isinstance(listed, list) or tuple(listed) != size:
        raise OutlineError(f"a run-length code of size {listed}, but its image is {size[0]} high and {size[1]} wide")
    if isinstance(counts, str):
        runs = _uncompressed(counts.encode())
    elif isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        runs = np.array(counts, np.int64)
    else:
        raise OutlineError("a broken run-length code (its counts are neither a string nor a list of integers)")
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        # pycocotools would leave the rest of the bitmap uninitialized.
        raise OutlineError(f"a broken run-length code (of {runs.sum()} pixels instead of {size[0] * size[1]})")
    return runs


def encode(bitmap: np.ndarray) -> dict[str, Any]:
    """The run-length code of a bitmap (h, w) bool, with its runs as a list; the inverse of `decode`."""
    pixels = np.concatenate([[False], bitmap.T.ravel()])
    ends = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]), [bitmap.size]])
    return {"size": list(bitmap.shape), "counts": np.diff(ends).tolist()}


def _uncompressed(code: bytes) -> np.ndarray:
    """Run lengths (R,) int64 of a compressed code.

    A character has five bits of a number, low ones first, and a flag for whether more follow; the last one's fifth bit
    is the sign. From the fourth run on, the number is the difference to the run two before.
    """
    bits = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((bits & 32) == 0)
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or last[-1:] != len(bits) - 1:
        raise OutlineError("a broken run-length code (its string is not a compressed one)")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 10:
        raise OutlineError("a broken run-length code (its numbers are too large)")
    shift = 5 * (np.arange(len(bits)) - np.repeat(first, last - first + 1))
    runs = np.add.reduceat((bits & 31) << shift, first)
    runs -= np.where(bits[last] & 16, 1 << (shift[last] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _drawn(runs: np.ndarray, size: Size) -> Block:
    """The pixels of a run-length code (R,), whose runs follow the columns of an image and start outside."""
    height = size[0]
    ends = np.cumsum(runs)
    inside = ends[: len(runs) // 2 * 2].reshape(-1, 2)  # start and end, in pixels along the columns
    inside = inside[inside[:, 1] > inside[:, 0]]
    if not len(inside):
        return EMPTY
    left, right = int(inside[0, 0]) // height, (int(inside[-1, 1]) - 1) // height + 1
    columns = np.zeros((right - left) * height, np.uint8)
    for start, end in (inside - left * height).tolist():
        columns[start:end] = 1
    block = tight_block(columns.reshape(-1, height).T)
    return block._replace(left=block.left + left)
