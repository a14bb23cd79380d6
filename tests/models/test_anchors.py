from __future__ import annotations

import pytest
import torch

from codetr_cli.models.aux_heads.anchors import AnchorGrid, decode_deltas, encode_deltas
from codetr_cli.models.aux_heads.roi import RoiHead, suppress
from codetr_cli.models.postprocess import Detections

LIKE = torch.zeros(1, dtype=torch.float64)


def test_anchors_are_centred_on_cell_corners_ratio_before_scale():
    grid = AnchorGrid(strides=[8], scales=[1.0, 2.0], ratios=[0.25, 1.0])
    (boxes,) = grid.boxes([(1, 2)], LIKE)
    assert boxes.shape == (8, 4)
    assert boxes[0].tolist() == [-8, -2, 8, 2]  # ratio 0.25: twice as wide, half as high
    assert boxes[1].tolist() == [-16, -4, 16, 4]
    assert boxes[2].tolist() == [-4, -4, 4, 4]
    assert boxes[6].tolist() == [4, -4, 12, 4]  # the second cell, one stride further


def test_cells_that_start_in_the_padding_are_not_valid():
    grid = AnchorGrid(strides=[8, 16], scales=[1.0], ratios=[1.0])
    fine, coarse = grid.valid([(3, 4), (2, 2)], (9, 17), LIKE.device)
    assert fine.tolist() == [0, 1, 2, 4, 5, 6]
    assert coarse.tolist() == [12, 13]
    two = AnchorGrid(strides=[8], scales=[1.0, 2.0], ratios=[1.0])
    assert two.valid([(2, 2)], (16, 8), LIKE.device)[0].tolist() == [0, 1, 4, 5]


def test_deltas_round_trip():
    anchors = torch.tensor([[0.0, 0, 10, 20], [5, 5, 9, 30]], dtype=torch.float64)
    boxes = torch.tensor([[1.0, 2, 14, 15], [-4, 6, 9, 28]], dtype=torch.float64)
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode_deltas(anchors, encode_deltas(anchors, boxes, stds), stds), boxes)


def test_decoding_limits_growth_and_clips():
    anchors = torch.tensor([[0.0, 0, 16, 16]])
    boxes = decode_deltas(anchors, torch.tensor([[0.0, 0, 100, 100]]), (1.0,) * 4)
    assert float(boxes[0, 2] - boxes[0, 0]) == pytest.approx(1000, rel=1e-4)
    assert decode_deltas(anchors, torch.zeros(1, 4) + 9, (1.0,) * 4, (20, 30)).tolist() == [[0, 0, 30, 20]]


def test_regions_are_pooled_from_the_map_that_suits_their_size():
    head = RoiHead(
        dim=1, num_classes=1, strides=[4, 8], num_convs=0, num_fcs=2, fc_dim=4, norm_groups=1, class_agnostic=False,
        output_size=2, finest_scale=56, target_stds=(0.1,) * 4, nms="hard", nms_iou=0.5, max_detections=5,
    )  # fmt: skip
    maps = [torch.full((1, 1, 64, 64), 1.0), torch.full((1, 1, 32, 32), 2.0)]
    boxes = torch.tensor([[0.0, 0, 50, 50], [0, 0, 120, 120], [0, 0, 250, 250]])
    assert head.pool(maps, [boxes])[:, 0, 0, 0].tolist() == [1.0, 2.0, 2.0]


def test_suppression_is_within_each_class_and_drops_scores_of_zero():
    boxes = torch.tensor([[0.0, 0, 9, 9]]).expand(4, 4)
    found = suppress(Detections(boxes, torch.tensor([0.2, 0.9, 0.0, 0.1]), torch.tensor([0, 1, 2, 0])), "hard", 0.5, 10)
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.2])
