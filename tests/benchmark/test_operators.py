from __future__ import annotations

import json

import pytest
import torch

from codetr_cli.benchmark import operators
from codetr_cli.benchmark.operator_inputs import OperatorShape, make_inputs
from codetr_cli.benchmark.operators import (
    REFERENCE,
    OperatorSpec,
    benchmark_operator,
    operator_work,
    report_table,
    usable_backends,
)
from codetr_cli.benchmark.roofline import MachineLimits
from codetr_cli.ops.deform_attn import available_backends
from codetr_cli.ops.deform_attn_triton_tuning import Candidate, forced_candidate

CPU = torch.device("cpu")
LIMITS = MachineLimits(
    copy_bytes_per_second=1e9, cache_bytes_per_second=1e9, flops_per_second=1e9, cache_bytes=2**20, dtype="float32"
)


def make_spec(**changes) -> OperatorSpec:
    shape = OperatorShape(name=changes.pop("name", "encoder"), size=(64, 96), levels=2, heads=2, channels=8)
    return OperatorSpec(**{"shape": shape, "device": CPU, "dtype": torch.float32, "rounds": 2, **changes})


@pytest.mark.parametrize("unfused", [False, True])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_every_backend_has_a_row(name, unfused):
    spec = make_spec(name=name, unfused=unfused)
    ticks = []
    report = benchmark_operator(spec, LIMITS, lambda: ticks.append(1))
    runs = [backend for backend, reason in available_backends("cpu").items() if reason is None]
    measured = [row for row in report.rows if row.reason is None]
    assert [row.name for row in measured] == runs
    assert {row.name for row in report.rows} == set(available_backends("cpu"))
    assert len(ticks) == len(runs) * 5 <= spec.ticks
    for row in measured:
        assert 0 < row.forward_ms.minimum <= row.forward_ms.median
        assert 0 < row.backward_ms.minimum <= row.backward_ms.median
        largest = max(report.forward_bounds_ms.values())
        assert row.forward_over_limit == pytest.approx(row.forward_ms.median / largest)
    reference = measured[-1]
    assert reference.name == REFERENCE
    assert reference.forward_speed == reference.backward_speed == 1
    first = measured[0]
    assert first.backward_speed == pytest.approx(reference.backward_ms.median / first.backward_ms.median)
    for row in report.rows[len(measured) :]:
        assert row.forward_ms is None
        assert row.reason
    table = json.loads(json.dumps(report_table(report)))
    assert table["entry"] == ("unfused" if unfused else "fused")
    assert table["shape"]["tokens"] == 16 * 24 + 8 * 12


def test_backends_take_turns(monkeypatch):
    order = []
    real = operators._Timer._call

    def recorded(timer, inputs):
        if not torch.is_grad_enabled():
            order.append(timer.name)
        return real(timer, inputs)

    monkeypatch.setattr(operators._Timer, "_call", recorded)
    benchmark_operator(make_spec(backends=("torch",), rounds=3), LIMITS)
    # The warm-up of each, three rounds in turn, the memory of each in a call of its own.
    assert order == ["torch", "reference", *["torch", "reference"] * 3, "torch", "reference"]


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_a_failing_backend_affects_only_its_row(monkeypatch, name):
    real = operators._Timer.backward

    def broken(timer):
        if timer.name == name:
            raise RuntimeError("out of luck\nmore lines")
        return real(timer)

    monkeypatch.setattr(operators._Timer, "backward", broken)
    report = benchmark_operator(make_spec(backends=("torch",)), LIMITS)
    assert report.rows[-1].name == name
    assert report.rows[-1].reason == "it fails with these inputs: out of luck"
    assert report.rows[0].reason is None
    assert report.rows[0].forward_speed == (1 if name == "torch" else None)


def test_a_backend_with_wrong_results_is_not_measured(monkeypatch):
    monkeypatch.setattr(operators, "available_backends", lambda kind: {"cpu": None, "reference": None})
    monkeypatch.setattr(operators, "proven", lambda name, kind: False)
    names, reasons = usable_backends(make_spec())
    assert names == ["reference"]
    assert "results" in reasons["cpu"]


def test_every_form_of_the_triton_kernels_is_a_row(monkeypatch):
    monkeypatch.setattr(
        operators, "available_backends", lambda device: {"triton": None, "cpu": "no", "reference": None}
    )
    monkeypatch.setattr(operators, "proven", lambda name, device: True)
    ran = []
    monkeypatch.setattr(
        operators, "fused_multi_scale_deformable_attention", lambda *inputs: ran.append(forced_candidate())
    )
    spec = make_spec(candidates=True)
    names, _ = usable_backends(spec)
    assert names[:2] == ["triton", "triton 1x8w1"]
    assert "triton 4x8w4+clamped" in names
    assert names[-1] == REFERENCE
    timer = operators._Timer.__new__(operators._Timer)
    for timer.name in ("triton", "triton 4x8w4+clamped"):
        timer._call(make_inputs(spec.shape, CPU, torch.float32))
    assert ran == [None, Candidate(4, 8, 4, clamped=True)]
    decoder, _ = usable_backends(make_spec(name="decoder", candidates=True))
    assert "triton 1x8w1+clamped" in decoder
    assert "triton 4x8w4+clamped" not in decoder
    assert usable_backends(make_spec())[0] == ["triton", REFERENCE]


def test_work_is_counted_once():
    shape = OperatorShape(name="encoder", size=(800, 1333), levels=5)
    empty = make_inputs(OperatorShape(name="encoder", size=(32, 32), levels=1), CPU, torch.float32)
    forward, backward = operator_work(empty, shape)
    assert forward.flops == pytest.approx(3.65e9, rel=0.01)
    assert forward.cache_bytes == pytest.approx(7.3e9, rel=0.01)
    assert (backward.flops, backward.cache_bytes) == (2 * forward.flops, 3 * forward.cache_bytes)
    small = make_spec().shape
    inputs = make_inputs(small, CPU, torch.float32)
    tokens = 480
    rows = tokens * 2 * 8 * 4  # value, or output
    places = tokens * 2 * 2 * 4 * 4  # a number for each sample
    forward, backward = operator_work(inputs, small)
    assert forward.memory_bytes == 2 * rows + 3 * places + tokens * 2 * 2 * 4
    assert backward.memory_bytes == forward.memory_bytes + rows + 3 * places
