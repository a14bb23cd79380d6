from __future__ import annotations

import time

import pytest
import torch

from codetr_cli.benchmark.model import BenchmarkSpec, InferenceWorkload, Timing, TrainingWorkload, measure
from codetr_cli.models.build import build_model, build_postprocess

CPU = torch.device("cpu")


def make_spec(**changes) -> BenchmarkSpec:
    defaults = {
        "size": (64, 96),
        "batch": 1,
        "device": CPU,
        "precision": "auto",
        "warmup": 1,
        "iterations": 3,
        "split_iterations": 2,
    }
    return BenchmarkSpec(**{**defaults, **changes})


def measure_inference(model, settings, spec, tick=lambda: None) -> Timing:
    return measure(InferenceWorkload(model, build_postprocess(settings.test), settings, spec), tick)


def test_inference_is_timed_and_split(tiny_settings):
    model = build_model(tiny_settings.model, aux_heads=False)
    ticks = []
    spec = make_spec(batch=2)
    timing = measure_inference(model, tiny_settings, spec, lambda: ticks.append(1))
    assert len(ticks) == spec.ticks == 6
    assert list(timing.stages_ms) == [
        "data", "backbone", "neck", "encoder", "decoder", "heads and query selection", "post-processing",
    ]  # fmt: skip
    assert all(value > 0 for value in timing.stages_ms.values())
    latency = timing.latency_ms
    assert 0 < latency.p50 <= latency.p90 <= latency.p99
    assert timing.images_per_second == pytest.approx(2000 / latency.mean)
    assert timing.memory_of == "process"
    assert timing.peak_memory_bytes > 50e6


def test_stages_account_for_the_time_they_take(tiny_settings):
    model = build_model(tiny_settings.model, aux_heads=False)
    model.neck.register_forward_hook(lambda *_: time.sleep(0.05))
    timing = measure_inference(model, tiny_settings, make_spec())
    assert timing.stages_ms["neck"] > 49
    assert timing.stages_ms["backbone"] < 49
    within = sum(value for name, value in timing.stages_ms.items() if name != "data")
    assert within == pytest.approx(timing.latency_ms.mean, rel=0.5)


def test_no_hook_remains_in_the_network(tiny_settings):
    model = build_model(tiny_settings.model, aux_heads=False).train()
    measure_inference(model, tiny_settings, make_spec())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_training_is_timed_and_trains(tiny_settings):
    model = build_model(tiny_settings.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    timing = measure(TrainingWorkload(model, tiny_settings, make_spec(iterations=1, split_iterations=1)))
    assert list(timing.stages_ms) == ["data", "forward", "backward", "optimizer"]
    assert all(value > 0 for value in timing.stages_ms.values())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_precision_that_is_used_is_reported():
    assert make_spec().resolved_precision(training=False) == "fp32"
    assert make_spec().resolved_precision(training=True) == "fp32"  # auto on a CPU
    assert make_spec(precision="bf16").resolved_precision(training=True) == "bf16"
