from __future__ import annotations

import pytest
import torch

from codetr_cli.losses.assigners import BACKGROUND, IGNORED, assign_atss, assign_by_iou, sample_balanced
from codetr_cli.losses.random import RandomSource


def test_max_iou_assignment_knows_positive_ignored_and_background():
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 5], [30, 30, 40, 40], [50, 50, 60, 53.5]])
    plain = assign_by_iou(boxes, objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=None)
    assert plain.tolist() == [0, IGNORED, BACKGROUND, IGNORED]
    rescued = assign_by_iou(boxes, objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3)
    assert rescued.tolist() == [0, IGNORED, BACKGROUND, 1], "the best box of an object is its own, from IoU 0.3"


def test_the_last_of_two_objects_takes_the_box_both_like_best():
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    assigned = assign_by_iou(
        torch.tensor([[0.0, 0, 10, 9.5]]), objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3
    )
    assert assigned.tolist() == [1]


@pytest.mark.parametrize("assign", [lambda b, o: assign_atss([b], o), lambda b, o: assign_by_iou(
    b, o, positive_iou=0.5, negative_iou=0.5, min_best_iou=None)])  # fmt: skip
def test_without_objects_all_is_background(assign):
    assert assign(torch.rand(4, 4), torch.zeros(0, 4)).tolist() == [BACKGROUND] * 4


def test_atss_picks_anchors_inside_the_object_above_its_own_threshold():
    x = torch.arange(8) * 8.0
    anchors = torch.stack([x - 16, x * 0 - 16, x + 16, x * 0 + 16], 1)
    objects = torch.tensor([[0.0, -16, 34, 16]])
    assigned = assign_atss([anchors], objects)
    positive = (assigned == 0).nonzero()[:, 0]
    assert positive.tolist() == [2], "only the anchor at 16 exceeds mean plus deviation"


def test_sampling_limits_positives_and_fills_with_negatives():
    assigned = torch.tensor([0] * 10 + [BACKGROUND] * 30 + [IGNORED] * 5)
    positives, negatives = sample_balanced(assigned, count=16, positive_fraction=0.25, random=RandomSource())
    assert (len(positives), len(negatives)) == (4, 12)
    assert int(positives.max()) < 10 <= int(negatives.min())
    assert int(negatives.max()) < 40
    assert positives.tolist() == sorted(positives.tolist())


def test_sampling_draws_nothing_when_all_fit():
    class NoDraws(RandomSource):
        def permutation(self, count, like):
            raise AssertionError("nothing to choose")

    positives, negatives = sample_balanced(
        torch.tensor([0, BACKGROUND, BACKGROUND]), count=16, positive_fraction=0.5, random=NoDraws()
    )
    assert positives.tolist() == [0]
    assert negatives.tolist() == [1, 2]
