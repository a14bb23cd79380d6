from __future__ import annotations

import pytest
import torch

from codetr_cli.boxes import xyxy_to_cxcywh
from codetr_cli.losses.assigners import SampledBoxes
from codetr_cli.losses.positive_queries import MIN_QUERIES, select_positive_queries
from codetr_cli.losses.random import RandomSource


def make_sampled(positives, total, classes=5):
    labels = torch.full((total,), classes)
    labels[:positives] = torch.arange(positives) % classes
    boxes = torch.arange(total)[:, None] + torch.tensor([0.0, 0.0, 5.0, 5.0])
    return SampledBoxes(boxes, labels, boxes * (labels < classes)[:, None], positives)


class InOrder(RandomSource):
    def permutation(self, count, like):
        return torch.arange(count)


def select(sampled):
    factors = torch.full((len(sampled[0]), 4), 100.0)
    return select_positive_queries(sampled, factors, num_classes=5, max_queries=50, random=InOrder())


@pytest.mark.parametrize(
    ("positives", "expected"),
    [((3, 1), MIN_QUERIES), ((30, 2), 30), ((90, 40), 50), ((0, 0), MIN_QUERIES)],
)
def test_every_image_gives_as_many_queries_as_the_richest_one(positives, expected):
    candidates = [make_sampled(n, 200) for n in positives]
    (selected,) = select([candidates])
    wanted = selected.targets
    assert selected.boxes.shape == (2, expected, 4)
    for image, n in enumerate(positives):
        assert int((wanted.labels[image] < 5).sum()) == min(n, expected)
        assert len(set(selected.indices[image].tolist())) == expected
    background = wanted.labels == 5
    assert selected.num_positives == int((~background).sum())
    assert float(wanted.boxes[background].abs().sum()) == 0.0
    rows = torch.stack([c.boxes[index] for c, index in zip(candidates, selected.indices, strict=True)])
    torch.testing.assert_close(selected.boxes, xyxy_to_cxcywh(rows / 100))
    torch.testing.assert_close(wanted.boxes[~background], selected.boxes[~background])


def test_heads_are_selected_from_on_their_own():
    few, many = [make_sampled(n, 30) for n in (3, 1)], [make_sampled(n, 200) for n in (12, 20)]
    together = select([few, many])
    assert [selected.boxes.shape[1] for selected in together] == [MIN_QUERIES, 20]
    for selected, alone in zip(together, (few, many), strict=True):
        (own,) = select([alone])
        assert torch.equal(selected.indices, own.indices)


def test_no_candidates_give_background_queries():
    (selected,) = select([[make_sampled(0, 0), make_sampled(2, 3)]])
    assert selected.boxes.shape == (2, MIN_QUERIES, 4)
    assert set(selected.targets.labels.flatten().tolist()) == {5}
    assert selected.num_positives == 0


@pytest.mark.parametrize(("positives", "total"), [(2, 3), (3, 3), (1, 12)])
def test_too_few_candidates_repeat(positives, total):
    (selected,) = select([[make_sampled(positives, total)]])
    assert selected.boxes.shape == (1, MIN_QUERIES, 4)
    assert set(selected.indices[0, :positives].tolist()) == set(range(positives))
    assert selected.num_positives == int((selected.targets.labels < 5).sum())
