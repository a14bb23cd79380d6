"""Segmentations of an annotation file: polygons and run-length codes, drawn pixel by pixel as pycocotools draws them.

`Outlines` keeps the annotation file's text and decodes on request.
Shape letters: N objects of the file, R runs of a code, h w the image's height and width.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as pycocotools_mask

from codetr_cli.annotations.masks import EMPTY, Block, Masks, tight_block
from codetr_cli.annotations.run_length_codes import MAX_PIXELS, OutlineError, decompress
from codetr_cli.errors import DatasetError, shown
from codetr_cli.images.image_header import Size

MAX_COORDINATE = 100_000.0
"""Coordinates beyond are broken, like those further from the image than twice its longer side: pycocotools walks along
each edge in fifths of a pixel."""
MAX_PERIMETER = 4_000_000.0
"""Pixels along the edges of all polygons of an object: pycocotools needs 100 bytes for each."""
MERGED_AT_ONCE = 64
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


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

    def is_run_length_code(self, row: int) -> bool:
        """Whether an object's outline is one, to judge by its first character."""
        start, end = self.spans[row].tolist()
        return end > start and self.text[start] == ord("{")

    def select(self, rows: np.ndarray) -> Outlines:
        """The outlines of some rows, bool (N,) or their indices."""
        return Outlines(self.text, self.spans[rows], self.entries[rows])

    def parse(self, row: int) -> Any:
        """One object's outline as in the file: polygons or a run-length code; None if it has none.

        Raises:
            OutlineError: its text is not JSON.
        """
        start, end = self.spans[row].tolist()
        if end <= start:
            return None
        return parse_outline(self.text[start:end])

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


def parse_outline(text: bytes) -> Any:
    """An outline as in the file.

    Raises:
        OutlineError: its text is not JSON.
    """
    content = text.decode("ascii")
    try:
        outline, stop = _scan(content, 0)  # json.loads needs twice the time for a text this short
    except (ValueError, RecursionError, StopIteration):
        stop = -1
    if stop != len(content):
        raise OutlineError(f"a segmentation that is not JSON ({shown(content[:100])})")
    return outline


def decode(outline: Any, size: Size) -> Block:
    """Draws one object of an image of `size`; sets the pixels that pycocotools sets.

    Args:
        outline: COCO's segmentation: a list of polygons [x1, y1, x2, y2, ...], or {"size": [h, w], "counts": ...} with
            counts as a list of run lengths or compressed to a text.
        size: of the image.

    Raises:
        OutlineError: neither of these, or for an image of another size.
    """
    check_outline(outline, size)
    if isinstance(outline, list):
        return _drawn(decompress(merged_polygons(outline, size)["counts"]), size)
    return _drawn(run_lengths(outline, size), size)


def check_outline(outline: Any, size: Size) -> None:
    """Checks that pycocotools can draw an outline in an image of `size`, without drawing it.

    Raises:
        OutlineError: as `decode`.
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise OutlineError(f"an outline in an image of {size[0]:,} x {size[1]:,} pixels, too many for a mask")
    if isinstance(outline, list):
        _check_polygons(outline, size)
    elif isinstance(outline, dict) and "counts" in outline:
        run_lengths(outline, size)
    else:
        raise OutlineError("no outline" if outline is None else f"the segmentation {shown(outline)}")


def merged_polygons(polygons: list[Any], size: Size) -> dict[str, Any]:
    """The compressed run-length code, with counts as bytes, of checked polygons.

    pycocotools merges one after the other, in time that grows with the square of their number; groups do not.
    """
    codes: list[Any] = pycocotools_mask.frPyObjects(polygons, *size)
    while len(codes) > MERGED_AT_ONCE:
        starts = range(0, len(codes), MERGED_AT_ONCE)
        codes = [pycocotools_mask.merge(codes[start : start + MERGED_AT_ONCE]) for start in starts]
    merged: dict[str, Any] = pycocotools_mask.merge(codes)
    return merged


def _check_polygons(polygons: list[Any], size: Size) -> None:
    if not polygons:
        raise OutlineError("no outline")
    limit, longest = _limits(size)
    for polygon in polygons:
        if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2:
            found = f"one of {len(polygon)} numbers" if type(polygon) is list else shown(polygon)
            raise OutlineError(f"a broken polygon ({found}; three or more points x, y are needed)")
        try:
            near = min(polygon) > -limit and max(polygon) < limit and math.isfinite(sum(polygon))
        except TypeError:
            near = False
        if not near:
            raise OutlineError("a broken polygon (with values that are not coordinates in pixels)")
    # No edge is longer than twice the limit.
    if sum(map(len, polygons)) * limit > longest and _perimeter(polygons) > longest:
        raise OutlineError(f"an outline of more than {longest:,.0f} pixels, more than any object of the image can have")


@functools.lru_cache(maxsize=64)
def _limits(size: Size) -> tuple[float, float]:
    """The largest coordinate and the largest perimeter of polygons in an image of `size`."""
    return min(2.0 * max(size) + 100, MAX_COORDINATE), min(4.0 * size[0] * size[1] + 100_000, MAX_PERIMETER)


def _perimeter(polygons: list[list[float]]) -> float:
    """The pixels that pycocotools walks along the edges of polygons."""
    points = np.fromiter(chain.from_iterable(polygons), np.float64).reshape(-1, 2)
    ends = np.cumsum([len(polygon) // 2 for polygon in polygons])
    before = np.roll(points, 1, axis=0)
    before[np.concatenate([[0], ends[:-1]])] = points[ends - 1]
    return float(abs(points - before).max(axis=1).sum())


def run_lengths(rle: dict[str, Any], size: Size) -> np.ndarray:
    """The runs (R,) int64 of a run-length code.

    Raises:
        OutlineError: for an image of another size, or with another number of pixels.
    """
    listed, counts = rle.get("size"), rle["counts"]
    if not isinstance(listed, list) or tuple(listed) != tuple(size):
        found = shown(listed)
        if isinstance(listed, list) and [str(side) for side in listed] == [str(side) for side in size]:
            raise OutlineError(f"a run-length code whose size {found} is not two integers")
        raise OutlineError(f"a run-length code of size {found}, but its image is {size[0]} high and {size[1]} wide")
    if isinstance(counts, str):
        runs = decompress(counts.encode("utf-8", "surrogatepass"))
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        try:
            runs = np.array(counts, np.int64)
        except OverflowError:
            raise OutlineError("a broken run-length code (its numbers are too large)") from None
    else:
        raise OutlineError("a broken run-length code (its counts are neither a string nor a list of integers)")
    pixels = size[0] * size[1]
    if (runs < 0).any():
        raise OutlineError(f"a broken run-length code (with a run of {runs.min()} pixels)")
    # One run alone may not exceed them: the sum of several could overflow.
    if (runs > pixels).any() or runs.sum() != pixels:
        # pycocotools would leave the rest of the bitmap uninitialized.
        found = runs.sum(dtype=np.float64)
        raise OutlineError(f"a broken run-length code (of {found:.0f} pixels instead of {pixels})")
    return runs


def encode(bitmap: np.ndarray) -> dict[str, Any]:
    """The run-length code of a bitmap (h, w) bool, with its runs as a list; the inverse of `decode`."""
    pixels = np.concatenate([[False], bitmap.T.ravel()])
    ends = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]), [bitmap.size]])
    return {"size": list(bitmap.shape), "counts": np.diff(ends).tolist()}


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
