"""One-to-one matching of queries and objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codetr_cli.boxes import cxcywh_to_xyxy, paired_giou, xyxy_to_cxcywh
from codetr_cli.losses import matcher
from codetr_cli.losses.matcher import HungarianMatcher
from codetr_cli.losses.objects import BatchObjects
from tests.losses.many_objects import make_objects, peak_bytes

MATCHER = HungarianMatcher(class_cost=2.0, l1_cost=5.0, giou_cost=2.0)


def make_predictions(batch=2, queries=12, classes=4, layers=1):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(layers, batch, queries, classes, generator=generator),
        torch.rand(layers, batch, queries, 4, generator=generator) * 0.4 + 0.2,
    )


def match(predictions, targets, search=MATCHER):
    return search(predictions, BatchObjects.of(targets, torch.float32))


def same(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


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
    (together,) = match([(logits, boxes)], targets)
    for i, target in enumerate(targets):
        ((alone,),) = match([(logits[:, i : i + 1], boxes[:, i : i + 1])], [target])
        assert same(alone, together[i])


def test_matching_layers_at_once_equals_matching_each_layer():
    """Also stacks with different numbers of queries."""
    logits, boxes = make_predictions(layers=3)
    more_logits, more_boxes = make_predictions(queries=20, layers=2)
    targets = make_targets((3, 0))
    together = match([(logits, boxes), (more_logits, more_boxes)], targets)
    layers = [*zip(logits, boxes, strict=True), *zip(more_logits, more_boxes, strict=True)]
    for ours, (of_layer, boxes_of_layer) in zip(together, layers, strict=True):
        (theirs,) = match([(of_layer[None], boxes_of_layer[None])], targets)
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_costs_follow_their_equation(monkeypatch):
    logits, boxes = make_predictions(layers=2)
    targets = make_targets()
    given = []
    monkeypatch.setattr(matcher, "_to_host", lambda costs: given.append(costs) or (costs, None))
    match([(logits, boxes)], targets)
    expected = []
    for image, target in enumerate(targets):
        height, width = target["norm_size"]
        factor = torch.tensor([width, height, width, height])
        for of_object, label in zip(target["boxes"], target["labels"], strict=True):
            p = logits[:, image, :, label].sigmoid()
            focal = 0.25 * (1 - p) ** 2 * -(p + 1e-12).log() - 0.75 * p**2 * -(1 - p + 1e-12).log()
            l1 = (boxes[:, image] - xyxy_to_cxcywh(of_object) / factor).abs().sum(-1)
            giou = paired_giou(cxcywh_to_xyxy(boxes[:, image]) * factor, of_object)
            expected.append(2 * focal + 5 * l1 - 2 * giou)
    torch.testing.assert_close(given[0], torch.stack(expected).flatten())


def test_the_order_of_the_objects_does_not_matter():
    logits, boxes = make_predictions(batch=1)
    (target,) = make_targets((5,))
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = {**target, "boxes": target["boxes"][order], "labels": target["labels"][order]}
    (((queries, objects),),) = match([(logits, boxes)], [target])
    (((queries_2, objects_2),),) = match([(logits, boxes)], [shuffled])
    assert dict(zip(queries.tolist(), objects.tolist(), strict=True)) == dict(
        zip(queries_2.tolist(), order[objects_2].tolist(), strict=True)
    )


def test_matches_that_were_started_come_when_asked_for():
    logits, boxes = make_predictions()
    objects = BatchObjects.of(make_targets(), torch.float32)
    first = MATCHER.start([(logits, boxes)], [objects])
    second = MATCHER.start([(logits.flip(2), boxes.flip(2))], [objects])
    for found, wanted in (
        (second(), MATCHER([(logits.flip(2), boxes.flip(2))], objects)),
        (first(), MATCHER([(logits, boxes)], objects)),
    ):
        assert all(same(a, b) for a, b in zip(found[0], wanted[0], strict=True))


def test_the_perfect_query_wins():
    logits, boxes = make_predictions(batch=1)
    (target,) = make_targets((1,))
    x1, y1, x2, y2 = target["boxes"][0].tolist()
    boxes[0, 0, 7] = torch.tensor([(x1 + x2) / 220, (y1 + y2) / 180, (x2 - x1) / 110, (y2 - y1) / 90])
    logits[0, 0, 7] = torch.where(torch.arange(4) == target["labels"][0], 6.0, -6.0)
    ((found,),) = match([(logits, boxes)], [target])
    assert found[0].tolist() == [7]


def test_images_without_objects_and_more_objects_than_queries():
    logits, boxes = make_predictions(queries=3)
    (none, many) = match([(logits, boxes)], make_targets((0, 6)))[0]
    assert len(none[0]) == len(none[1]) == 0
    assert many[0].tolist() == [0, 1, 2]


def test_numbers_that_are_not_finite_reach_the_loss_not_the_solver():
    logits, boxes = make_predictions(batch=1)
    logits[0, 0, 0], boxes[0, 0, 1] = float("nan"), float("inf")
    ((found,),) = match([(logits, boxes)], make_targets((2,)))
    assert len(found[0]) == 2


def make_problem(count, queries=150, classes=6):
    generator = torch.Generator().manual_seed(0)
    shape = 2, 1, queries  # two layers of one image
    layers = torch.randn(*shape, classes, generator=generator), torch.rand(*shape, 4, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    targets = [{"boxes": make_objects(max(count, 2))[:count], "labels": labels, "norm_size": (200, 160)}]
    return [layers], BatchObjects.of(targets, torch.float32)


@pytest.mark.parametrize("count", [0, 1, 20, 149, 150, 151])
def test_chunks_of_queries_give_the_same_matches(monkeypatch, count):
    one_by_one = HungarianMatcher(class_cost=2.0, l1_cost=5.0, giou_cost=2.0)
    layers, objects = make_problem(count)
    monkeypatch.setitem(matcher.CHUNK_PAIRS, "cpu", 10**9)
    wanted = one_by_one(layers, objects)
    for pairs in (1, *(2 * queries * max(count, 6) for queries in (149, 150, 151))):
        monkeypatch.setitem(matcher.CHUNK_PAIRS, "cpu", pairs)
        for ours, theirs in zip(one_by_one(layers, objects), wanted, strict=True):
            assert same(ours[0], theirs[0])
            assert len(ours[0][0]) == min(count, 150)
            assert bool((np.diff(ours[0][0]) > 0).all())


def test_a_thousand_objects_need_their_costs_and_little_else_to_match(monkeypatch):
    """Twice the costs at most, beside what a chunk takes: computed as a whole they take ten times."""
    monkeypatch.setitem(matcher.CHUNK_PAIRS, "cpu", 10_000)
    layers, objects = make_problem(1000, queries=400)
    costs = 2 * 400 * 1000 * 4
    search = HungarianMatcher(class_cost=2.0, l1_cost=5.0, giou_cost=2.0)
    assert costs <= peak_bytes(lambda: search.start(layers, [objects])) < 1.5 * costs
