"""Memory and results with many objects: nothing of anchors x objects or queries x objects is held as a whole."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codetr_cli.boxes import box_iou
from codetr_cli.losses import assigners, matcher
from codetr_cli.losses.assigners import BACKGROUND, IGNORED, assign_atss, assign_by_iou
from codetr_cli.losses.atss import atss_losses
from codetr_cli.losses.mask_losses import OBJECTS_AT_ONCE, visible_shares
from codetr_cli.losses.matcher import HungarianMatcher
from codetr_cli.models.aux_heads.anchors import AnchorGrid
from codetr_cli.models.aux_heads.atss import AtssHead

STRIDES = [4, 8, 16, 32]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make: how many live now and at most.

    `summed` is the most numbers that one sum was of: sums of whole numbers turn them into int64 within.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.summed = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.sum:
            self.summed = max(self.summed, args[0].numel())
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage):
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak_bytes(function):
    with LiveBytes() as live:
        result = function()
    del result
    return live.peak


def make_anchors(size=(200, 160), *, scales=(4.0, 6.0), ratios=(0.5, 1.0, 2.0), dtype=torch.float32):
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    grid = AnchorGrid(strides=STRIDES, scales=scales, ratios=ratios)
    return grid.boxes(shapes, torch.zeros(1, dtype=dtype))


def make_objects(count, size=(200, 160), *, dtype=torch.float32):
    """Boxes on a grid of 8 pixels, so that distances and IoUs are often equal; some boxes come twice."""
    generator = torch.Generator().manual_seed(count)
    limit = torch.tensor([size[1], size[0]]) // 8
    first = (torch.rand(count, 2, generator=generator) * (limit - 2)).floor()
    last = first + 1 + (torch.rand(count, 2, generator=generator) * (limit - first - 1)).floor()
    boxes = (torch.cat([first, last], 1) * 8).to(dtype)
    boxes[count // 2 : count // 2 + 2] = boxes[:1]
    return boxes


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


def test_a_thousand_objects_need_their_costs_and_little_else_to_match(monkeypatch):
    """Twice the costs at most, beside what a chunk takes: computed as a whole they take ten times."""
    monkeypatch.setitem(matcher.CHUNK_PAIRS, "cpu", 10_000)
    sets, targets = make_problem(1000, queries=400)
    costs = len(sets) * 400 * 1000 * 4
    search = HungarianMatcher(class_cost=2.0, l1_cost=5.0, giou_cost=2.0)
    assert costs <= peak_bytes(lambda: search.start(sets, [targets] * len(sets))) < 1.5 * costs


def test_the_area_of_many_masks_is_summed_some_at_a_time():
    boxes = make_objects(200)
    masks = torch.zeros(200, 200, 160, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    with LiveBytes() as live:
        shares = visible_shares({"masks": masks}, boxes, torch.arange(200))
    torch.testing.assert_close(shares, torch.ones(200))
    assert live.summed <= OBJECTS_AT_ONCE * 200 * 160


def test_the_one_stage_head_holds_its_logits_once_and_their_gradient():
    """Forward and backward pass of 300 classes: twice the logits and somewhat for the rest; plainly it is ten times."""
    size, classes = (200, 160), 300
    head = AtssHead(
        dim=8,
        num_classes=classes,
        anchors=AnchorGrid(strides=STRIDES, scales=[8.0], ratios=[1.0]),
        norm_groups=2,
        target_stds=(0.1, 0.1, 0.2, 0.2),
        pre_nms=10,
        nms="hard",
        nms_iou=0.6,
        max_detections=10,
    )
    maps = [torch.randn(1, 8, -(-size[0] // s), -(-size[1] // s), requires_grad=True) for s in STRIDES]
    logits_bytes = sum(m.shape[-1] * m.shape[-2] for m in maps) * classes * 4
    target = {"boxes": make_objects(20), "labels": torch.randint(classes, (20,)), "pad_size": size}

    def run():
        step = atss_losses(head, maps, [target])
        (step.class_loss + step.box_loss + step.centerness_loss).backward()

    assert logits_bytes < peak_bytes(run) < 3.5 * logits_bytes
