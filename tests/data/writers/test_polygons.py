from __future__ import annotations

import pytest

from codetr_cli.data.writers.polygons import cut_polygon, extent, is_polygon, polygon_area
from codetr_cli.images.tile_grid import Tile


def test_polygons_are_cut() -> None:
    assert cut_polygon([0, 0, 20, 0, 20, 20, 0, 20], Tile(10, 10, 20, 20)) == [0, 0, 10, 0, 10, 10, 0, 10]
    assert cut_polygon([0, 0, 5, 0, 5, 5], Tile(10, 10, 20, 20)) == []
    assert cut_polygon([12, 12, 14, 12, 14, 15], Tile(10, 10, 20, 20)) == [2, 2, 4, 2, 4, 5]


def test_area_and_extent() -> None:
    points = [1.0, 2.0, 5.0, 2.0, 5.0, 8.0]
    assert polygon_area(points) == 12
    assert extent(points) == (1, 2, 5, 8)


@pytest.mark.parametrize("value", [None, [], [1, 2, 3, 4], [1] * 7, [1, 2, 3, 4, 5, None], [0, 0, 1, 0, 1, 1e10]])
def test_what_is_no_polygon(value: object) -> None:
    assert is_polygon([0, 0.5, 1, 0, 1, 1])
    assert not is_polygon(value)
