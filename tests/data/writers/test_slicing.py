from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from codetr_cli.annotations.outlines import decode, encode
from codetr_cli.data.writers import slicing
from codetr_cli.data.writers.content import WrittenObject
from codetr_cli.data.writers.slicing import ObjectCutter, SliceRule, cut_outline
from codetr_cli.images.tile_grid import Tile


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("size", [(100, 80), (101, 81), (64, 32), (65, 200), (10, 10), (33, 400)])
def test_tiles_cover_every_pixel_and_are_of_one_size(size: tuple[int, int], overlap: float) -> None:
    width, height = size
    tiles = list(SliceRule(64, 32, overlap).tiles(width, height))
    covered = np.zeros((height, width), int)
    for tile in tiles:
        assert (tile.width, tile.height) == (min(width, 64), min(height, 32))
        assert tile.left + tile.width <= width
        assert tile.top + tile.height <= height
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert covered.min() == 1
    assert len(set(tiles)) == len(tiles)


def cut(box, *, outline=None, crowd=False, tile=Tile(10, 10, 20, 20), rule=SliceRule(20, 20), **entry):  # noqa: B008
    counts: Counter[str] = Counter()
    item = WrittenObject(0, box, crowd, outline, entry)
    return [found for _, found in ObjectCutter([item], (100, 100), rule, counts).of(tile)], counts


def test_objects_are_clipped_and_moved() -> None:
    found, counts = cut((5.5, 12, 25, 50), id=7, area=1.0)
    assert found[0].box == (0, 2, 15, 20)
    assert found[0].entry == {"source_id": 7, "area": 270.0}
    assert counts == {"cut": 1}
    whole, counts = cut((12, 12, 15, 16.5), id=7, area=1.0)
    assert whole[0].box == (2, 2, 5, 6.5)
    assert whole[0].entry == {"source_id": 7, "area": 1.0}
    assert not counts["cut"]
    assert cut((40, 40, 50, 50)) == ([], {})
    assert cut((0, 0, 10, 10)) == ([], {})  # only an edge


def test_the_share_of_an_object_that_a_tile_must_show() -> None:
    # 2 of 12 pixels, 1 of 12 pixels
    assert cut((0, 12, 12, 20))[0]
    assert cut((-1, 12, 11, 20)) == ([], {"small_parts": 1})
    assert cut((-1, 12, 11, 20), crowd=True)[0]
    assert cut((-1, 12, 11, 20), rule=SliceRule(20, 20, 0.2, 0.05))[0]
    # a long object fills the tile from side to side, although that is little of the object
    assert cut((0, 15, 100, 17))[0][0].box == (0, 5, 20, 7)
    assert cut((0, 0, 100, 100))[0][0].box == (0, 0, 20, 20)
    # narrower than one pixel
    assert cut((0, 0, 10.5, 100)) == ([], {"small_parts": 1})


@pytest.mark.parametrize("overlap", [0.0, 0.2])
def test_every_object_is_in_a_tile(overlap: float) -> None:
    random = np.random.default_rng(1)
    rule = SliceRule(32, 24, overlap, 0.25)
    for _ in range(300):
        x, y = random.uniform(0, 90, 2)
        w, h = random.uniform(2, 100 - max(x, y), 2)
        item = WrittenObject(0, (x, y, x + w, y + h))
        cutter = ObjectCutter([item], (100, 100), rule, Counter())
        assert any(cutter.of(tile) for tile in rule.tiles(100, 100))


def test_objects_narrower_than_two_pixels_at_the_edge_of_tiles_may_be_in_none() -> None:
    rule = SliceRule(20, 20, 0.0)
    for left, in_tiles in ((18.0, 1), (18.5, 1), (19.05, 0), (20.0, 1)):
        cutter = ObjectCutter([WrittenObject(0, (left, 5, left + 1.9, 9))], (40, 40), rule, Counter())
        assert sum(bool(cutter.of(tile)) for tile in rule.tiles(40, 40)) == in_tiles, left


def test_the_objects_of_a_tile_are_those_that_share_an_area_with_it() -> None:
    random = np.random.default_rng(2)
    corners = random.uniform(-20, 110, (400, 4)).round()
    objects = [WrittenObject(0, tuple(box)) for box in corners.tolist()]
    rule = SliceRule(30, 20, 0.3, 0.0)
    cutter = ObjectCutter(objects, (100, 100), rule, Counter())
    for tile in rule.tiles(100, 100):
        left, top = np.maximum(corners[:, :2], (tile.left, tile.top)).T
        right, bottom = np.minimum(corners[:, 2:], (tile.left + tile.width, tile.top + tile.height)).T
        assert [index for index, _ in cutter.of(tile)] == np.flatnonzero((right > left) & (bottom > top)).tolist()


def test_work_grows_with_the_parts_and_not_with_objects_times_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        function = getattr(slicing, name)

        def wrapped(*arguments: object) -> object:
            calls[name] += 1
            return function(*arguments)

        monkeypatch.setattr(slicing, name, wrapped)

    counted("decode")
    counted("_inside")
    bitmap = np.zeros((400, 400), bool)
    bitmap[5:380, 5:390] = True
    crowds = [WrittenObject(0, (5.0, 5.0, 390.0, 380.0), True, encode(bitmap)) for _ in range(3)]
    small = [WrittenObject(0, (x, y, x + 9.0, y + 9.0)) for x in range(0, 400, 20) for y in range(0, 400, 20)]
    rule = SliceRule(40, 40, 0.0)
    cutter = ObjectCutter([*crowds, *small], (400, 400), rule, Counter())
    parts = sum(len(cutter.of(tile)) for tile in rule.tiles(400, 400))
    assert parts == 3 * 100 + 400
    assert calls == {"decode": 3, "_inside": 2 * parts}
    # drawings that would need too much memory are made again
    monkeypatch.setattr(slicing, "KEPT_BYTES", 200_000)
    cutter = ObjectCutter(crowds, (400, 400), rule, Counter())
    assert sum(len(cutter.of(tile)) for tile in rule.tiles(400, 400)) == 300
    assert calls["decode"] == 3 + 1 + 2 * 100


@pytest.mark.parametrize("form", ["polygon", "list", "text"])
def test_cut_outlines_have_the_pixels_of_the_whole(form: str) -> None:
    from pycocotools import mask

    size, polygon = (60, 80), [[5.0, 3, 71, 10, 66, 55, 40, 20, 8, 51]]
    bitmap = np.zeros(size, np.uint8)
    block = decode(polygon, size)
    bitmap[block.top : block.top + block.pixels.shape[0], block.left : block.left + block.pixels.shape[1]] = (
        block.pixels
    )
    text = mask.encode(np.asfortranarray(bitmap))
    outline = {
        "polygon": polygon,
        "list": encode(bitmap.astype(bool)),
        "text": {"size": list(size), "counts": text["counts"].decode()},
    }[form]
    for tile in SliceRule(32, 24).tiles(80, 60):
        part = cut_outline(outline, tile, size)
        whole = bitmap[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        found = np.zeros_like(whole)
        if part is not None:
            assert isinstance(part, list) == (form == "polygon")
            block = decode(part, whole.shape)
            rows, columns = block.pixels.shape
            found[block.top : block.top + rows, block.left : block.left + columns] = block.pixels
        different = int((found != whole).sum())
        assert different <= (0 if form != "polygon" else 60), tile  # pixels on the edges of polygons


def test_boxes_of_parts_are_as_tight_as_their_outlines() -> None:
    diagonal = [[0.0, 0, 30, 30, 28, 30, 0, 2]]
    found, _ = cut((0, 0, 30, 30), outline=diagonal, tile=Tile(0, 20, 20, 20))
    assert found[0].box == (18, 0, 20, 2)
    outside, counts = cut((0, 0, 30, 30), outline=diagonal, tile=Tile(0, 15, 10, 10))
    assert outside == []
    assert counts == {"small_parts": 1}
    # an outline of another place does not decide
    found, _ = cut((0, 0, 30, 30), outline=[[0.0, 0, 9, 0, 12, 12]], tile=Tile(0, 0, 20, 20))
    assert found[0].box == (0, 0, 20, 20)


def test_broken_outlines_are_counted_and_their_boxes_kept() -> None:
    for outline in ([[1, 2]], {"size": [3, 3], "counts": [9]}, [[1, 2, 3, 4, 5, None]]):
        found, counts = cut((12, 12, 20, 20), outline=outline)
        assert found[0].box == (2, 2, 10, 10)
        assert counts["broken_outlines"] == 1


def test_keypoints_move_with_their_object() -> None:
    found, _ = cut((0, 0, 28, 28), keypoints=[12, 13, 2, 3, 3, 1, 0, 0, 0], num_keypoints=2)
    assert found[0].entry["keypoints"] == [2, 3, 2, 0, 0, 0, 0, 0, 0]
    assert found[0].entry["num_keypoints"] == 1
