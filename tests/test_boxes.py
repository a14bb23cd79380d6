"""Functions on boxes: conversions are inverse, overlaps are those of torchvision."""

from __future__ import annotations

import torch
from torchvision import ops

from codetr_cli import boxes


def random_boxes(count: int, seed: int, size: float = 100.0) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1)  # (count, 4)


def test_formats_are_converted_and_back():
    corners = random_boxes(20, 0).view(4, 5, 4)
    assert torch.allclose(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(corners)), corners)
    assert torch.allclose(boxes.xyxy_to_cxcywh(corners), ops.box_convert(corners, "xyxy", "cxcywh"))


def test_overlaps_are_those_of_torchvision():
    first, second = random_boxes(7, 1), random_boxes(9, 2)
    assert torch.allclose(boxes.box_area(first), ops.box_area(first))
    assert torch.allclose(boxes.paired_iou(first[:, None], second), ops.box_iou(first, second))
    expected = ops.generalized_box_iou(first, second)
    assert torch.allclose(boxes.generalized_box_iou(first, second), expected)
    assert torch.allclose(boxes.paired_iou(first, second[:7]), ops.box_iou(first, second).diagonal())
    assert torch.allclose(boxes.paired_giou(first, second[:7]), expected.diagonal())
    assert boxes.generalized_box_iou(first[:0], second).shape == (0, 9)


def test_boxes_without_area_have_finite_overlaps_and_gradients():
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]], requires_grad=True)
    overlap = boxes.paired_giou(point, point.detach())
    overlap.sum().backward()
    assert boxes.paired_iou(point, point).item() == 0
    assert overlap.isfinite().all()
    assert point.grad is not None
    assert point.grad.isfinite().all()


def test_boxes_are_scaled_and_clipped_to_height_and_width():
    normalized = torch.tensor([[0.5, 0.5, 1.0, 0.25]])
    pixels = boxes.cxcywh_to_xyxy(normalized * boxes.size_scale((40, 80), normalized))
    assert pixels.tolist() == [[0.0, 15.0, 80.0, 25.0]]
    assert boxes.clip_boxes(torch.tensor([[-3.0, 5.0, 90.0, 45.0]]), (40, 80)).tolist() == [[0.0, 5.0, 80.0, 40.0]]


def test_inverse_sigmoid_is_clamped():
    values = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(boxes.inverse_sigmoid(values, 1e-5).sigmoid(), values)
    assert torch.allclose(boxes.inverse_sigmoid(torch.tensor([-1.0, 2.0]), 1e-2).exp(), torch.tensor([0.01, 100.0]))
