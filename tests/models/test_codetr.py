from __future__ import annotations

import dataclasses

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset
from codetr_cli.models import decoder as decoder_module
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.decoder import DinoDecoder
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


def test_nothing_that_lies_in_the_padding_changes_the_memory_of_the_image(model):
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    again = model.encoder(
        [
            m.masked_fill(p[:, None], 7.0)
            for m, p in zip(model.neck(model.backbone(images)), encoded.layout.level_masks, strict=True)
        ],
        encoded.layout,
    )
    inside = ~encoded.layout.padding_mask
    torch.testing.assert_close(again[inside], encoded.memory[inside])


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
    for ours, theirs in zip(post.at_once(probabilities, boxes, metas), one_by_one, strict=True):
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert ours.labels.tolist() == theirs.labels.tolist()


@pytest.mark.parametrize("at_once", [False, True])
def test_values_made_before_are_those_that_the_layers_make(model, at_once, monkeypatch):
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    if at_once:  # as on a GPU: the device is all that keeps a CPU from it
        monkeypatch.setattr(decoder_module, "shares_one_product", lambda *_: True)
    shared = model.with_values(encoded)
    proposals = model.select_queries(encoded)
    queries = model.matching_queries(proposals)
    ours, theirs = model.decode(queries, shared).states, model.decode(queries, encoded).states
    torch.testing.assert_close(ours, theirs)
    weight = model.decoder.layers[0].cross_attn.value_proj.weight
    gradients = [torch.autograd.grad(x.square().sum(), weight, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_images_with_fewer_tokens_than_queries_use_all_tokens(tiny_settings):
    model = build_model(apply_overrides(tiny_settings, ["model.num_queries=4000"]).model).eval()
    images, mask, metas = make_batch()
    tokens = sum((96 // stride) * (128 // stride) for stride in (4, 8, 16, 32))
    assert model(images, mask)["pred_logits"].shape == (2, tokens, 3)
    assert len(model.detect(images, mask, metas, post_process(max_detections=7))[0]) == 7


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


def test_decoder_refines_from_the_raw_state_but_predicts_from_the_normed_one(model):
    """Parity: the refined reference and the predicted box of one layer differ although one head makes both."""
    images, mask, _ = make_batch()
    encoded = model.encode(images, mask)
    for head in model.box_heads:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    torch.nn.init.uniform_(model.decoder.norm.weight, 0.5, 2.0)
    proposals = model.select_queries(encoded)
    decoded = model.decode(model.matching_queries(proposals), encoded)
    _, boxes = model.predict_layers(decoded)
    assert isinstance(model.decoder, DinoDecoder)
    assert not torch.allclose(boxes[0], decoded.references[1])


def test_autocast_keeps_scores_and_boxes_in_float32(model):
    images, mask, metas = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images, mask)
        found = model.detect(images, mask, metas, post_process())
    assert outputs["pred_logits"].dtype == outputs["pred_boxes"].dtype == torch.float32
    assert found[0].boxes.dtype == torch.float32
