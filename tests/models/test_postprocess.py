"""From logits and boxes to detections."""

from __future__ import annotations

import pytest
import torch

from codetr_cli.models import postprocess
from codetr_cli.models.postprocess import Detections
from tests.postprocessing import post_process


def test_both_published_candidate_rules_differ_as_described():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 40, 3, generator=generator, dtype=torch.float64)
    boxes = torch.rand(1, 40, 4, generator=generator, dtype=torch.float64) * 0.1 + 0.4
    meta = [{"norm_size": (100, 100), "scale_factor": (1.0, 1.0)}]
    mmdet = post_process(max_detections=20, candidates="max_detections", nms_iou=0.3)(logits, boxes, meta)[0]
    sensex = post_process(max_detections=20, candidates="num_queries", nms_iou=0.3)(logits, boxes, meta)[0]
    plain = post_process(max_detections=20, nms="none")(logits, boxes, meta)[0]
    best = logits.sigmoid().flatten().sort(descending=True)[0]
    torch.testing.assert_close(plain.scores, best[:20])
    assert len(mmdet) < len(sensex) <= 20, "more candidates survive when all queries compete"
    assert float(mmdet.scores[0]) == float(sensex.scores[0])


@pytest.mark.parametrize("nms", ["soft", "none"])
@pytest.mark.parametrize("candidates", ["num_queries", "max_detections"])
def test_detections_of_a_batch_at_once_are_those_of_its_images(nms, candidates):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2, 40, 3, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, 40, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.4
    metas = [
        {"norm_size": (100, 140), "scale_factor": (0.5, 0.4)},
        {"norm_size": (80, 90), "scale_factor": (2.0, 1.0)},
    ]
    post = post_process(max_detections=20, nms=nms, candidates=candidates, nms_iou=0.3)
    one_by_one = post(probabilities.logit(), boxes, metas)
    assert nms == "none" or any(len(found) < 40 for found in one_by_one)
    for ours, theirs in zip(post.at_once(probabilities.logit(), boxes, metas), one_by_one, strict=True):
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert ours.labels.tolist() == theirs.labels.tolist()


@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_detections_are_complete_after_any_number_of_first_rounds(rounds, monkeypatch):
    monkeypatch.setattr(postprocess, "SOFT_NMS_ROUNDS", rounds)
    steps = torch.arange(30, dtype=torch.float64) / 40
    boxes = torch.stack([steps + 0.1, steps * 0 + 0.5, steps * 0 + 0.05, steps * 0 + 0.2], -1)[None]  # a chain
    logits = torch.linspace(2, 1, 30, dtype=torch.float64)[None, :, None]
    meta = [{"norm_size": (100, 100), "scale_factor": (1.0, 1.0)}]
    post = post_process(max_detections=30, nms="soft", nms_iou=0.1, candidates="num_queries")
    (one_by_one,), (at_once,) = post(logits, boxes, meta), post.at_once(logits, boxes, meta)
    assert len(one_by_one) == 30
    torch.testing.assert_close(at_once.boxes, one_by_one.boxes)
    torch.testing.assert_close(at_once.scores, one_by_one.scores)


def test_columns_of_detections_stay_together():
    found = Detections(torch.rand(4, 4), torch.rand(4), torch.arange(4), torch.rand(4, 5, 5), torch.rand(4))
    for index in (torch.tensor([2, 0]), torch.tensor([False, True, True, False]), slice(1, 3)):
        chosen = found[index]
        assert torch.equal(chosen.masks, found.masks[index])
        assert torch.equal(chosen.mask_scores, found.mask_scores[index])
        assert torch.equal(chosen.labels, found.labels[index])
