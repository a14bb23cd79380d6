from __future__ import annotations

import dataclasses

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.models.build import build_model, build_postprocess
from tests.models.networks import make_batch
from tests.postprocessing import post_process


@pytest.fixture
def model(tiny_settings):
    return build_model(tiny_settings.model).eval()


def test_published_sizes():
    with torch.device("meta"):
        model = build_model(load_preset("co_dino_r50").model)
    parameters = list(model.parameters())
    assert len(parameters) == 515
    assert sum(p.numel() for p in parameters) == 65_204_005
    assert sum(p.numel() for p in parameters if p.requires_grad) == 64_928_485


def test_outputs_have_the_promised_shapes(model, tiny_settings):
    images, mask, _ = make_batch()
    outputs = model(images, mask)
    queries = tiny_settings.model.num_queries
    assert outputs["pred_logits"].shape == (2, queries, 3)
    assert outputs["pred_boxes"].shape == (2, queries, 4)
    assert bool(((outputs["pred_boxes"] >= 0) & (outputs["pred_boxes"] <= 1)).all())


def test_leaving_out_the_aux_heads_changes_no_detection(model, tiny_settings):
    lean = build_model(tiny_settings.model, aux_heads=False).eval()
    lean.load_state_dict({k: v for k, v in model.state_dict().items() if k in lean.state_dict()})
    images, mask, metas = make_batch()
    postprocess = build_postprocess(tiny_settings.test)
    for a, b in zip(
        model.detect(images, mask, metas, postprocess), lean.detect(images, mask, metas, postprocess), strict=True
    ):
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
    with pytest.raises(ValueError, match="auxiliary"):
        lean.detect(images, mask, metas, dataclasses.replace(postprocess, head="atss"))


@pytest.mark.parametrize("head", ["decoder", "roi", "atss"])
def test_every_head_detects_inside_its_image(model, head):
    images, mask, metas = make_batch()
    for found, meta in zip(model.detect(images, mask, metas, post_process(head=head)), metas, strict=True):
        height, width = meta["norm_size"]
        scale_x, scale_y = meta["scale_factor"]
        assert len(found) > 0
        assert bool((found.scores.diff() <= 0).all()), "best first"
        assert float(found.boxes[:, [0, 2]].max()) <= width / scale_x + 1e-3
        assert float(found.boxes[:, [1, 3]].max()) <= height / scale_y + 1e-3
        assert int(found.labels.max()) < 3


def test_checkpointing_changes_memory_not_numbers(tiny_settings):
    images, mask, _ = make_batch()
    gradients = []
    for overrides in (
        ["model.encoder_checkpointing=0"],
        ["model.encoder_checkpointing=2", "model.backbone.checkpointing=true", "model.decoder_checkpointing=true"],
    ):
        torch.manual_seed(0)
        model = build_model(apply_overrides(tiny_settings, overrides).model).train()
        sum(v.sum() for v in model(images, mask).values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_keeps_scores_and_boxes_in_float32(model):
    images, mask, metas = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images, mask)
        found = model.detect(images, mask, metas, post_process())
    assert outputs["pred_logits"].dtype == outputs["pred_boxes"].dtype == torch.float32
    assert found[0].boxes.dtype == torch.float32
