"""Whole detections in bf16 and fp16 by CUDA's rules, on an emulated GPU: what stays float32, chunks, and range."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.models import attention, inference_mode
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.feed_forward import FeedForward
from tests.models.networks import SWIN, VIT
from tests.strict.workloads import Work, evaluated_batch, random_network
from tests.strict_device import strict_device, values, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NETWORKS = {
    "dino resnet": [],
    "dino swin": SWIN,
    "deformable vit": ["model.family=co_deformable", *VIT],
}


def make_settings(settings: Settings, *overrides: str) -> Settings:
    return apply_overrides(settings, ["test.nms=none", *overrides])


def detect(model: CoDETR, settings: Settings, precision: str, *, padded: bool = True) -> Any:
    """Detections of the emulated GPU, which has nothing to complain about."""
    work = Work(size=(64, 96), precision=precision, padded=padded)
    with strict_device() as gpu:
        found = evaluated_batch(copy.deepcopy(model).to(GPU), settings, work, GPU)
        assert not gpu.problems
    return found


@pytest.mark.parametrize(
    ("network", "precision"),
    [("dino resnet", "bf16"), ("dino resnet", "fp16"), ("dino swin", "bf16"), ("deformable vit", "fp16")],
)
def test_detections_are_close_to_those_of_float32(tiny_settings, network, precision):
    settings = make_settings(tiny_settings, *NETWORKS[network])
    model = random_network(settings)
    work = Work(size=(64, 96), padded=True)
    exact = evaluated_batch(copy.deepcopy(model), settings, work, CPU)
    rough = detect(model, settings, precision)
    assert len(rough) == len(exact) > 0
    assert np.isfinite(rough.boxes_xywh).all()
    assert not np.array_equal(rough.scores, exact.scores), "it is a reduced precision"
    tolerance = {"bf16": 0.03, "fp16": 0.004}[precision]
    assert np.abs(rough.scores - exact.scores).max() < tolerance


@contextmanager
def observed_dtypes(model: CoDETR) -> Iterator[dict[str, set[torch.dtype]]]:
    """The dtypes of tensors by role, while the network runs."""
    found: dict[str, set[torch.dtype]] = defaultdict(set)
    sample, handles = attention.fused_multi_scale_deformable_attention, []

    def observe(value: Tensor, shapes: Any, references: Tensor, offsets: Tensor, logits: Tensor, **more: Any) -> Tensor:
        for role, tensor in (("sampled values", value), ("reference points", references)):
            found[role].add(tensor.dtype)
        return sample(value, shapes, references, offsets, logits, **more)

    def watch(module: nn.Module, role: str) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[role] |= {inputs[0].dtype, output.dtype}

        handles.append(module.register_forward_hook(hook))

    for head in (*model.class_heads, *model.box_heads):
        watch(head, "heads")
    watch(model.proposals.memory_proj, "scores of tokens")
    watch(model.encoder.layers[0].self_attn.output_proj, "attention")
    attention.fused_multi_scale_deformable_attention = observe
    try:
        yield found
    finally:
        attention.fused_multi_scale_deformable_attention = sample
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("family", "precision"), [("co_dino", "fp16"), ("co_deformable", "bf16")])
def test_boxes_scores_and_positions_stay_float32(tiny_settings, family, precision):
    settings = make_settings(tiny_settings, f"model.family={family}")
    model = random_network(settings)
    with strict_device():
        model = model.to(GPU)
        with observed_dtypes(model) as found:
            evaluated_batch(model, settings, Work(size=(64, 96), precision=precision, padded=True), GPU)
    half = DTYPES[precision]
    assert found == {
        "sampled values": {half},
        "reference points": {torch.float32},
        "heads": {torch.float32},
        "scores of tokens": {torch.float32},
        "attention": {half},
    }


def test_feed_forward_layers_run_in_chunks(tiny_settings, monkeypatch):
    settings = make_settings(tiny_settings)
    model = random_network(settings)
    whole = detect(model, settings, "bf16")
    monkeypatch.setattr(inference_mode, "GPU_CHUNK_TOKENS", 100)
    tokens: list[int] = []
    forward = FeedForward.forward

    def observe(self: FeedForward, x: Tensor) -> Tensor:
        tokens.append(x.shape[:-1].numel())
        return forward(self, x)

    monkeypatch.setattr(FeedForward, "forward", observe)
    chunked = detect(model, settings, "bf16")
    assert max(tokens) <= 100, "decoder layers have 60 queries, the encoder's several hundred tokens"
    np.testing.assert_allclose(chunked.scores, whole.scores, atol=5e-3)


def test_large_values_do_not_overflow_in_fp16(tiny_settings):
    """Class logits far beyond the range of fp16, and attention that is all on one sample of large values."""
    logits: list[float] = []
    settings = make_settings(tiny_settings)
    model = random_network(settings)
    with torch.no_grad():
        for head in model.class_heads:
            head.weight.mul_(1e6)
            head.register_forward_hook(lambda head, inputs, output: logits.append(float(values(output).abs().max())))
        for layer in (*model.encoder.layers, *model.decoder.layers):
            deformable = getattr(layer, "cross_attn", layer.self_attn)
            deformable.attention_weights.weight.mul_(3e3)
            deformable.value_proj.bias.fill_(2e4)
            deformable.output_proj.weight.mul_(1e-3)
    found = detect(model, settings, "fp16")
    assert len(found) > 0
    assert np.isfinite(found.boxes_xywh).all()
    assert np.isfinite(found.scores).all()
    assert max(logits) > torch.finfo(torch.float16).max
    assert found.scores.max() == 1
