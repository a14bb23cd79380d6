from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.images.tile_grid import Tile, tile_grid


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [(80, 100), (81, 101), (32, 64), (200, 65), (10, 10), (400, 33), (1, 300)])
def test_tiles_cover_every_pixel_and_are_of_one_size(size: tuple[int, int], overlap: float) -> None:
    height, width = size
    tiles = list(tile_grid(size, (32, 64), overlap))
    covered = np.zeros(size, int)
    for tile in tiles:
        assert (tile.width, tile.height) == (min(width, 64), min(height, 32))
        assert 0 <= tile.left <= width - tile.width
        assert 0 <= tile.top <= height - tile.height
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert covered.min() == 1
    assert len(set(tiles)) == len(tiles)


def test_the_last_tile_ends_at_the_edge() -> None:
    assert list(tile_grid((10, 25), (10, 10), 0.2)) == [
        Tile(0, 0, 10, 10),
        Tile(8, 0, 10, 10),
        Tile(15, 0, 10, 10),
    ]
    assert list(tile_grid((10, 20), (10, 10), 0.0)) == [Tile(0, 0, 10, 10), Tile(10, 0, 10, 10)]
    assert list(tile_grid((4, 7), (10, 10), 0.5)) == [Tile(0, 0, 7, 4)]
