from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.annotations.masks import Block
from codetr_cli.inference import drawing, fonts
from codetr_cli.inference.draw_options import DrawOptions
from codetr_cli.inference.drawing import Shape, draw_detections, draw_shapes, font_size, line_width
from codetr_cli.inference.palette import class_colour
from codetr_cli.inference.rle import encode_crop


def draw(image, boxes, names=None, scores=None, **options):
    count = len(boxes)
    return draw_detections(
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.4, count, dtype=np.float32) if scores is None else np.array(scores, np.float32),
        ["thing"] * count if names is None else names,
        category_ids=[7] * count,
        options=DrawOptions(**options),
    )


@pytest.fixture
def placed(monkeypatch):
    """The chips of the last drawing."""
    chips = []
    original = drawing.draw_chip

    def record(pen, chip):
        chips.append(chip)
        original(pen, chip)

    monkeypatch.setattr(drawing, "draw_chip", record)
    return chips


def overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_outline_has_the_colour_of_the_class_and_the_image_stays():
    image = np.full((200, 300, 3), 128, np.uint8)
    before = image.copy()
    drawn = draw(image, [[50, 60, 200, 150]])
    assert np.array_equal(image, before)
    assert drawn.shape == image.shape
    assert tuple(drawn[100, 50]) == tuple(drawn[150, 120]) == class_colour("thing")
    assert tuple(drawn[100, 120]) == (128, 128, 128)


def test_nothing_found_draws_nothing():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    assert np.array_equal(draw(image, []), image)


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
    assert drawn.shape == (40, 30, 3)
    assert placed[0].area[2] <= 30


def test_strange_boxes_are_drawn_without_failing():
    draw(np.zeros((50, 60, 3), np.uint8), [[70, 80, 90, 95], [-20, -20, -5, -5], [10, 10, 10, 10], [30, 30, 20, 20]])


def test_sizes_follow_the_image():
    assert line_width(100, 80) == 1
    assert line_width(640, 480) == 2
    assert line_width(1333, 800) == 3
    assert line_width(6000, 4000) > 10
    assert font_size(100, 80) < font_size(640, 480) < font_size(6000, 4000) < font_size(12000, 9000)


def test_small_objects_of_large_images_have_small_lines_and_text(placed):
    image = np.zeros((3000, 4000, 3), np.uint8)
    drawn = draw(image, [[100, 200, 130, 230], [1000, 1000, 2500, 2500]])
    small, large = placed[1], placed[0]
    assert small.font_px == 20 < large.font_px == font_size(4000, 3000) // 4 * 4
    assert tuple(drawn[215, 102]) == class_colour("thing")
    assert tuple(drawn[215, 115]) == (0, 0, 0), "the object is visible"
    assert tuple(drawn[1800, 1000 + line_width(4000, 3000) - 1]) == class_colour("thing")


def test_sizes_can_be_chosen(placed):
    image = np.zeros((300, 400, 3), np.uint8)
    drawn = draw(image, [[100, 100, 300, 250]], thickness=7, font_size=31)
    assert placed[0].font_px == 31
    assert [tuple(drawn[180, x]) == class_colour("thing") for x in (100, 106, 108)] == [True, True, False]


@pytest.mark.parametrize(("labels", "texts"), [("none", []), ("class", ["thing"]), ("score", ["thing 0.90"])])
def test_labels(placed, labels, texts):
    draw(np.zeros((300, 400, 3), np.uint8), [[100, 100, 300, 250]], labels=labels)
    assert [" ".join(chip.text.split()) for chip in placed] == texts


def test_a_thumbnail_has_shortened_labels(placed):
    draw(np.zeros((64, 64, 3), np.uint8), [[5, 20, 40, 60]], names=["thing"])
    draw(np.zeros((64, 64, 3), np.uint8), [[5, 20, 30, 60]], names=["traffic light"])
    assert placed[0].text == "thing"
    assert placed[1].text.startswith("tra")
    assert placed[1].text.endswith("…")


def test_an_undrawable_name_is_replaced_by_the_id(placed, monkeypatch):
    monkeypatch.setattr(fonts, "_fonts", list)
    fonts._font_for.cache_clear()
    draw(np.zeros((300, 400, 3), np.uint8), [[100, 100, 300, 250]], names=["\u732b"])
    draw(np.zeros((300, 400, 3), np.uint8), [[100, 100, 300, 250]], names=["a\nb\x1b"])
    fonts._font_for.cache_clear()
    assert [" ".join(chip.text.split()) for chip in placed] == ["(category 7) 0.90", "a b 0.90"]


def test_dashed_boxes_have_gaps():
    image = np.full((200, 300, 3), 128, np.uint8)
    shape = Shape((50, 60, 250, 150), (255, 0, 0), is_dashed=True)
    drawn = draw_shapes(image, [shape], DrawOptions())
    assert {tuple(pixel) for pixel in drawn[60, 50:250].tolist()} == {(255, 0, 0), drawing.halo_of((255, 0, 0))}


def test_a_long_list_of_long_names_takes_no_time(placed):
    draw(np.zeros((300, 400, 3), np.uint8), [[10, 10, 390, 290]], names=["w" * 100_000])
    assert len(placed[0].text) <= drawing.MAX_TEXT


def rle(mask):
    return encode_crop(mask, 0, 0, mask.shape)


def test_masks_tint_their_pixels_and_have_an_edge():
    image = np.full((200, 300, 3), 100, np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[60:160, 80:240] = True
    drawn = draw_detections(image, np.array([[80, 60, 240, 160]], np.float32), np.ones(1), ["thing"], [rle(mask)])
    pixels = drawn
    tinted = np.round(0.55 * 100 + 0.45 * np.array(class_colour("thing"), np.float32)).astype(np.uint8)
    assert tuple(pixels[110, 160]) == tuple(tinted), "translucent"
    assert (image == 100).all(), "the image itself stays"
    outside = np.delete(pixels, slice(30, 162), axis=0)
    assert (outside == 100).all()


def test_of_equal_masks_the_surest_is_on_top():
    image = np.zeros((120, 120, 3), np.uint8)
    left, right = np.zeros((120, 120), bool), np.zeros((120, 120), bool)
    left[:, :80], right[:, 40:] = True, True
    boxes = np.array([[0, 0, 80, 120], [40, 0, 120, 120]], np.float32)
    drawn = np.asarray(draw_detections(image, boxes, np.array([0.9, 0.4]), ["a", "b"], [rle(left), rle(right)])).astype(
        int
    )
    below, above = (0.45 * np.array(class_colour(name)) for name in ("b", "a"))
    assert np.abs(drawn[60, 60] - (0.55 * below + above)).max() <= 1, "where they overlap the other one shines through"
    assert np.abs(drawn[60, 20] - above).max() <= 1


def test_edges_of_masks_are_closed_at_the_border_of_the_image():
    mask = np.zeros((120, 120), bool)
    mask[:60, :60] = True
    shape = Shape((100, 100, 110, 110), (255, 0, 0), mask=Block(0, 0, mask.astype(np.uint8)))
    drawn = draw_shapes(np.zeros((120, 120, 3), np.uint8), [shape], DrawOptions(thickness=2))
    edges = [drawn[0, 30], drawn[30, 0], drawn[59, 30], drawn[30, 59]]
    assert all(pixel[0] > 240 for pixel in edges), edges
    assert drawn[30, 30, 0] == 115
    assert drawn[64, 30, 0] == 0


def test_a_small_mask_shows_on_a_large_one_whatever_their_scores():
    image = np.zeros((120, 120, 3), np.uint8)
    large, small = np.ones((120, 120), bool), np.zeros((120, 120), bool)
    small[40:80, 40:80] = True
    boxes = np.array([[0, 0, 120, 120], [40, 40, 80, 80]], np.float32)
    drawn = np.asarray(
        draw_detections(image, boxes, np.array([0.9, 0.4]), ["a", "b"], [rle(large), rle(small)])
    ).astype(int)
    below, above = (0.45 * np.array(class_colour(name)) for name in ("a", "b"))
    assert np.abs(drawn[70, 60] - (0.55 * below + above)).max() <= 1


def test_empty_masks_draw_nothing():
    image = np.full((50, 50, 3), 9, np.uint8)
    box = np.array([[10, 10, 40, 40]], np.float32)
    with_mask = draw_detections(image, box, np.ones(1), ["a"], [rle(np.zeros((50, 50), bool))])
    without = draw_detections(image, box, np.ones(1), ["a"])
    assert np.array_equal(np.asarray(with_mask), np.asarray(without))


def test_very_thick_lines_do_not_cover_the_image_with_their_contrast():
    drawn = draw(np.full((300, 400, 3), 128, np.uint8), [[150, 100, 250, 200]], thickness=1000)
    assert tuple(drawn[150, 200]) == class_colour("thing")
    assert (drawn == 128).all(axis=2).mean() > 0.8
