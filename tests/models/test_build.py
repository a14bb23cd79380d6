"""Whole networks on the transformer backbones, from their settings: lean, compiled, in half precision, trained."""

from __future__ import annotations

import copy

import pytest
import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.losses.build import build_objective
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.models.torch_compile import compile_static_parts
from tests.models.networks import KINDS, make_batch


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def settings(request, tiny_settings):
    return apply_overrides(tiny_settings, request.param)


def small(settings, **changes):
    torch.manual_seed(0)
    return build_model(settings.model, **changes)


def test_the_levels_follow_the_finest_stride(settings):
    model = small(settings).eval()
    images, mask, _ = make_batch(96, 128)
    encoded = model.encode(images, mask)
    strides = [settings.model.finest_stride * 2**i for i in range(settings.model.num_levels)]
    shapes = [tuple(m.shape[-2:]) for m in encoded.layout.split_levels(encoded.memory)]
    assert shapes == [(-(-96 // stride), -(-128 // stride)) for stride in strides]


def test_lean_and_compiled_networks_predict_the_same(settings):
    model = small(settings, aux_heads=False).eval()
    images, mask, _ = make_batch()
    with torch.no_grad():
        plain = model(images, mask)
        lean = optimize_for_inference(copy.deepcopy(model))
        for module in lean.modules():
            if getattr(module, "chunk_tokens", 0):
                module.chunk_tokens = 100
        found = lean(images, mask)
        torch.compiler.reset()
        traced = compile_static_parts(model, backend="aot_eager")(images, mask)
    for name, wanted in plain.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(traced[name], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["decoder", "roi", "atss"])
def test_every_head_detects(settings, head):
    settings = apply_overrides(settings, [f'test.head="{head}"'])
    images, mask, metas = make_batch()
    found = small(settings).eval().detect(images, mask, metas, build_postprocess(settings.test))
    for detections in found:
        assert len(detections) > 0
        assert detections.boxes.shape == (len(detections), 4)
        assert (detections.scores.diff() <= 0).all()
        assert detections.labels.unique().numel() <= settings.model.num_classes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_parameter_is_trained(settings, precision):
    settings = apply_overrides(settings, ["model.backbone.drop_path=0", "model.backbone.checkpointing=true"])
    objective = build_objective(small(settings), settings.train.loss).train()
    images, mask, _ = make_batch()
    boxes = torch.tensor([[10.0, 12, 70, 60], [60, 20, 100, 90]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([0, 2]), "norm_size": (96, 128), "pad_size": (96, 128)},
        {
            "boxes": boxes[:0],
            "labels": torch.zeros(0, dtype=torch.int64),
            "norm_size": (96, 112),
            "pad_size": (96, 112),
        },
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = objective(images, mask, targets)
    sum(losses.values()).backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    still = {name for name, p in objective.model.backbone.named_parameters() if not p.grad.any()}
    assert not still
