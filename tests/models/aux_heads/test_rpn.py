"""Proposals of the RPN."""

from __future__ import annotations

import torch

from codetr_cli.models.aux_heads.anchors import AnchorGrid
from codetr_cli.models.aux_heads.rpn import RpnHead


def test_the_rpn_selects_otherwise_in_detection():
    torch.manual_seed(0)
    head = RpnHead(
        dim=4,
        anchors=AnchorGrid(strides=[8, 16], scales=[2.0], ratios=[0.5, 1.0, 2.0]),
        pre_nms_train=50,
        pre_nms_test=100,
        num_proposals_train=20,
        num_proposals_test=60,
        nms_iou_train=0.3,
        nms_iou_test=0.9,
    )
    features = [torch.randn(1, 4, 12, 12), torch.randn(1, 4, 6, 6)]
    (train_boxes, _), (test_boxes, _) = (head.train(mode).propose(features, [(96, 96)])[0] for mode in (True, False))
    assert len(train_boxes) == 20
    assert len(test_boxes) == 60
