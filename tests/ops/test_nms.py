from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from codetr_cli.ops import nms
from codetr_cli.ops.nms import batched_nms, batched_soft_nms, grouped_nms, parallel_soft_nms


def make_boxes(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60
    side = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40 + 5
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + side], 1), scores, torch.randint(3, (count,), generator=generator)


def soft_nms_by_definition(boxes, scores, labels, iou_threshold, min_score):
    """The paper's loop without any array tricks."""
    alive, kept = {i: float(s) for i, s in enumerate(scores)}, []
    iou = box_iou(boxes, boxes)
    while alive:
        best = max(alive, key=alive.__getitem__)
        kept.append((best, alive.pop(best)))
        for i in list(alive):
            if labels[i] == labels[best] and iou[best, i] >= iou_threshold:
                alive[i] *= 1 - float(iou[best, i])
            if alive[i] < min_score:
                del alive[i]
    return kept


def test_soft_nms_equals_the_papers_loop():
    boxes, scores, labels = make_boxes(60)
    keep, decayed = batched_soft_nms(boxes, scores, labels, iou_threshold=0.3, min_score=0.05)
    expected = soft_nms_by_definition(boxes, scores, labels, 0.3, 0.05)
    assert keep.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(decayed, torch.tensor([s for _, s in expected], dtype=torch.float64))
    assert len(keep) < 60, "the case must drop boxes"


def test_soft_nms_stops_at_the_limit():
    boxes, scores, labels = make_boxes(60)
    full, _ = batched_soft_nms(boxes, scores, labels, iou_threshold=0.3)
    some, _ = batched_soft_nms(boxes, scores, labels, iou_threshold=0.3, max_detections=7)
    assert some.tolist() == full[:7].tolist()


def test_hard_nms_keeps_classes_apart():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
    keep = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), 0.5)
    assert keep.tolist() == [0, 2]


def test_nothing_in_nothing_out():
    boxes, scores, labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert [len(t) for t in batched_soft_nms(boxes, scores, labels, iou_threshold=0.5)] == [0, 0]
    assert len(batched_nms(boxes, scores, labels, 0.5)) == 0


def test_half_precision_scores_come_back_as_they_went_in():
    boxes, scores, labels = make_boxes(5)
    _, decayed = batched_soft_nms(boxes.half(), scores.half(), labels, iou_threshold=0.5)
    assert decayed.dtype == torch.float16


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="quadratic"):
        batched_soft_nms(*make_boxes(2), iou_threshold=0.5, method="quadratic")


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("min_score", [1e-3, 0.3, 2.0])
def test_picking_boxes_together_equals_picking_them_one_by_one(method, iou_threshold, min_score):
    images = [make_boxes(80), make_boxes(80)]
    images[1] = (images[1][0].flip(0), images[1][1], images[1][2] * 0)  # one class: the longest chains
    arguments = {"iou_threshold": iou_threshold, "min_score": min_score, "method": method}
    stacked = [torch.stack(parts) for parts in zip(*images, strict=True)]
    together, is_open = parallel_soft_nms(*stacked, **arguments)
    assert not bool(is_open.any())
    for (boxes, scores, labels), found in zip(images, together, strict=True):
        keep, decayed = batched_soft_nms(boxes, scores, labels, **arguments)
        best, order = found.sort(descending=True)
        assert order[: len(keep)].tolist() == keep.tolist()
        torch.testing.assert_close(best[: len(keep)], decayed, rtol=1e-12, atol=0)
        assert bool((best[len(keep) :] == -1).all())


def test_rounds_that_are_too_few_are_reported_by_image():
    steps = torch.arange(20.0)
    chain = torch.stack([steps * 10, steps * 0, steps * 10 + 15, steps * 0 + 10], -1)  # each overlaps its neighbours
    apart = chain + torch.stack([steps * 100, steps * 0, steps * 100, steps * 0], -1)
    boxes, scores = torch.stack([chain, apart]), torch.linspace(0.9, 0.8, 20).expand(2, -1)
    labels = torch.zeros(2, 20, dtype=torch.int64)
    arguments = {"iou_threshold": 0.1, "min_score": 0.0}
    whole, is_open = parallel_soft_nms(boxes, scores, labels, **arguments)
    assert is_open.tolist() == [False, False]
    found, is_open = parallel_soft_nms(boxes, scores, labels, rounds=8, **arguments)
    assert is_open.tolist() == [True, False]
    assert (found[0] >= 0).sum() < (whole[0] >= 0).sum()
    assert torch.equal(found[1], whole[1])


def test_the_first_of_equal_scores_goes_first():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.5, 0.5, 0.5]), torch.zeros(3, dtype=torch.int64)
    together = parallel_soft_nms(boxes[None], scores[None], labels[None], iou_threshold=0.5)[0][0]
    keep, decayed = batched_soft_nms(boxes, scores, labels, iou_threshold=0.5)
    assert float(together[0]) == 0.5
    torch.testing.assert_close(together[keep], decayed)


def test_label_after_label_each_keeps_its_best(monkeypatch):
    """As in mmcv: the lowest score is asked of what was decayed by a pick, not of the first pick itself."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.9, 0.8, 1e-5]), torch.tensor([0, 0, 1])
    assert nms.batched_soft_nms(boxes, scores, labels, iou_threshold=0.5)[0].tolist() == [0]
    monkeypatch.setattr(nms, "ONE_BY_ONE_FROM", 3)
    assert nms.batched_soft_nms(boxes, scores, labels, iou_threshold=0.5)[0].tolist() == [0, 2]


def test_grouped_nms_is_nms_within_each_image_and_group():
    boxes, scores, _ = make_boxes(120)
    boxes, scores = boxes.view(3, 40, 4), scores.view(3, 40)
    kept = grouped_nms(boxes, scores, [25, 0, 15], 0.3)
    for image in range(3):
        for rows in (slice(0, 25), slice(25, 40)):
            alone = batched_nms(boxes[image, rows], scores[image, rows], torch.zeros(rows.stop - rows.start), 0.3)
            assert sorted(alone.tolist()) == kept[image, rows].nonzero()[:, 0].tolist()
    assert 0 < int(kept.sum()) < 120
