from __future__ import annotations

import pytest
import torch

from codetr_cli.boxes import box_iou
from codetr_cli.losses import assigners
from codetr_cli.losses.assigners import BACKGROUND, IGNORED, assign_atss, assign_by_iou, sample_balanced
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.aux_heads.anchors import AnchorGrid
from tests.losses.many_objects import STRIDES, make_objects, peak_bytes


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


def make_anchors(size=(200, 160), *, scales=(4.0, 6.0), ratios=(0.5, 1.0, 2.0), dtype=torch.float32):
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    grid = AnchorGrid(strides=STRIDES, scales=scales, ratios=ratios)
    return grid.boxes(shapes, torch.zeros(1, dtype=dtype))


def whole_assignment_by_iou(boxes, objects, positive_iou, negative_iou, min_best_iou):
    iou = box_iou(objects, boxes)
    best_iou, best_object = iou.max(0)
    assigned = torch.full((len(boxes),), IGNORED)
    assigned[best_iou < negative_iou] = BACKGROUND
    assigned[best_iou >= positive_iou] = best_object[best_iou >= positive_iou]
    if min_best_iou is not None:
        for number, of_object in enumerate(iou):
            if of_object.max() >= min_best_iou:
                assigned[of_object == of_object.max()] = number
    return assigned


def whole_atss_assignment(levels, objects):
    anchors = torch.cat(levels)
    iou = box_iou(anchors, objects)
    centres, object_centres = (anchors[:, :2] + anchors[:, 2:]) / 2, (objects[:, :2] + objects[:, 2:]) / 2
    distances = (centres[:, None] - object_centres[None]).pow(2).sum(-1).sqrt()
    parts = torch.split(distances, [len(level) for level in levels])
    starts = torch.tensor([0, *[len(level) for level in levels]]).cumsum(0)
    chosen = [part.topk(min(9, len(part)), dim=0, largest=False)[1] for part in parts]
    index = torch.cat([rows + start for rows, start in zip(chosen, starts[:-1], strict=True)])
    candidates = iou.gather(0, index)
    threshold = candidates.mean(0) + candidates.std(0)
    inside = torch.cat([centres[index] - objects[:, :2], objects[:, 2:] - centres[index]], -1).min(-1)[0] > 0.01
    kept = torch.full_like(iou, -torch.inf)
    kept.scatter_(0, index, torch.where(inside & (candidates >= threshold), candidates, -torch.inf))
    best, number = kept.max(1)
    return torch.where(best > -torch.inf, number, BACKGROUND)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_chunks_of_objects_give_the_same_assignments(monkeypatch, dtype, count, at_once):
    """To the last index, ties included; 8 objects at once end before, at and after the last of 7, 8 and 9."""
    levels, objects = make_anchors(dtype=dtype), make_objects(count, dtype=dtype)
    anchors = torch.cat(levels)
    monkeypatch.setitem(assigners.CHUNK_PAIRS, "cpu", at_once * len(anchors))
    for rule in ((0.7, 0.3, 0.3), (0.5, 0.5, None)):
        names = dict(zip(("positive_iou", "negative_iou", "min_best_iou"), rule, strict=True))
        found = assign_by_iou(anchors, objects, **names)
        assert torch.equal(found, whole_assignment_by_iou(anchors, objects, *rule))
    levels = make_anchors(scales=(8.0,), ratios=(1.0,), dtype=dtype)
    monkeypatch.setitem(assigners.CHUNK_PAIRS, "cpu", at_once * len(levels[0]))
    found = assign_atss(levels, objects)
    assert torch.equal(found, whole_atss_assignment(levels, objects))
    assert bool((found >= 0).any())


def test_numbers_that_are_not_finite_are_ignored_as_a_whole(monkeypatch):
    """A proposal of a diverged network takes part in nothing, wherever the chunks end."""
    objects = make_objects(5)
    boxes = torch.cat([objects[3:4], torch.full((1, 4), float("nan"))])
    for at_once in (1, 2, 100):
        monkeypatch.setitem(assigners.CHUNK_PAIRS, "cpu", at_once * len(boxes))
        found = assign_by_iou(boxes, objects, positive_iou=0.5, negative_iou=0.5, min_best_iou=None)
        assert found[1] == IGNORED
        assert found[0] >= 0


def test_a_thousand_objects_need_hardly_more_memory_than_ten_to_assign(monkeypatch):
    """At most 1.5 times; as one matrix of anchors and objects it would be 50 times."""
    anchors = torch.cat(make_anchors())
    levels = make_anchors(scales=(8.0,), ratios=(1.0,))
    monkeypatch.setitem(assigners.CHUNK_PAIRS, "cpu", 10 * len(anchors))
    few, many = make_objects(10), make_objects(1000)

    def by_iou(objects):
        return peak_bytes(lambda: assign_by_iou(anchors, objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3))

    assert by_iou(many) < 1.5 * by_iou(few)
    # ATSS holds its 27 candidates an object, whatever the number of anchors.
    held = 1000 * 9 * len(STRIDES) * 100
    assert peak_bytes(lambda: assign_atss(levels, many)) < 3 * peak_bytes(lambda: assign_atss(levels, few)) + held
