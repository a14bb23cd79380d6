from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from codetr_cli.models import mask_grid
from codetr_cli.models.mask_grid import boundary, enlarge, paste_crops
from tests.models.pasted_masks import paste_masks


def count_others(masks, width):
    """Independent of the module: cells of the other kind in the window, background beyond the edge, one by one."""
    count, side, _ = masks.shape
    others = torch.zeros(masks.shape, dtype=torch.int64)
    for n in range(count):
        for y in range(side):
            for x in range(side):
                for dy in range(-width, width + 1):
                    for dx in range(-width, width + 1):
                        inside = 0 <= y + dy < side and 0 <= x + dx < side
                        there = bool(masks[n, y + dy, x + dx]) if inside else False
                        others[n, y, x] += there != bool(masks[n, y, x])
    return others


def paste_by_grid(probabilities, boxes, size):
    """Bilinear samples of the whole image at once."""
    height, width = size
    x1, y1, x2, y2 = boxes.split(1, dim=1)
    y = (torch.arange(height, dtype=boxes.dtype) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(width, dtype=boxes.dtype) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], 3)
    return F.grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0] >= 0.5


def random_boxes(count, dtype=torch.float32):
    corner = torch.rand(count, 2, dtype=dtype) * 90 - 20
    return torch.cat([corner, corner + torch.rand(count, 2, dtype=dtype) * 60 + 0.5], 1)


@pytest.mark.parametrize(("width", "enough"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_boundary_needs_enough_cells_of_the_other_kind(width, enough, share):
    masks = torch.rand(3, 7, 7) < share
    assert torch.equal(boundary(masks, width), count_others(masks, width) >= enough)


def test_the_edge_of_the_grid_is_a_boundary_of_a_full_mask_only():
    full, empty = torch.ones(1, 6, 6, dtype=torch.bool), torch.zeros(1, 6, 6, dtype=torch.bool)
    ring = torch.ones(6, 6, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    assert torch.equal(boundary(full, 1)[0], ring)
    assert not bool(boundary(empty, 1).any())
    assert boundary(empty[:0], 1).shape == (0, 6, 6)


def test_one_cell_is_too_little_for_a_wide_boundary():
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 4, 4] = True
    assert int(boundary(mask, 1).sum()) == 9
    assert int(boundary(mask, 2).sum()) == 1, "the cell itself; its neighbours have one of 25 only"


def test_enlarging_keeps_the_corners():
    values = torch.rand(2, 1, 4, 4)
    larger = enlarge(values, 8)
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(larger[:, 0, y, x], values[:, 0, y, x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pasting_equals_sampling_the_whole_image(dtype):
    probabilities, boxes = torch.rand(40, 7, 7, dtype=dtype), random_boxes(40, dtype)
    pasted = paste_masks(probabilities, boxes, (50, 70))
    assert pasted.shape == (40, 50, 70)
    assert pasted.dtype == torch.bool
    assert torch.equal(pasted, paste_by_grid(probabilities, boxes, (50, 70)))
    assert 0.01 < float(pasted.double().mean()) < 0.5


def test_a_mask_fills_its_box_but_for_the_corners():
    (pasted,) = paste_masks(torch.ones(1, 4, 4), torch.tensor([[10.0, 5.0, 30.0, 20.0]]), (40, 50))
    expected = torch.zeros(40, 50, dtype=torch.bool)
    expected[5:20, 10:30] = True
    assert not bool((pasted & ~expected).any())
    missing = (expected & ~pasted).nonzero()
    assert len(missing) == 4 * 1
    assert {(int(y), int(x)) for y, x in missing} == {(5, 10), (5, 29), (19, 10), (19, 29)}


def test_a_box_that_reaches_beyond_the_image_is_cut():
    (pasted,) = paste_masks(torch.ones(1, 4, 4), torch.tensor([[-100.0, -100.0, 200.0, 3.0]]), (40, 50))
    assert bool(pasted[:2].all())
    assert not bool(pasted[3:].any())


@pytest.mark.parametrize(
    "box",
    [[5.0, 5, 5, 9], [9, 5, 5, 9], [60, 60, 80, 80], [-9, -9, -2, -2], [float("nan")] * 4, [0, 0, float("inf"), 4]],
)
def test_boxes_without_pixels_give_empty_masks(box):
    assert not bool(paste_masks(torch.ones(1, 4, 4), torch.tensor([box]), (20, 20)).any())


def test_crops_are_no_larger_than_their_boxes():
    ((_, crop),) = paste_crops(torch.ones(1, 4, 4), torch.tensor([[10.2, 5.0, 29.8, 20.0]]), (40, 50))
    assert (crop.top, crop.left, crop.pixels.shape) == (5, 10, (15, 20))


def test_mixed_precision_moves_no_edge():
    probabilities, boxes = torch.rand(40, 28, 28), random_boxes(40)
    exact = paste_masks(probabilities, boxes, (50, 70))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(paste_masks(probabilities, boxes, (50, 70)), exact)


def test_no_detections_no_masks():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (30, 40)).shape == (0, 30, 40)


@pytest.mark.parametrize("pixels", [1500, 4000, 10**6])
def test_masks_pasted_together_are_those_pasted_alone(monkeypatch, pixels):
    torch.manual_seed(2)
    probabilities, boxes = torch.rand(30, 14, 14), random_boxes(30)
    boxes[3], boxes[4, 2:] = float("nan"), boxes[4, :2]
    alone = paste_masks(probabilities, boxes, (50, 70))
    monkeypatch.setitem(mask_grid.PIXELS_AT_ONCE, "cpu", pixels)
    assert torch.equal(paste_masks(probabilities, boxes, (50, 70)), alone)
    sizes = [(5, 9), (40, 50), (4, 4), (0, 0), (9, 5)]
    chunks = mask_grid._chunks(sizes, pixels)
    assert sorted(i for chunk in chunks for i in chunk) == [0, 1, 2, 3, 4]
    for chunk in chunks:
        most = len(chunk) * max(sizes[i][0] for i in chunk) * max(sizes[i][1] for i in chunk)
        assert len(chunk) == 1 or most <= pixels
