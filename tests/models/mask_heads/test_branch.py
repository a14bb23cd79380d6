from __future__ import annotations

import dataclasses

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.models.pooling import number_regions

SMALL = ("model.mask.dim=16", "model.mask.iou_fc_dim=8")


def make(tiny_settings, kind, *overrides):
    settings = apply_overrides(tiny_settings, [f"model.mask.kind={kind}", *SMALL, *overrides])
    return build_model(settings.model).eval(), build_postprocess(settings.test)


def make_batch(count=2):
    images = torch.randn(count, 3, 96, 128)
    metas = [{"norm_size": (96, 128), "scale_factor": (0.5 + i, 0.75)} for i in range(count)]
    return images, torch.zeros(count, 96, 128, dtype=torch.bool), metas


def test_a_preset_without_masks_has_none(tiny_settings):
    model = build_model(tiny_settings.model).eval()
    images, mask, metas = make_batch()
    for found in model.detect(images, mask, metas, build_postprocess(tiny_settings.test)):
        assert found.masks is None
        assert found.mask_scores is None
    with pytest.raises(ValueError, match="without a mask branch"):
        model.predict_masks(model.encode(images, mask), [], [])


@pytest.mark.parametrize(("kind", "head", "side"), [("fcn", "roi", 28), ("refine", "decoder", 112)])
def test_detections_come_with_masks(tiny_settings, kind, head, side):
    model, postprocess = make(tiny_settings, kind)
    images, mask, metas = make_batch()
    postprocess = dataclasses.replace(postprocess, head=head)
    plain = build_model(tiny_settings.model).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    for found, without in zip(
        model.detect(images, mask, metas, postprocess), plain.detect(images, mask, metas, postprocess), strict=True
    ):
        assert torch.equal(found.boxes, without.boxes)
        assert found.masks.shape == (len(found), side, side)
        assert bool(((found.masks >= 0) & (found.masks <= 1)).all())
        if kind == "refine":
            assert bool((found.mask_scores <= found.scores).all())
            assert bool((found.mask_scores > 0).all())
        chosen = found[found.scores >= found.scores[3]].cpu()
        assert torch.equal(chosen.masks, found.masks[:4])
        assert len(found[:2].masks) == 2


@pytest.mark.parametrize(("kind", "head"), [("fcn", "atss"), ("fcn", "decoder"), ("refine", "roi")])
def test_other_heads_have_no_masks(tiny_settings, kind, head):
    model, postprocess = make(tiny_settings, kind)
    for found in model.detect(*make_batch(), dataclasses.replace(postprocess, head=head)):
        assert len(found)
        assert found.masks is None


@pytest.mark.parametrize(("kind", "head"), [("fcn", "roi"), ("refine", "decoder")])
@pytest.mark.parametrize("chunk", [1, 7])
def test_masks_depend_neither_on_the_batch_nor_on_the_chunks(tiny_settings, kind, head, chunk):
    torch.manual_seed(1)
    model, postprocess = make(tiny_settings, kind)
    model, images, mask, metas = model.double(), *make_batch(3)
    images, postprocess = images.double(), dataclasses.replace(postprocess, head=head)
    together = model.detect(images, mask, metas, postprocess)
    part = model.mask_branch if kind == "refine" else model.aux_heads.roi.mask_head
    part.regions_per_chunk = chunk
    for i, found in enumerate(together):
        (alone,) = model.detect(images[i : i + 1], mask[i : i + 1], metas[i : i + 1], postprocess)
        torch.testing.assert_close(alone.boxes, found.boxes)
        torch.testing.assert_close(alone.masks, found.masks)
        if kind == "refine":
            torch.testing.assert_close(alone.mask_scores, found.mask_scores)


def test_only_sure_detections_get_masks_when_asked(tiny_settings):
    model, postprocess = make(tiny_settings, "refine")
    batch = make_batch()
    found = model.detect(*batch, postprocess)
    limit = float(found[0].scores[4])
    for all_of_them, sure in zip(
        found, model.detect(*batch, dataclasses.replace(postprocess, mask_min_score=limit)), strict=True
    ):
        expected = all_of_them[all_of_them.scores >= limit]
        assert torch.equal(sure.boxes, expected.boxes)
        torch.testing.assert_close(sure.masks, expected.masks)
    nothing = model.detect(*batch, dataclasses.replace(postprocess, mask_min_score=1.0))
    assert [(len(item), item.masks.shape) for item in nothing] == [(0, (0, 112, 112))] * 2


def test_without_aux_heads_refined_masks_remain_and_lean_changes_little(tiny_settings):
    model, postprocess = make(tiny_settings, "refine")
    settings = apply_overrides(tiny_settings, ["model.mask.kind=refine", *SMALL])
    bare = build_model(settings.model, aux_heads=False).eval()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k in bare.state_dict()})
    batch = make_batch()
    expected = model.detect(*batch, postprocess)
    for ours, theirs in zip(optimize_for_inference(bare).detect(*batch, postprocess), expected, strict=True):
        torch.testing.assert_close(ours.masks, theirs.masks, rtol=1e-3, atol=1e-3)


def test_masks_are_the_same_size_in_half_precision(tiny_settings):
    model, postprocess = make(tiny_settings, "refine")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (first, _) = model.detect(*make_batch(), postprocess)
    assert first.masks.dtype == torch.float32
    assert bool(first.masks.isfinite().all())


def test_the_head_draws_four_sizes_of_the_regions_class(tiny_settings):
    model, _ = make(tiny_settings, "refine")
    branch, maps = model.mask_branch, [torch.randn(2, 32, 24 // 2**i, 32 // 2**i) for i in range(4)]
    regions = number_regions([torch.tensor([[3.0, 4, 60, 50]]), torch.tensor([[0.0, 0, 128, 96], [9, 9, 10, 10]])])
    drawn = branch(maps, branch.head.semantic_maps(maps[0]), regions, torch.tensor([0, 2, 1]))
    assert [m.shape for m in drawn.logits] == [(3, 1, side, side) for side in (14, 28, 56, 112)]
    assert drawn.iou.shape == (3,)
    other = branch(maps, branch.head.semantic_maps(maps[0]), regions, torch.tensor([1, 2, 1]))
    assert not torch.allclose(drawn.logits[0][0], other.logits[0][0])
    torch.testing.assert_close(drawn.logits[0][1:], other.logits[0][1:])
    empty = branch(maps, branch.head.semantic_maps(maps[0]), regions[:0], torch.zeros(0, dtype=torch.int64))
    assert [len(m) for m in empty.logits] == [0] * 4


@pytest.mark.parametrize(("kind", "count"), [("fcn", 2_643_280), ("refine", 18_659_262)])
def test_published_sizes(kind, count):
    settings = apply_overrides(load_preset("co_dino_r50"), [f"model.mask.kind={kind}"])
    with torch.device("meta"):
        model = build_model(settings.model)
    assert sum(p.numel() for name, p in model.named_parameters() if "mask" in name) == count
