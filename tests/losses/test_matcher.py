"""One-to-one matching of queries and objects."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.losses import matcher
from codetr_cli.losses.matcher import HungarianMatcher
from tests.losses.many_objects import make_objects, peak_bytes

MATCHER = HungarianMatcher(class_cost=2.0, l1_cost=5.0, giou_cost=2.0)


def make_predictions(batch=2, queries=12, classes=4):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, queries, classes, generator=generator),
        torch.rand(batch, queries, 4, generator=generator) * 0.4 + 0.2,
    )


def make_targets(counts=(3, 2)):
    generator = torch.Generator().manual_seed(5)
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 50
        targets.append(
            {
                "boxes": torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 40 + 5], 1),
                "labels": torch.randint(4, (count,), generator=generator),
                "norm_size": (90, 110),
            }
        )
    return targets


def test_matching_a_batch_equals_matching_each_image():
    logits, boxes = make_predictions()
    targets = make_targets()
    (together,) = MATCHER([(logits, boxes)], targets)
    for i, target in enumerate(targets):
        ((alone,),) = MATCHER([(logits[i : i + 1], boxes[i : i + 1])], [target])
        assert all(torch.equal(a, b) for a, b in zip(alone, together[i], strict=True))


def test_the_order_of_the_objects_does_not_matter():
    logits, boxes = make_predictions(batch=1)
    (target,) = make_targets((5,))
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = {**target, "boxes": target["boxes"][order], "labels": target["labels"][order]}
    (((queries, objects),),) = MATCHER([(logits, boxes)], [target])
    (((queries_2, objects_2),),) = MATCHER([(logits, boxes)], [shuffled])
    assert dict(zip(queries.tolist(), objects.tolist(), strict=True)) == dict(
        zip(queries_2.tolist(), order[objects_2].tolist(), strict=True)
    )


def test_matches_that_were_started_come_when_asked_for():
    logits, boxes = make_predictions()
    targets = make_targets()
    first = MATCHER.start([(logits, boxes)], [targets])
    second = MATCHER.start([(logits.flip(1), boxes.flip(1))], [targets])
    for found, wanted in (
        (second(), MATCHER([(logits.flip(1), boxes.flip(1))], targets)),
        (first(), MATCHER([(logits, boxes)], targets)),
    ):
        for (queries, objects), (queries_2, objects_2) in zip(found[0], wanted[0], strict=True):
            assert queries.tolist() == queries_2.tolist()
            assert objects.tolist() == objects_2.tolist()


def test_the_perfect_query_wins():
    logits, boxes = make_predictions(batch=1)
    (target,) = make_targets((1,))
    x1, y1, x2, y2 = target["boxes"][0].tolist()
    boxes[0, 7] = torch.tensor([(x1 + x2) / 220, (y1 + y2) / 180, (x2 - x1) / 110, (y2 - y1) / 90])
    logits[0, 7] = torch.where(torch.arange(4) == target["labels"][0], 6.0, -6.0)
    ((match,),) = MATCHER([(logits, boxes)], [target])
    assert match[0].tolist() == [7]


def test_images_without_objects_and_more_objects_than_queries():
    logits, boxes = make_predictions(queries=3)
    (none, many) = MATCHER([(logits, boxes)], make_targets((0, 6)))[0]
    assert len(none[0]) == len(none[1]) == 0
    assert sorted(many[0].tolist()) == [0, 1, 2]


def test_numbers_that_are_not_finite_reach_the_loss_not_the_solver():
    logits, boxes = make_predictions(batch=1)
    logits[0, 0], boxes[0, 1] = float("nan"), float("inf")
    ((match,),) = MATCHER([(logits, boxes)], make_targets((2,)))
    assert len(match[0]) == 2


def make_problem(count, queries=150, classes=6):
    generator = torch.Generator().manual_seed(0)
    sets = [
        (torch.randn(1, queries, classes, generator=generator), torch.rand(1, queries, 4, generator=generator))
        for _ in range(2)
    ]
    labels = torch.randint(classes, (count,), generator=generator)
    return sets, [{"boxes": make_objects(max(count, 2))[:count], "labels": labels, "norm_size": (200, 160)}]


@pytest.mark.parametrize("count", [0, 1, 20, 149, 150, 151])
def test_chunks_of_queries_give_the_same_matches(monkeypatch, count):
    one_by_one = HungarianMatcher(class_cost=2.0, l1_cost=5.0, giou_cost=2.0)
    sets, targets = make_problem(count)
    monkeypatch.setitem(matcher.CHUNK_PAIRS, "cpu", 10**9)
    wanted = one_by_one(sets, targets)
    for pairs in (1, 149 * max(count, 6), 150 * max(count, 6), 151 * max(count, 6)):
        monkeypatch.setitem(matcher.CHUNK_PAIRS, "cpu", pairs)
        for ours, theirs in zip(one_by_one(sets, targets), wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
            assert len(ours[0][0]) == min(count, 150)
            assert bool((ours[0][0].diff() > 0).all())


def test_a_thousand_objects_need_their_costs_and_little_else_to_match(monkeypatch):
    """Twice the costs at most, beside what a chunk takes: computed as a whole they take ten times."""
    monkeypatch.setitem(matcher.CHUNK_PAIRS, "cpu", 10_000)
    sets, targets = make_problem(1000, queries=400)
    costs = len(sets) * 400 * 1000 * 4
    search = HungarianMatcher(class_cost=2.0, l1_cost=5.0, giou_cost=2.0)
    assert costs <= peak_bytes(lambda: search.start(sets, [targets] * len(sets))) < 1.5 * costs
