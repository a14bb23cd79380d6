from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from codetr_cli.losses import assigners
from codetr_cli.losses.assigners import BACKGROUND, IGNORED, assign_atss, assign_by_iou, pad_objects, sample_balanced
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.aux_heads.anchors import AnchorGrid
from tests.losses.many_objects import STRIDES, make_objects, peak_bytes

SIZE = (200, 160)
HELD_BYTES = 100
"""Of every candidate of ATSS."""


def stack(*boxes_of_images):
    targets = [{"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.int64)} for boxes in boxes_of_images]
    return pad_objects(targets, boxes_of_images[0].dtype)


def by_iou(boxes, objects, **rule):
    """The assignment of one image all of whose boxes are valid."""
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    (assigned,) = assign_by_iou(boxes[None], stack(objects), valid, **rule)
    return assigned


def by_atss(grid, shapes, objects, pad_size=SIZE):
    (assigned,) = assign_atss(grid, shapes, [pad_size], stack(objects)).assigned
    return assigned


def test_max_iou_assignment_knows_positive_ignored_and_background():
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 5], [30, 30, 40, 40], [50, 50, 60, 53.5]])
    plain = by_iou(boxes, objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=None)
    assert plain.tolist() == [0, IGNORED, BACKGROUND, IGNORED]
    rescued = by_iou(boxes, objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3)
    assert rescued.tolist() == [0, IGNORED, BACKGROUND, 1], "the best box of an object is its own, from IoU 0.3"


def test_the_last_of_two_objects_takes_the_box_both_like_best():
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    boxes = torch.tensor([[0.0, 0, 10, 9.5]])
    assert by_iou(boxes, objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3).tolist() == [1]


@pytest.mark.parametrize("together", [False, True])
def test_images_are_assigned_together_as_one_by_one(monkeypatch, together):
    """As on a GPU, where images with few objects are filled up, and those padded alike share their anchors."""
    grid, shapes = make_grid(scales=(8.0,), ratios=(1.0,)), make_shapes()
    boxes_of_images = [make_objects(3), make_objects(0), make_objects(9), make_objects(1)]
    pad_sizes = [SIZE, (120, 100), (120, 100), (40, 24)]
    objects = stack(*boxes_of_images)
    assert objects.boxes.shape == (4, 9, 4)
    assert objects.present().sum(1).tolist() == objects.counts == [3, 0, 9, 1]
    if together:
        monkeypatch.setattr(assigners, "_one_by_one", lambda device: False)
    atss = assign_atss(grid, shapes, pad_sizes, objects)
    assert atss.assigned.flatten()[atss.rows[atss.chosen]].min() >= 0
    assert int(atss.chosen.sum()) == int((atss.assigned >= 0).sum()) > 0
    anchors, rule = grid.boxes(shapes, objects.boxes), {"positive_iou": 0.5, "negative_iou": 0.3, "min_best_iou": 0.2}
    valid = grid.valid(shapes, pad_sizes, anchors)
    found = assign_by_iou(anchors[None], objects, valid, **rule)
    for i, (own, size) in enumerate(zip(boxes_of_images, pad_sizes, strict=True)):
        assert torch.equal(atss.assigned[i], by_atss(grid, shapes, own, size))
        assert torch.equal(found[i][valid[i]], by_iou(anchors[valid[i]], own, **rule))
        assert set(found[i][~valid[i]].tolist()) <= {IGNORED}
        assert set(atss.assigned[i][~valid[i]].tolist()) <= {BACKGROUND}


def test_without_objects_all_is_background():
    none = torch.zeros(0, 4)
    assert by_iou(torch.rand(4, 4), none, positive_iou=0.5, negative_iou=0.5, min_best_iou=None).tolist() == [-1] * 4
    assert set(by_atss(make_grid(scales=(8.0,), ratios=(1.0,)), make_shapes(), none).tolist()) == {BACKGROUND}


def test_atss_picks_anchors_inside_the_object_above_its_own_threshold():
    grid = AnchorGrid(strides=[8], scales=[4.0], ratios=[1.0])
    assigned = by_atss(grid, [(1, 8)], torch.tensor([[0.0, -16, 34, 16]]), (8, 64))
    positive = (assigned == 0).nonzero()[:, 0]
    assert positive.tolist() == [2], "only the anchor at 16 exceeds mean plus deviation"


def sampled_of(assigned, **how):
    """Sampled positives and negatives of each image."""
    positives, is_positive, negatives, is_negative = sample_balanced(assigned, random=RandomSource(), **how)
    images = zip(positives, is_positive, negatives, is_negative, strict=True)
    return [(p[is_p].tolist(), n[is_n].tolist()) for p, is_p, n, is_n in images]


@pytest.fixture(params=["image by image", "all images at once"])
def sampling(request, monkeypatch):
    """As on a CPU, and as on a GPU."""
    monkeypatch.setattr(assigners, "_one_by_one", lambda device: request.param == "image by image")


@pytest.mark.usefixtures("sampling")
def test_sampling_limits_positives_and_fills_with_negatives():
    many, few = [0] * 10 + [BACKGROUND] * 30 + [IGNORED] * 5, [BACKGROUND] * 43 + [2, 5]
    (positives, negatives), (few_positives, more_negatives) = sampled_of(
        torch.tensor([many, few]), count=16, positive_fraction=0.25
    )
    assert (len(positives), len(negatives)) == (4, 12)
    assert set(positives) < set(range(10))
    assert set(negatives) < set(range(10, 40))
    assert (sorted(few_positives), len(more_negatives)) == ([43, 44], 14)


@pytest.mark.usefixtures("sampling")
def test_all_are_sampled_when_all_fit():
    ((positives, negatives),) = sampled_of(torch.tensor([[0, BACKGROUND, BACKGROUND]]), count=16, positive_fraction=0.5)
    assert positives == [0]
    assert sorted(negatives) == [1, 2]


@pytest.mark.usefixtures("sampling")
def test_every_candidate_is_sampled_as_often():
    torch.manual_seed(0)
    assigned = torch.full((2, 10), BACKGROUND)
    found = [sampled_of(assigned, count=3, positive_fraction=0.5) for _ in range(400)]
    counts = torch.bincount(torch.tensor([n for step in found for _, negatives in step for n in negatives]))
    assert counts.sum() == 2400
    assert 180 < int(counts.min()) <= int(counts.max()) < 300


def make_shapes(size=SIZE):
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]


def make_grid(*, scales=(4.0, 6.0), ratios=(0.5, 1.0, 2.0)):
    return AnchorGrid(strides=STRIDES, scales=scales, ratios=ratios)


def make_anchors(grid, dtype=torch.float32):
    return grid.boxes(make_shapes(), torch.zeros(1, dtype=dtype))


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
    anchors, objects = make_anchors(make_grid(), dtype), make_objects(count, dtype=dtype)
    monkeypatch.setitem(assigners.CHUNK_PAIRS, "cpu", at_once * len(anchors))
    for rule in ((0.7, 0.3, 0.3), (0.5, 0.5, None)):
        names = dict(zip(("positive_iou", "negative_iou", "min_best_iou"), rule, strict=True))
        assert torch.equal(by_iou(anchors, objects, **names), whole_assignment_by_iou(anchors, objects, *rule))
    grid = make_grid(scales=(8.0,), ratios=(1.0,))
    levels = make_anchors(grid, dtype).split(grid.counts(make_shapes()))
    monkeypatch.setitem(assigners.CHUNK_PAIRS, "cpu", at_once * sum(map(len, levels)))
    found = by_atss(grid, make_shapes(), objects)
    assert torch.equal(found, whole_atss_assignment(levels, objects))
    assert bool((found >= 0).any())


def test_numbers_that_are_not_finite_are_ignored_as_a_whole(monkeypatch):
    """A proposal of a diverged network takes part in nothing, wherever the chunks end."""
    objects = make_objects(5)
    boxes = torch.cat([objects[3:4], torch.full((1, 4), float("nan"))])
    for at_once in (1, 2, 100):
        monkeypatch.setitem(assigners.CHUNK_PAIRS, "cpu", at_once * len(boxes))
        found = by_iou(boxes, objects, positive_iou=0.5, negative_iou=0.5, min_best_iou=None)
        assert found[1] == IGNORED
        assert found[0] >= 0


def test_a_thousand_objects_need_hardly_more_memory_than_ten_to_assign(monkeypatch):
    """At most 1.5 times; as one matrix of anchors and objects it would be 50 times."""
    anchors, grid = make_anchors(make_grid()), make_grid(scales=(8.0,), ratios=(1.0,))
    monkeypatch.setitem(assigners.CHUNK_PAIRS, "cpu", 10 * len(anchors))
    few, many = make_objects(10), make_objects(1000)

    def peak_by_iou(objects):
        return peak_bytes(lambda: by_iou(anchors, objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3))

    def peak_by_atss(objects):
        return peak_bytes(lambda: by_atss(grid, make_shapes(), objects))

    assert peak_by_iou(many) < 1.5 * peak_by_iou(few)
    # ATSS holds its 27 candidates an object, whatever the number of anchors.
    assert peak_by_atss(many) < 3 * peak_by_atss(few) + 1000 * 9 * len(STRIDES) * HELD_BYTES
