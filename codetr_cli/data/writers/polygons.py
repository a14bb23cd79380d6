"""Polygons x, y, x, y, ... in pixels: their extent, their area, and the part of them in a rectangle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from codetr_cli.formats.intermediate import MAX_CORNER
from codetr_cli.images.tile_grid import Tile

Corners: TypeAlias = tuple[float, float, float, float]


def is_polygon(value: Any) -> bool:
    """Whether a JSON value is a list of three or more finite points."""
    return (
        isinstance(value, list)
        and len(value) >= 6
        and len(value) % 2 == 0
        and all(type(each) in (int, float) and abs(each) < MAX_CORNER for each in value)
    )


def cut_polygon(polygon: list[float], tile: Tile) -> list[float]:
    """The part of a polygon x, y, x, y, ... in a tile, in its pixels; empty if it has no area.

    Each edge of the tile cuts in turn (Sutherland and Hodgman, 1974). Parts of a concave polygon stay connected along
    the edge of the tile, by a line without area.
    """
    points: list[tuple[float, float]] = list(zip(polygon[::2], polygon[1::2], strict=True))
    for axis, sign, limit in (
        (0, 1, tile.left),
        (0, -1, tile.left + tile.width),
        (1, 1, tile.top),
        (1, -1, tile.top + tile.height),
    ):
        kept: list[tuple[float, float]] = []
        for before, point in zip(points[-1:] + points[:-1], points, strict=True):
            inside, was_inside = sign * (point[axis] - limit) >= 0, sign * (before[axis] - limit) >= 0
            if inside != was_inside:
                share = (limit - before[axis]) / (point[axis] - before[axis])
                other = before[1 - axis] + share * (point[1 - axis] - before[1 - axis])
                kept.append((limit, other) if axis == 0 else (other, limit))
            if inside:
                kept.append(point)
        points = [point for index, point in enumerate(kept) if point != kept[index - 1]]
    moved = [
        round(value - start, 3) for point in points for value, start in zip(point, (tile.left, tile.top), strict=True)
    ]
    return moved if len(moved) >= 6 and polygon_area(moved) > 0 else []


def extent(points: Sequence[float]) -> Corners:
    """The smallest box around points."""
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def polygon_area(polygon: Sequence[float]) -> float:
    """The area, in square pixels, of a polygon whose edges do not cross."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(math.fsum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
