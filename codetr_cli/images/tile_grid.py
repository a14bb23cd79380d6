"""Where the tiles of an image are: one rule for training data that are cut and for tiles that a detector sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Tile(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def tile_grid(size: tuple[int, int], tile_size: tuple[int, int], overlap: float) -> Iterator[Tile]:
    """Tiles of one size that cover the whole image, row by row.

    The last tile of a row or column ends at the image's edge, so it overlaps more. A side that is no longer than the
    tile's is not cut.

    Args:
        size: of the image, (height, width).
        tile_size: (height, width).
        overlap: share of a tile that the next one repeats, in [0, 1).
    """
    height, width = (min(pair) for pair in zip(size, tile_size, strict=True))
    for top in _starts(size[0], tile_size[0], overlap):
        for left in _starts(size[1], tile_size[1], overlap):
            yield Tile(left, top, width, height)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where the tiles of a side start."""
    if length <= tile:
        return [0]
    step = max(1, round(tile * (1 - overlap)))
    return [*range(0, length - tile, step), length - tile]
