"""Merging is tested apart from networks: oracles detect exactly what each view shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codetr_cli.images.tile_grid import tile_grid
from codetr_cli.inference.rle import decode_masks, encode_masks
from codetr_cli.inference.tile_merging import Frame, merge_views, near_pairs
from codetr_cli.models.postprocess import Detections
from tests.inference.scenes import Scene, merged, random_scene, scene
from tests.postprocessing import post_process

TILE = (100, 100)


def rows(boxes: np.ndarray, labels: np.ndarray) -> list[tuple[float, ...]]:
    return sorted((*box, label) for box, label in zip(np.round(boxes, 2).tolist(), labels.tolist(), strict=True))


def assert_each_once(found: Detections, of: Scene) -> None:
    assert rows(found.boxes.numpy(), found.labels.numpy()) == rows(of.boxes, of.labels)


def detections(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
    )


NMS = pytest.mark.parametrize("nms", ["none", "hard", "soft"])


@NMS
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_objects_on_borders_corners_and_edges_are_found_once(nms: str, overlap: float) -> None:
    of = scene(
        (180, 260),
        (10, 10, 30, 25),  # inside of one tile
        (75, 40, 110, 60),  # across a border
        (70, 70, 110, 110),  # across a corner
        (0, 150, 12, 180),  # in a corner of the image, whose edges are no borders
        (240, 0, 260, 30),
        (150, 0, 170, 15),
        (79, 120, 81, 122),  # on the first pixels of a tile
        (98, 120, 103, 122),
    )
    assert_each_once(merged(of, TILE, overlap, nms=nms), of)
    assert_each_once(merged(of, TILE, overlap, nms=nms, whole=40), of)


@NMS
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_objects_larger_than_a_tile_are_found_once(nms: str, overlap: float) -> None:
    """By the view of the whole image, or else from the fragments of all tiles."""
    of = scene((400, 420), (20, 30, 390, 370), (5, 5, 210, 25), (395, 100, 415, 390))
    assert_each_once(merged(of, TILE, overlap, nms=nms), of)
    assert_each_once(merged(of, TILE, overlap, nms=nms, whole=None), of)


def test_a_small_object_inside_a_large_one_of_its_class_is_kept() -> None:
    large = (20, 20, 380, 380)
    small = [(75, 75, 90, 90), (82, 150, 98, 166), (200, 195, 215, 205), (30, 30, 37, 37)]
    of = scene((400, 400), large, *small)
    for whole in (1, 30, None):
        assert_each_once(merged(of, TILE, 0.2, whole=whole), of)


def test_neighbours_in_a_crowd_are_not_merged() -> None:
    """Objects that touch, and some that overlap by half, in a row that crosses borders."""
    touching = [(x, 20, x + 12, 50) for x in range(5, 240, 12)]
    overlapping = [(x, 60, x + 20, 90) for x in range(5, 230, 8)]
    stacked = [(10, y, 60, y + 9) for y in range(100, 300, 9)]
    of = scene((320, 260), *touching, *overlapping, *stacked)
    for nms in ("none", "soft"):
        assert_each_once(merged(of, TILE, 0.3, whole=25, nms=nms), of)
        assert_each_once(merged(of, TILE, 0.3, whole=1, nms=nms), of)


def test_classes_are_apart() -> None:
    of = scene((180, 180), (70, 70, 110, 110, 0), (70, 70, 110, 110, 1), (72, 72, 108, 108, 2))
    assert_each_once(merged(of, TILE, 0.2), of)


def test_a_confident_fragment_loses_to_the_whole_object_which_takes_its_score() -> None:
    tiles = list(tile_grid((100, 180), TILE, 0.2))
    frames = [*(Frame.of_tile(tile, (100, 180)) for tile in tiles), Frame.of_image((100, 180))]
    fragment, whole = detections([[60, 20, 100, 40]], [0.99]), detections([[60, 20, 150, 40]], [0.35])
    nothing = detections([], [])
    found = merge_views([fragment, nothing, whole], frames, post_process())
    assert found.boxes.tolist() == [[60, 20, 150, 40]]
    assert found.scores.tolist() == pytest.approx([0.99])
    # A box that scores next to nothing explains nothing.
    unlikely = detections([[60, 20, 150, 40]], [0.05])
    found = merge_views([fragment, nothing, unlikely], frames, post_process())
    assert found.boxes[0].tolist() == [60, 20, 100, 40]


def test_a_fragment_that_nothing_continues_stays() -> None:
    tiles = list(tile_grid((100, 180), TILE, 0.2))
    frames = [Frame.of_tile(tile, (100, 180)) for tile in tiles]
    found = merge_views([detections([[60, 20, 100, 40]], [0.8]), detections([], [])], frames, post_process())
    assert found.boxes.tolist() == [[60, 20, 100, 40]]


def test_the_thin_rest_of_a_disc_is_dropped() -> None:
    """A disc of radius 100 that shows 3 pixels in another tile: the box of these is only 34 pixels high."""
    frames = [
        Frame((0, 0, 100, 200), (False, False, True, False)),
        Frame((90, 0, 290, 200), (True, False, False, False)),
    ]
    disc, rest = detections([[97, 0, 290, 200]], [0.7]), detections([[97, 83, 100, 117]], [0.9])
    found = merge_views([rest, disc], frames, post_process())
    assert found.boxes.tolist() == [[97, 0, 290, 200]]


def test_masks_are_stitched_exactly() -> None:
    """Where no view has the object whole, its mask is the union of those of its fragments."""
    of = scene((300, 310), (25, 40, 280, 60), (150, 100, 170, 290), (10, 200, 60, 250))
    found = merged(of, TILE, 0.2, whole=None, with_masks=True)
    assert_each_once(found, of)
    bitmaps = decode_masks(encode_masks(found, of.size), of.size)
    for box, bitmap in zip(found.boxes.round().int().tolist(), bitmaps, strict=True):
        expected = np.zeros(of.size, bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        np.testing.assert_array_equal(bitmap, expected)


def test_a_stitched_mask_is_the_union_of_its_parts() -> None:
    """Two halves of a staircase: neither mask fills its box."""
    size = (100, 180)
    frames = [Frame.of_tile(tile, size) for tile in tile_grid(size, TILE, 0.2)]
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, 0, :2], masks[1, 0, 2:] = 1, 1
    boxes = [torch.tensor([[20.0, 20.0, 100.0, 60.0]]), torch.tensor([[80.0, 20.0, 160.0, 60.0]])]
    one = torch.tensor([0.9])
    found = [Detections(box, one, torch.tensor([0]), mask, one / 2) for box, mask in zip(boxes, masks, strict=True)]
    stitched = merge_views(found, frames, post_process())
    assert stitched.boxes.tolist() == [[20, 20, 160, 60]]
    assert stitched.mask_scores.tolist() == pytest.approx([0.45])
    (bitmap,) = decode_masks(encode_masks(stitched, size), size)
    alone = [decode_masks(encode_masks(each, size), size)[0] for each in found]
    assert alone[0].any()
    assert not (alone[0] & alone[1]).any()
    np.testing.assert_array_equal(bitmap, alone[0] | alone[1])


def test_nms_is_that_of_the_settings_within_a_view() -> None:
    frames = [Frame.of_image((100, 100))]
    found = detections([[0, 0, 50, 50], [0, 0, 50, 45], [60, 60, 90, 90]], [0.9, 0.8, 0.7])
    merged_by = {nms: merge_views([found], frames, post_process(nms=nms)) for nms in ("none", "hard", "soft")}
    assert merged_by["none"].scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert merged_by["hard"].scores.tolist() == pytest.approx([0.9, 0.7])
    assert merged_by["soft"].scores.tolist() == pytest.approx([0.9, 0.7, 0.08])
    assert len(merge_views([found], frames, post_process(max_detections=1))) == 1
    assert len(merge_views([found[:0], found[:0]], frames * 2, post_process())) == 0


@pytest.mark.parametrize("seed", range(8))
def test_random_scenes(seed: int) -> None:
    """Tiles of any size, any overlap from a tenth, any NMS, and a view of the whole image that misses small objects."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(20):
        of = random_scene(rng)
        tile = (int(rng.integers(64, 300)), int(rng.integers(64, 300)))
        overlap, whole, nms = (
            float(rng.uniform(0.1, 0.6)),
            float(rng.uniform(1, 30)),
            rng.choice(["none", "hard", "soft"]),
        )
        assert_each_once(merged(of, tile, overlap, whole=whole, rng=rng, nms=str(nms)), of)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_many_random_scenes(seed: int) -> None:
    test_random_scenes(1000 + seed)


def test_noise_of_boxes_does_not_repeat_objects() -> None:
    """Each view has a box of its own for each object, some pixels off."""
    rng = np.random.default_rng(5)
    of = scene((300, 400), *((x, y, x + 30, y + 30) for x in range(5, 370, 40) for y in range(5, 260, 40)))
    for nms in ("none", "soft"):
        found = merged(of, TILE, 0.35, whole=1, rng=rng, jitter=3.0, nms=nms)
        assert len(found[found.scores >= 0.3]) == len(of.boxes)


def test_pairs_of_boxes_that_nearly_touch() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(-20, 200, (300, 2))
    boxes, labels = np.concatenate([low, low + rng.uniform(0, 40, (300, 2))], 1), rng.integers(0, 4, 300)
    margins = rng.uniform(0, 3, 300)
    grown = boxes + margins[:, None] * [-1, -1, 1, 1]
    expected = {
        (a, b)
        for a in range(300)
        for b in range(a)
        if labels[a] == labels[b]
        and (np.maximum(grown[a, :2], grown[b, :2]) <= np.minimum(grown[a, 2:], grown[b, 2:])).all()
    }
    first, second = near_pairs(boxes, labels, margins)
    found = [(max(pair), min(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert len(near_pairs(boxes[:1], labels[:1], margins[:1])[0]) == 0


def test_many_boxes_are_merged_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 50, (200, 2))
    boxes, labels, margins = np.concatenate([low, low + 20], 1), rng.integers(0, 2, 200), np.zeros(200)
    whole = set(zip(*map(tuple, near_pairs(boxes, labels, margins)), strict=True))
    monkeypatch.setattr("codetr_cli.inference.tile_merging.PAIRS_AT_ONCE", 100)
    assert set(zip(*map(tuple, near_pairs(boxes, labels, margins)), strict=True)) == whole
