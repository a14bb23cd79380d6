from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.models.backbones.resnet import FrozenBatchNorm2d
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.encoder import EncoderLayer
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.models.proposals import QuerySelection
from tests.models.networks import make_batch


def chunk(model, tokens):
    for module in model.modules():
        if isinstance(module, EncoderLayer | QuerySelection):
            module.chunk_tokens = tokens
    return model


@pytest.fixture(params=["basic", "bottleneck"])
def model(request, tiny_settings):
    """A network whose batch norms have seen something and whose heads say different things."""
    overrides = ['model.backbone.norm="frozen_batch"', f'model.backbone.block="{request.param}"']
    model = build_model(apply_overrides(tiny_settings, overrides).model).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, FrozenBatchNorm2d):
                for value, low, high in (
                    (norm.weight, 0.5, 1.5), (norm.bias, -1, 1), (norm.running_mean, -1, 1), (norm.running_var, 0.5, 2),
                ):  # fmt: skip
                    value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
        for head in (*model.class_heads, *(head.layers[-1] for head in model.box_heads)):
            torch.nn.init.normal_(head.weight, std=0.3, generator=generator)
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("padded", [True, False])
def test_the_lean_network_predicts_what_the_plain_one_does(model, dtype, tolerance, padded):
    images, mask, _ = make_batch()
    images, mask = images.to(dtype), mask if padded else torch.zeros_like(mask)
    model = model.to(dtype)
    with torch.no_grad():
        plain = model(images, mask)
        lean = chunk(optimize_for_inference(copy.deepcopy(model)), 100)
        found = lean(images, mask if padded else None)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in lean.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules()), "the plain one is untouched"
    for name, wanted in plain.items():
        error = (found[name] - wanted).abs().max() / wanted.abs().max()
        assert float(error) < tolerance, f"{name} differs by {float(error):.2e}"


def test_lean_weights_stand_with_channels_innermost(model):
    lean = optimize_for_inference(model)
    for part in (lean.backbone, lean.neck):
        for module in part.modules():
            if isinstance(module, torch.nn.Conv2d):
                assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(parameter.requires_grad for parameter in lean.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_norms_multiplied_into_trained_weights_give_the_same_maps_and_gradients(model, checkpointing):
    backbone = model.double().train().backbone
    backbone.checkpointing = checkpointing
    images = make_batch()[0].double()
    with torch.no_grad():
        plain = backbone(images)
    kept = backbone(images)
    for ours, theirs in zip(kept, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weight = backbone.layer2[0].conv1.weight
    (grad,) = torch.autograd.grad(sum(m.square().sum() for m in kept), weight)
    step = 1e-6 * torch.randn_like(weight)
    with torch.no_grad():
        sums = []
        for sign in (1, -1):
            weight += sign * step
            sums.append(sum(m.square().sum() for m in backbone(images)))
            weight -= sign * step
    torch.testing.assert_close((grad * step).sum(), (sums[0] - sums[1]) / 2, rtol=1e-4, atol=1e-8)


def test_with_gradients_nothing_runs_in_chunks(tiny_settings):
    model = chunk(build_model(tiny_settings.model).eval(), 50)
    images, mask, _ = make_batch()
    model(images, mask)["pred_logits"].sum().backward()
    assert model.encoder.layers[0].ffn.linear1.weight.grad is not None


def test_what_is_kept_from_inference_mode_serves_training(tiny_settings):
    model = build_model(tiny_settings.model)
    images, _, _ = make_batch(height=64, width=96)
    with torch.inference_mode():
        model.eval()(images, None)
    model.train()(images, None)["pred_boxes"].sum().backward()
    assert model.encoder.level_embed.grad is not None


class NoFloat64(TorchDispatchMode):
    """Fails where an operator returns float64, as Apple's GPUs do."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(output):
            assert not isinstance(value, torch.Tensor) or value.dtype != torch.float64, operator
        return output


@pytest.mark.parametrize("head", ["decoder", "atss", "roi"])
def test_detection_computes_nothing_in_float64(model, tiny_settings, head):
    settings = apply_overrides(tiny_settings, [f"test.head={head}"])
    model = optimize_for_inference(model) if head == "decoder" else model
    images, mask, targets = make_batch()
    with torch.inference_mode(), NoFloat64():
        found = model.detect(images, mask, targets, build_postprocess(settings.test))
    assert sum(len(detections.scores) for detections in found) > 0
