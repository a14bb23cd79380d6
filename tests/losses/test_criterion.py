from __future__ import annotations

import pytest
import torch

from codetr_cli.losses.criterion import QueryCriterion, QueryTargets


def test_background_boxes_are_never_read():
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 5, 3, generator=generator), torch.rand(2, 5, 4, generator=generator)
    labels = torch.tensor([[0, 3, 3, 1, 3], [3, 3, 2, 3, 3]])
    wanted = torch.rand(2, 5, 4, generator=generator)
    criterion = QueryCriterion(class_loss="quality_focal", class_weight=1.0, l1_weight=5.0, giou_weight=2.0)
    factors, count = torch.tensor([[90.0, 60, 90, 60], [50, 70, 50, 70]]), torch.tensor(3.0)
    terms = criterion(logits, boxes, QueryTargets(labels, wanted), factors, count)
    other = criterion(logits, boxes, QueryTargets(labels, wanted * (labels < 3)[..., None]), factors, count)
    assert all(torch.equal(terms[name], other[name]) for name in terms)
    positive = labels < 3
    expected = 5 * (boxes[positive] - wanted[positive]).abs().sum() / 3
    torch.testing.assert_close(terms["bbox"], expected)


def test_perfect_queries_cost_nothing():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]]])
    logits = torch.tensor([[[30.0, -30.0], [-30.0, -30.0]]])
    targets = QueryTargets(torch.tensor([[0, 2]]), boxes)
    criterion = QueryCriterion(class_loss="quality_focal", class_weight=1.0, l1_weight=5.0, giou_weight=2.0)
    terms = criterion(logits, boxes, targets, torch.tensor([[100.0, 100, 100, 100]]), torch.tensor(1.0))
    assert all(float(v) == pytest.approx(0, abs=1e-5) for v in terms.values())
