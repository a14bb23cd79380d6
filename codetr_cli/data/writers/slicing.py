"""Cuts images into tiles, and objects with them.

The tiles are those of `images.tile_grid`.

A tile has an object if it shows enough of it: the part of its box inside the tile has at least `min_visible` of the
largest area that any tile of this size could show of it. With up to 1/4 every object of two pixels or more is in at
least one tile, since at worst four tiles share one that fits into a tile. Crowd regions are in every tile that they
touch. The box of a part is as tight as its polygons. Parts narrower than one pixel are skipped, also of crowd regions,
and so are parts without a point of their outline: a narrower object that the edge between two tiles divides may be in
none of them. Objects that a tile shows whole are kept, however narrow they are. The default, 0.1, is that of SAHI's
`slice_coco`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as pycocotools_mask

from codetr_cli.annotations.masks import Block
from codetr_cli.annotations.outlines import decode, encode
from codetr_cli.annotations.run_length_codes import OutlineError
from codetr_cli.data.writers.content import WrittenObject
from codetr_cli.data.writers.polygons import Corners, cut_polygon, extent, is_polygon, polygon_area
from codetr_cli.images.tile_grid import Tile, tile_grid

MIN_VISIBLE = 0.1
MIN_SIDE_PX = 1.0
KEPT_BYTES = 1 << 29
"""Of the drawings of an image's run-length codes, a byte a pixel; others are drawn for each tile."""
TIGHT_PX = 2.0
"""An outline whose extent differs by more from its box does not decide the box of a part."""


@dataclass(frozen=True)
class SliceRule:
    """How images are cut: width and height of a tile, share of a tile that the next one repeats, see `min_visible`."""

    width: int
    height: int
    overlap: float = 0.2
    min_visible: float = MIN_VISIBLE

    def tiles(self, width: int, height: int) -> Iterator[Tile]:
        """The tiles of an image, row by row."""
        return tile_grid((height, width), (self.height, self.width), self.overlap)

    def is_seen(self, box: Corners, part: Corners) -> bool:
        """Whether a tile that shows `part` of a box shows enough of it."""
        (x1, y1, x2, y2), (left, top, right, bottom) = box, part
        most = min(x2 - x1, self.width) * min(y2 - y1, self.height)
        return (right - left) * (bottom - top) >= self.min_visible * most


class ObjectCutter:
    """Cuts the objects of one image.

    The objects of a tile are found among those of its row, and a run-length code is drawn once, as far as the drawings
    of all objects fit into `KEPT_BYTES`.

    Args:
        objects: of the image.
        size: of the image, (height, width).
        rule: how objects are cut.
        counts: of `content.NOTES`.
    """

    def __init__(
        self, objects: Sequence[WrittenObject], size: tuple[int, int], rule: SliceRule, counts: Counter[str]
    ) -> None:
        self._objects, self._size, self._rule, self._counts = objects, size, rule, counts
        self._boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
        self._row: tuple[tuple[int, int], np.ndarray] = ((0, 0), np.zeros(0, np.int64))
        self._blocks: dict[int, Block] = {}
        self._kept_bytes = 0

    def of(self, tile: Tile) -> list[tuple[int, WrittenObject]]:
        """The objects of a tile, in its pixels, with their indices among those of the image."""
        found = []
        for index in self._touched(tile):
            part = self._part(index, tile)
            if part is not None:
                found.append((index, part))
        return found

    def _touched(self, tile: Tile) -> list[int]:
        """The objects whose boxes share an area with a tile, in the order of the image; tiles come row by row."""
        if self._row[0] != (tile.top, tile.height):
            above, below = self._boxes[:, 1], self._boxes[:, 3]
            rows = np.flatnonzero((below > tile.top) & (above < tile.top + tile.height) & (below > above))
            self._row = ((tile.top, tile.height), rows)
        rows = self._row[1]
        left, right = self._boxes[rows, 0], self._boxes[rows, 2]
        touched: list[int] = rows[(right > tile.left) & (left < tile.left + tile.width) & (right > left)].tolist()
        return touched

    def _part(self, index: int, tile: Tile) -> WrittenObject | None:
        """The part of an object in a tile that its box shares an area with; None if it is too small."""
        item = self._objects[index]
        height, width = self._size
        box = _inside(item.box, (0, 0, width, height))
        part = _inside(item.box, (tile.left, tile.top, tile.left + tile.width, tile.top + tile.height))
        is_whole = part == box
        outline = None
        if item.outline:
            try:
                outline = cut_outline(item.outline, tile, self._size, self._block(index))
            except OutlineError:
                self._counts["broken_outlines"] += 1
            else:
                if not is_whole and not outline:
                    self._counts["small_parts"] += 1
                    return None
        is_seen = is_whole or item.crowd or self._rule.is_seen(box, part)
        part = part if is_whole or item.crowd else _tightened(part, item, outline, tile)
        if not is_seen or (not is_whole and min(part[2] - part[0], part[3] - part[1]) < MIN_SIDE_PX):
            self._counts["small_parts"] += 1
            return None
        self._counts["cut"] += not is_whole
        x1, y1, x2, y2 = part
        moved = (x1 - tile.left, y1 - tile.top, x2 - tile.left, y2 - tile.top)
        entry = {key: value for key, value in item.entry.items() if key not in ("id", "segmentation")}
        if "id" in item.entry:
            entry["source_id"] = item.entry["id"]
        if not is_whole:
            entry["area"] = _area(outline, moved)
        if "keypoints" in entry:
            entry.update(_moved_keypoints(entry, tile))
        return replace(item, box=moved, outline=outline, entry=entry)

    def _block(self, index: int) -> Block | None:
        """The drawing of a run-length code, None for other outlines.

        Raises:
            OutlineError: it is broken.
        """
        outline = self._objects[index].outline
        if isinstance(outline, list):
            return None
        block = self._blocks.get(index)
        if block is None:
            block = decode(outline, self._size)
            if self._kept_bytes + block.pixels.nbytes <= KEPT_BYTES:
                self._blocks[index] = block
                self._kept_bytes += block.pixels.nbytes
        return block


def cut_outline(outline: Any, tile: Tile, size: tuple[int, int], drawn: Block | None = None) -> Any:
    """The part of an outline in a tile, in its pixels, as polygons or as a run-length code; None if there is none.

    Args:
        outline: as in COCO.
        tile: the tile.
        size: of the image, (height, width).
        drawn: a run-length code as `decode` draws it, if that is done already.

    Raises:
        OutlineError: it is broken.
    """
    if isinstance(outline, list):
        if not all(map(is_polygon, outline)):
            raise OutlineError("a broken polygon")
        parts = [cut_polygon(polygon, tile) for polygon in outline]
        return [part for part in parts if part] or None
    block = decode(outline, size) if drawn is None else drawn
    bitmap = np.zeros((tile.height, tile.width), bool)
    height, width = block.pixels.shape
    top, left = block.top - tile.top, block.left - tile.left
    rows = slice(max(top, 0), max(min(top + height, tile.height), 0))
    columns = slice(max(left, 0), max(min(left + width, tile.width), 0))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    bitmap[rows, columns] = block.pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    if not bitmap.any():
        return None
    if isinstance(outline["counts"], list):
        return encode(bitmap)
    code = pycocotools_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": [tile.height, tile.width], "counts": code["counts"].decode("ascii")}


def _inside(box: Corners, frame: Corners) -> Corners:
    return max(box[0], frame[0]), max(box[1], frame[1]), min(box[2], frame[2]), min(box[3], frame[3])


def _tightened(part: Corners, item: WrittenObject, outline: Any, tile: Tile) -> Corners:
    """The part of a box, no larger than the part of the outline, if box and outline are of one extent."""
    if not isinstance(outline, list):
        return part
    whole = extent([value for polygon in item.outline for value in polygon])
    if max(abs(a - b) for a, b in zip(whole, item.box, strict=True)) > TIGHT_PX:
        return part
    x1, y1, x2, y2 = extent([value for polygon in outline for value in polygon])
    return _inside(part, (x1 + tile.left, y1 + tile.top, x2 + tile.left, y2 + tile.top))


def _area(outline: Any, box: Corners) -> float:
    """The area of a part: of its outline, else of its box."""
    if isinstance(outline, list):
        return round(math.fsum(map(polygon_area, outline)), 3)
    if isinstance(outline, dict):
        counts = outline["counts"]
        if isinstance(counts, list):
            return float(sum(counts[1::2]))
        return float(pycocotools_mask.area({"size": outline["size"], "counts": counts.encode("ascii")}))
    return round((box[2] - box[0]) * (box[3] - box[1]), 3)


def _moved_keypoints(entry: Mapping[str, Any], tile: Tile) -> dict[str, Any]:
    """The keypoints x, y, v, ... in the tile's pixels; those outside of it become 0, 0, 0."""
    values = entry["keypoints"]
    if not isinstance(values, list) or len(values) % 3 or any(type(value) not in (int, float) for value in values):
        return {}
    moved: list[float] = []
    for x, y, v in zip(values[::3], values[1::3], values[2::3], strict=True):
        inside = v and tile.left <= x < tile.left + tile.width and tile.top <= y < tile.top + tile.height
        moved += [x - tile.left, y - tile.top, v] if inside else [0, 0, 0]
    shown = {"num_keypoints": sum(v > 0 for v in moved[2::3])} if "num_keypoints" in entry else {}
    return {"keypoints": moved, **shown}
