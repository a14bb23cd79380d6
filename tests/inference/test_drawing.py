from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.inference import drawing
from codetr_cli.inference.drawing import class_colour, draw_detections, font_size, line_width
from codetr_cli.inference.rle import encode_crop


def draw(image, boxes, labels=None, names=None, scores=None):
    count = len(boxes)
    return draw_detections(
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.4, count, dtype=np.float32) if scores is None else np.array(scores, np.float32),
        np.zeros(count, np.int64) if labels is None else np.array(labels),
        ["thing"] * count if names is None else names,
    )


@pytest.fixture
def placed(monkeypatch):
    """The chips of the last drawing."""
    chips = []
    original = drawing._draw_chip

    def record(pen, chip):
        chips.append(chip)
        original(pen, chip)

    monkeypatch.setattr(drawing, "_draw_chip", record)
    return chips


def overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_outline_has_the_colour_of_the_class_and_the_image_stays():
    image = np.full((200, 300, 3), 128, np.uint8)
    before = image.copy()
    drawn = np.asarray(draw(image, [[50, 60, 200, 150]], labels=[3]))
    assert np.array_equal(image, before)
    assert drawn.shape == image.shape
    assert tuple(drawn[100, 50]) == tuple(drawn[150, 120]) == class_colour(3)
    assert tuple(drawn[100, 120]) == (128, 128, 128)


def test_nothing_found_draws_nothing():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(draw(image, [])), image)


def test_colours_are_stable_and_differ():
    colours = [class_colour(label) for label in range(80)]
    assert colours == [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


@pytest.mark.parametrize("size", [(60, 80), (480, 640), (2000, 3000)])
def test_chips_stay_inside_the_image(placed, size):
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    corners = [[0, 0, 30, 20], [width - 20, 0, width, 20], [0, height - 20, 20, height]]
    draw(image, [*corners, [width - 9, height - 9, width + 30, height + 30], [-50, -50, width + 50, height + 50]])
    assert placed
    for chip in placed:
        left, top, right, bottom = chip.area
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_chips_of_nearby_boxes_do_not_cover_each_other(placed):
    image = np.zeros((480, 640, 3), np.uint8)
    draw(image, [[100, 100, 300, 300], [104, 102, 298, 305], [110, 100, 280, 290], [300, 300, 500, 400]])
    assert len(placed) == 4
    for i, chip in enumerate(placed):
        assert all(overlap(chip.area, other.area) == 0 for other in placed[:i])


def test_a_crowd_keeps_the_best_chips_and_all_boxes(placed):
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = [[40 + i % 3, 40, 60, 60] for i in range(30)]
    draw(image, boxes, scores=np.linspace(0.99, 0.3, 30))
    assert 1 <= len(placed) < 30
    assert "0.99" in {chip.text.split()[-1] for chip in placed}


def test_a_long_name_on_a_small_image_fits(placed):
    drawn = draw(np.zeros((40, 30, 3), np.uint8), [[5, 5, 20, 20]], names=["a very long class name indeed"])
    assert drawn.size == (30, 40)
    assert placed[0].area[2] <= 30


def test_strange_boxes_are_drawn_without_failing():
    draw(np.zeros((50, 60, 3), np.uint8), [[70, 80, 90, 95], [-20, -20, -5, -5], [10, 10, 10, 10], [30, 30, 20, 20]])


def test_sizes_follow_the_image():
    assert line_width(100, 80) == 1
    assert line_width(640, 480) == 2
    assert line_width(1333, 800) == 3
    assert line_width(6000, 4000) > 10
    assert font_size(100, 80) < font_size(640, 480) < font_size(6000, 4000)


def rle(mask):
    return encode_crop(mask, 0, 0, mask.shape)


def test_masks_tint_their_pixels_and_have_an_edge():
    image = np.full((200, 300, 3), 100, np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[60:160, 80:240] = True
    drawn = draw_detections(
        image, np.array([[80, 60, 240, 160]], np.float32), np.ones(1), np.array([1]), ["thing"], [rle(mask)]
    )
    pixels = np.asarray(drawn)
    tinted = np.round(0.55 * 100 + 0.45 * np.array(class_colour(1), np.float32)).astype(np.uint8)
    assert tuple(pixels[110, 160]) == tuple(tinted), "translucent"
    assert (image == 100).all(), "the image itself stays"
    outside = np.delete(pixels, slice(30, 162), axis=0)
    assert (outside == 100).all()


def test_of_equal_masks_the_surest_lies_on_top_and_its_edge_is_closed_at_the_border():
    image = np.zeros((120, 120, 3), np.uint8)
    left, right = np.zeros((120, 120), bool), np.zeros((120, 120), bool)
    left[:, :80], right[:, 40:] = True, True
    boxes = np.array([[0, 0, 80, 120], [40, 0, 120, 120]], np.float32)
    drawn = np.asarray(
        draw_detections(image, boxes, np.array([0.9, 0.4]), np.array([0, 1]), ["a", "b"], [rle(left), rle(right)])
    ).astype(int)
    both, only = drawn[60, 60], drawn[60, 20]
    assert np.abs(both - 0.45 * np.array(class_colour(0))).sum() < np.abs(both - 0.45 * np.array(class_colour(1))).sum()
    assert only.sum() < both.sum(), "where they overlap the other one shines through"


def test_a_small_mask_shows_on_a_large_one_whatever_their_scores():
    image = np.zeros((120, 120, 3), np.uint8)
    large, small = np.ones((120, 120), bool), np.zeros((120, 120), bool)
    small[40:80, 40:80] = True
    boxes = np.array([[0, 0, 120, 120], [40, 40, 80, 80]], np.float32)
    drawn = np.asarray(
        draw_detections(image, boxes, np.array([0.9, 0.4]), np.array([0, 1]), ["a", "b"], [rle(large), rle(small)])
    ).astype(int)
    below, above = (0.45 * np.array(class_colour(label)) for label in (0, 1))
    assert np.abs(drawn[70, 60] - (0.55 * below + above)).max() <= 1


def test_empty_masks_draw_nothing():
    image = np.full((50, 50, 3), 9, np.uint8)
    box = np.array([[10, 10, 40, 40]], np.float32)
    with_mask = draw_detections(image, box, np.ones(1), np.array([0]), ["a"], [rle(np.zeros((50, 50), bool))])
    without = draw_detections(image, box, np.ones(1), np.array([0]), ["a"])
    assert np.array_equal(np.asarray(with_mask), np.asarray(without))
