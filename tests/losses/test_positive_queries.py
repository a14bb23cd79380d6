from __future__ import annotations

import pytest
import torch

from codetr_cli.losses.assigners import SampledBoxes
from codetr_cli.losses.positive_queries import MIN_QUERIES, select_positive_queries
from codetr_cli.losses.random import RandomSource


def make_sampled(positives, total, classes=5):
    labels = torch.full((total,), classes)
    labels[:positives] = torch.arange(positives) % classes
    boxes = torch.arange(total)[:, None] + torch.tensor([0.0, 0.0, 5.0, 5.0])
    return SampledBoxes(boxes, labels, boxes * (labels < classes)[:, None])


@pytest.mark.parametrize(
    ("positives", "expected"),
    [((3, 1), MIN_QUERIES), ((30, 2), 30), ((90, 40), 50), ((0, 0), MIN_QUERIES)],
)
def test_every_image_gives_as_many_queries_as_the_richest_one(positives, expected):
    candidates = [make_sampled(n, 200) for n in positives]
    targets = [{"norm_size": (100, 100)}] * 2
    boxes, wanted, _ = select_positive_queries(
        candidates, targets, num_classes=5, max_queries=50, random=RandomSource()
    )
    assert boxes.shape == (2, expected, 4)
    for image, n in enumerate(positives):
        assert int((wanted.labels[image] < 5).sum()) == min(n, expected)
    background = wanted.labels == 5
    assert float(wanted.boxes[background].abs().sum()) == 0.0


def test_no_candidates_give_background_queries():
    boxes, wanted, _ = select_positive_queries(
        [make_sampled(0, 0), make_sampled(2, 3)], [{"norm_size": (9, 9)}] * 2, num_classes=5, max_queries=50,
        random=RandomSource(),
    )  # fmt: skip
    assert boxes.shape == (2, MIN_QUERIES, 4)
    assert set(wanted.labels.flatten().tolist()) == {5}


def test_too_few_candidates_repeat():
    boxes, *_ = select_positive_queries(
        [make_sampled(2, 3)], [{"norm_size": (9, 9)}], num_classes=5, max_queries=50, random=RandomSource()
    )
    assert boxes.shape == (1, MIN_QUERIES, 4)
