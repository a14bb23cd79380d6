from __future__ import annotations

import pytest
import torch

from codetr_cli.models.aux_heads.anchors import AnchorGrid, decode_deltas, encode_deltas

LIKE = torch.zeros(1, dtype=torch.float64)


def test_anchors_are_centred_on_cell_corners_ratio_before_scale():
    grid = AnchorGrid(strides=[8], scales=[1.0, 2.0], ratios=[0.25, 1.0])
    boxes = grid.boxes([(1, 2)], LIKE)
    assert boxes.shape == (8, 4)
    assert boxes[0].tolist() == [-8, -2, 8, 2]  # ratio 0.25: twice as wide, half as high
    assert boxes[1].tolist() == [-16, -4, 16, 4]
    assert boxes[2].tolist() == [-4, -4, 4, 4]
    assert boxes[6].tolist() == [4, -4, 12, 4]  # the second cell, one stride further


def test_cells_that_start_in_the_padding_are_not_valid():
    grid = AnchorGrid(strides=[8, 16], scales=[1.0], ratios=[1.0])
    shapes = [(3, 4), (2, 2)]
    small, whole = grid.valid(shapes, [(9, 17), (24, 32)], LIKE)
    assert small.nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 12, 13]
    assert bool(whole.all())
    assert grid.valid_cells(shapes, (9, 17)) == [(2, 3), (1, 2)]
    assert grid.valid_cells(shapes, (24, 32)) == shapes
    two = AnchorGrid(strides=[8], scales=[1.0, 2.0], ratios=[1.0])
    assert two.valid([(2, 2)], [(16, 8)], LIKE)[0].nonzero()[:, 0].tolist() == [0, 1, 4, 5]


def test_anchors_are_made_once_and_can_be_trained_with():
    grid = AnchorGrid(strides=[8], scales=[3.0], ratios=[1.0])
    with torch.inference_mode():
        first = grid.boxes([(3, 5)], LIKE)
    assert grid.boxes([(3, 5)], LIKE) is first
    assert not first.is_inference()
    assert grid.boxes([(3, 5)], LIKE.float()).dtype == torch.float32


def test_deltas_round_trip():
    anchors = torch.tensor([[0.0, 0, 10, 20], [5, 5, 9, 30]], dtype=torch.float64)
    boxes = torch.tensor([[1.0, 2, 14, 15], [-4, 6, 9, 28]], dtype=torch.float64)
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode_deltas(anchors, encode_deltas(anchors, boxes, stds), stds), boxes)


def test_decoding_limits_growth_and_clips():
    anchors = torch.tensor([[0.0, 0, 16, 16]])
    boxes = decode_deltas(anchors, torch.tensor([[0.0, 0, 100, 100]]), (1.0,) * 4)
    assert float(boxes[0, 2] - boxes[0, 0]) == pytest.approx(1000, rel=1e-4)
    assert decode_deltas(anchors, torch.zeros(1, 4) + 9, (1.0,) * 4, torch.tensor([30.0, 20, 30, 20])).tolist() == [
        [0, 0, 30, 20]
    ]


def test_boxes_are_decoded_with_the_heads_own_scale():
    boxes = torch.tensor([[0.0, 0, 100, 100]])
    moved = decode_deltas(boxes, torch.tensor([[2.0, 0, 0, 0]]), (0.05, 0.05, 0.1, 0.1))
    assert moved.tolist() == [[10, 0, 110, 100]]
