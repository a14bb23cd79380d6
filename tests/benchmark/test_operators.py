from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from codetr_cli.benchmark import operators
from codetr_cli.benchmark.operator_inputs import OperatorShape, make_inputs
from codetr_cli.benchmark.operators import (
    PACKAGE,
    REFERENCE,
    Contender,
    OperatorPlan,
    benchmark_operator,
    contenders,
    largest_errors,
    operator_work,
    report_table,
)
from codetr_cli.benchmark.roofline import MachineLimits
from codetr_cli.ops.deform_attn import available_backends, multi_scale_deformable_attention

CPU = torch.device("cpu")
LIMITS = MachineLimits(
    copy_bytes_per_second=1e9, cache_bytes_per_second=1e9, flops_per_second=1e9, cache_bytes=2**20, dtype="float32"
)


def make_plan(**changes) -> OperatorPlan:
    shape = OperatorShape(name=changes.pop("name", "encoder"), size=(64, 96), levels=2, heads=2, channels=8)
    return OperatorPlan(**{"shape": shape, "device": CPU, "dtype": torch.float32, "rounds": 2, **changes})


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for torch-ms-deform-attn with its signature; the list gets the names of what was called."""
    called = []

    def ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step=64):
        called.append("package")
        assert value.dtype == sampling_locations.dtype == attention_weights.dtype
        shapes = [tuple(shape) for shape in spatial_shapes.tolist()]
        assert level_start_index.tolist() == [0, shapes[0][0] * shapes[0][1]]
        return multi_scale_deformable_attention(value, shapes, sampling_locations, attention_weights, backend="torch")

    monkeypatch.setitem(sys.modules, "torch_ms_deform_attn", SimpleNamespace(ms_deform_attn=ms_deform_attn))
    monkeypatch.setattr(operators, "_installed", lambda module: True)
    return called


@pytest.mark.parametrize("classic", [False, True])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_every_backend_has_a_row(name, classic):
    plan = make_plan(name=name, classic=classic)
    ticks = []
    report = benchmark_operator(plan, LIMITS, lambda: ticks.append(1))
    runs = [backend for backend, reason in available_backends("cpu").items() if reason is None]
    measured = [row for row in report.rows if row.reason is None]
    assert [row.name for row in measured] == runs
    assert {row.name for row in report.rows} == set(available_backends("cpu"))
    assert len(ticks) == plan.ticks(len(runs))
    gradients = {"output", "grad_value", "grad_sampling", "grad_scores"}
    for row in measured:
        assert set(row.errors) == (gradients if classic else gradients | {"grad_reference"})
        assert max(row.errors.values()) < 1e-4
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
    assert table["entry"] == ("classic" if classic else "fused")
    assert table["shape"]["tokens"] == 16 * 24 + 8 * 12


def test_backends_take_turns(monkeypatch):
    order = []
    real = operators._forced

    def noted(name):
        call = real(name)

        def run(inputs):
            if not torch.is_grad_enabled():
                order.append(name)
            return call(inputs)

        return run

    monkeypatch.setattr(operators, "_forced", noted)
    benchmark_operator(make_plan(backends=("torch",), rounds=3), LIMITS)
    # The warm-up of each, three rounds in turn, the memory of each in a call of its own.
    assert order == ["torch", "reference", *["torch", "reference"] * 3, "torch", "reference"]


def test_chosen_backends_stand_beside_the_reference():
    found, absent = contenders(make_plan(backends=("torch", PACKAGE)))
    assert [contender.name for contender in found] == ["torch", "reference"]
    assert absent == {PACKAGE: "It is not installed."}


def test_the_package_is_measured_when_it_is_there(package):
    report = benchmark_operator(make_plan(backends=(PACKAGE,)), LIMITS)
    assert [row.name for row in report.rows] == [PACKAGE, REFERENCE]
    assert package
    assert max(report.rows[0].errors.values()) < 1e-4
    assert "grad_reference" not in report.rows[0].errors
    largest_errors(
        contenders(make_plan(dtype=torch.bfloat16, backends=(PACKAGE,)))[0][0], make_plan(dtype=torch.bfloat16)
    )


def test_a_backend_that_fails_costs_only_its_row(package, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of luck\nmore lines")

    monkeypatch.setattr(sys.modules["torch_ms_deform_attn"], "ms_deform_attn", broken)
    report = benchmark_operator(make_plan(backends=(PACKAGE,)), LIMITS)
    assert [row.name for row in report.rows] == [REFERENCE, PACKAGE]
    assert report.rows[1].reason == "it fails with these inputs: out of luck"


@pytest.mark.parametrize("stage", ["forward", "backward", "forward_memory", "training_memory"])
def test_a_backend_that_fails_late_costs_only_its_row(package, monkeypatch, stage):
    real, calls = getattr(operators._Clock, stage), []

    def broken(clock):
        calls.append(clock.contender.name)
        if clock.contender.name == PACKAGE and (calls.count(PACKAGE) == 3 or "memory" in stage):
            raise LookupError
        return real(clock)

    monkeypatch.setattr(operators._Clock, stage, broken)
    report = benchmark_operator(make_plan(backends=(PACKAGE,), rounds=3), LIMITS)
    assert [row.name for row in report.rows] == [REFERENCE, PACKAGE]
    assert report.rows[1].reason == "it fails with these inputs: LookupError"
    assert report.rows[1].forward_ms is None


def test_a_backend_whose_errors_cannot_be_found_costs_only_its_row(package, monkeypatch):
    real = operators.largest_errors

    def broken(contender, plan):
        if contender.name == PACKAGE:
            raise MemoryError("no room")
        return real(contender, plan)

    monkeypatch.setattr(operators, "largest_errors", broken)
    report = benchmark_operator(make_plan(backends=(PACKAGE,)), LIMITS)
    assert [(row.name, row.reason) for row in report.rows] == [
        (REFERENCE, None),
        (PACKAGE, "it fails with these inputs: no room"),
    ]


def test_a_package_that_cannot_be_imported_costs_only_its_row(monkeypatch, tmp_path):
    (tmp_path / "torch_ms_deform_attn.py").write_text("raise OSError('undefined symbol\\nmore lines')")
    monkeypatch.syspath_prepend(tmp_path)
    found, absent = contenders(make_plan(backends=(PACKAGE,)))
    assert [contender.name for contender in found] == [REFERENCE]
    assert absent == {PACKAGE: "It cannot be imported: undefined symbol"}


def test_a_backend_with_wrong_numbers_is_not_measured_under_its_name(monkeypatch):
    monkeypatch.setattr(operators, "available_backends", lambda kind: {"cpu": None, "reference": None})
    monkeypatch.setattr(operators, "proven", lambda name, kind: False)
    found, absent = contenders(make_plan())
    assert [contender.name for contender in found] == ["reference"]
    assert "numbers" in absent["cpu"]


def test_errors_are_found():
    def wrong(inputs):
        return operators._forced(REFERENCE)(inputs) * 1.01

    errors = largest_errors(Contender("wrong", wrong), make_plan())
    assert errors["output"] == pytest.approx(0.01, rel=0.01)
    assert all(error == pytest.approx(0.01, rel=0.05) for error in errors.values())


def test_half_precision_is_judged_by_its_own_numbers():
    plan = make_plan(dtype=torch.bfloat16)
    errors = largest_errors(Contender("torch", operators._forced("torch")), plan)
    assert 1e-4 < errors["output"] < 2e-2
    assert errors["grad_sampling"] < 2e-2


def test_work_is_counted_once():
    shape = OperatorShape(name="encoder", size=(800, 1333), levels=5)
    empty = make_inputs(OperatorShape(name="encoder", size=(32, 32), levels=1), CPU, torch.float32)
    forward, backward = operator_work(empty, shape)
    assert forward.flops == pytest.approx(3.65e9, rel=0.01)
    assert forward.cache_bytes == pytest.approx(7.3e9, rel=0.01)
    assert (backward.flops, backward.cache_bytes) == (2 * forward.flops, 3 * forward.cache_bytes)
    small = make_plan().shape
    inputs = make_inputs(small, CPU, torch.float32)
    tokens = 480
    rows = tokens * 2 * 8 * 4  # value, or output
    places = tokens * 2 * 2 * 4 * 4  # a number for each sample
    forward, backward = operator_work(inputs, small)
    assert forward.memory_bytes == 2 * rows + 3 * places + tokens * 2 * 2 * 4
    assert backward.memory_bytes == forward.memory_bytes + rows + 3 * places
