from __future__ import annotations

import numpy as np
import pytest
import torch

from codetr_cli.losses.criterion import QueryCriterion, QueryGroups, QueryTargets
from codetr_cli.losses.objects import BatchObjects


def one_group(size, num_boxes, num_classified=None):
    normalizers = torch.tensor([num_boxes]), torch.tensor([num_classified or num_boxes])
    return QueryGroups([size], *normalizers, weights=torch.ones(1))


def random_layers(layers=2, batch=2, queries=7, classes=3):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(layers, batch, queries, classes, generator=generator, dtype=torch.float64)
    boxes, wanted = torch.rand(2, layers, batch, queries, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes + 1, (layers, batch, queries), generator=generator)
    return logits, boxes, QueryTargets(labels, wanted)


FACTORS = torch.tensor([[90.0, 60, 90, 60], [50, 70, 50, 70]], dtype=torch.float64)


def make_criterion(class_loss="quality_focal"):
    return QueryCriterion(class_loss=class_loss, class_weight=2.0, l1_weight=5.0, giou_weight=3.0)


def test_background_boxes_are_never_read():
    logits, boxes, targets = random_layers()
    groups = one_group(7, 3.0)
    terms = make_criterion()(logits, boxes, targets, FACTORS, groups)
    positive = targets.labels < 3
    blank = QueryTargets(targets.labels, targets.boxes * positive[..., None])
    other = make_criterion()(logits, boxes, blank, FACTORS, groups)
    assert all(torch.equal(terms[name], other[name]) for name in terms)
    for layer in range(2):
        distances = (boxes[layer] - targets.boxes[layer])[positive[layer]].abs().sum()
        torch.testing.assert_close(terms["bbox"][layer, 0], 5 * distances / 3, rtol=1e-6, atol=0)


def test_perfect_queries_cost_nothing():
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]]]])
    logits = torch.tensor([[[[30.0, -30.0], [-30.0, -30.0]]]])
    targets = QueryTargets(torch.tensor([[[0, 2]]]), boxes)
    terms = make_criterion()(logits, boxes, targets, torch.full((1, 4), 100.0), one_group(2, 1.0))
    assert all(float(v) == pytest.approx(0, abs=1e-5) for v in terms.values())


@pytest.mark.parametrize("class_loss", ["quality_focal", "focal"])
def test_layers_and_groups_at_once_are_those_one_by_one(class_loss):
    """Values and gradients; every group has its own normalizers and weight."""
    logits, boxes, targets = random_layers()
    logits.requires_grad_(), boxes.requires_grad_()
    criterion, sizes = make_criterion(class_loss), [4, 1, 2]
    numbers = torch.tensor([[3.0, 1, 2], [4, 5, 6], [1, 0.5, 2]], dtype=torch.float64)
    together = criterion(logits, boxes, targets, FACTORS, QueryGroups(sizes, *numbers))
    alone = {name: torch.empty(2, 3, dtype=torch.float64) for name in together}
    for layer in range(2):
        for group, (first, size) in enumerate(zip((0, 4, 5), sizes, strict=True)):
            part = slice(layer, layer + 1), slice(None), slice(first, first + size)
            only = QueryGroups(sizes, *numbers).only(group, size)
            own = QueryTargets(targets.labels[part], targets.boxes[part])
            for name, value in criterion(logits[part], boxes[part], own, FACTORS, only).items():
                alone[name][layer, group] = value
    weights = torch.arange(1.0, 7, dtype=torch.float64).view(2, 3)
    for name, values in together.items():
        torch.testing.assert_close(values, alone[name], rtol=1e-12, atol=0)
        ours, theirs = (
            torch.autograd.grad((t * weights).sum(), (logits, boxes), retain_graph=True, allow_unused=True)
            for t in (values, alone[name])
        )
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_every_loss_is_divided_by_its_own_normalizer():
    logits, boxes, targets = random_layers()
    plain = make_criterion()(logits, boxes, targets, FACTORS, one_group(7, 2.0))
    more = make_criterion()(logits, boxes, targets, FACTORS, one_group(7, 4.0, 8.0))
    for name, share in {"cls": 4, "bbox": 2, "iou": 2}.items():
        torch.testing.assert_close(plain[name], share * more[name], rtol=1e-6, atol=0)


def test_matched_queries_get_their_object_in_every_layer_and_image():
    targets = [
        {"boxes": torch.tensor([[0.0, 0, 4, 8], [2, 2, 6, 4]]), "labels": torch.tensor([1, 0]), "norm_size": (10, 20)},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "norm_size": (10, 10)},
        {"boxes": torch.tensor([[1.0, 1, 3, 5]]), "labels": torch.tensor([2]), "norm_size": (8, 4)},
    ]
    objects, none = BatchObjects.of(targets, torch.float32), (np.zeros(0, np.int64), np.zeros(0, np.int64))
    matches = [
        [(np.array([0, 3]), np.array([1, 0])), none, (np.array([2]), np.array([0]))],
        [(np.array([1, 2]), np.array([0, 1])), none, (np.array([0]), np.array([0]))],
    ]
    found = QueryTargets.from_matches(matches, objects, num_queries=4, num_classes=5)
    assert found.labels.tolist() == [
        [[0, 5, 5, 1], [5, 5, 5, 5], [5, 5, 2, 5]],
        [[5, 1, 0, 5], [5, 5, 5, 5], [2, 5, 5, 5]],
    ]
    torch.testing.assert_close(found.boxes[0, 0, 3], torch.tensor([0.1, 0.4, 0.2, 0.8]))
    torch.testing.assert_close(found.boxes[1, 2, 0], torch.tensor([0.5, 0.375, 0.5, 0.5]))
    assert float(found.boxes[found.labels == 5].abs().sum()) == 0
