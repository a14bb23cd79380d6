"""mmcv's real operator needs CUDA: a stand-in package of the same signatures computes with the reference here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codetr_cli.ops import deform_attn_mmcv
from codetr_cli.ops.deform_attn_torch import forward as reference_forward

SHAPES = [(3, 4), (2, 1)]

OPERATORS = """
import torch

from codetr_cli.ops.deform_attn_torch import reference_multi_scale_deformable_attention

steps = []


def check(spatial_shapes, level_start_index, im2col_step, *tensors):
    assert spatial_shapes.dtype == level_start_index.dtype == torch.int64
    areas = spatial_shapes.prod(1)
    assert level_start_index.tolist() == (areas.cumsum(0) - areas).tolist()
    assert len({tensor.dtype for tensor in tensors}) == 1
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert tensors[0].shape[0] % min(tensors[0].shape[0], im2col_step) == 0
    steps.append(im2col_step)


def ms_deform_attn_forward(
    value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step
):
    check(spatial_shapes, level_start_index, im2col_step, value, sampling_locations, attention_weights)
    shapes = spatial_shapes.tolist()
    return reference_multi_scale_deformable_attention(value, shapes, sampling_locations, attention_weights).contiguous()


def ms_deform_attn_backward(
    value, spatial_shapes, level_start_index, sampling_locations, attention_weights, grad_output,
    grad_value, grad_sampling_loc, grad_attn_weight, im2col_step
):
    targets = (grad_value, grad_sampling_loc, grad_attn_weight)
    inputs = (value, sampling_locations, attention_weights)
    check(spatial_shapes, level_start_index, im2col_step, *inputs, grad_output, *targets)
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output = reference_multi_scale_deformable_attention(leaves[0], spatial_shapes.tolist(), *leaves[1:])
        for target, grad in zip(targets, torch.autograd.grad(output, leaves, grad_output)):
            assert not target.any()  # the operator adds
            target.copy_(grad)
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, operators: str | None) -> None:
    """Writes an mmcv package, with or without its compiled module, and makes it the one that is found."""
    package = folder / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("")
    if operators is not None:
        (package / "_ext.py").write_text(operators)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def forget_mmcv():
    """Leaves no module of a stand-in (or of the real one) behind, before and after."""
    forget()
    yield
    forget()


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmcv"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def any_order(monkeypatch):
    """The environment of the tests may ask for a fixed order."""
    monkeypatch.delenv("CODETR_DETERMINISTIC", raising=False)


@pytest.fixture
def mmcv(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, OPERATORS)
    return importlib.import_module("mmcv._ext")


def make_inputs(numbers: int, batch: int = 2, queries: int = 5) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    value, sampling = random(batch, 14, 2, 3), 3 * random(batch, queries, 2, 2, 4, 2) - 1
    scores = random(batch, queries, 2, 2, 4)
    return value, random(batch, queries, 2, numbers) if numbers else None, sampling, scores


def exact(inputs, grad_output):
    leaves = [None if tensor is None else tensor.double().requires_grad_() for tensor in inputs]
    output = reference_forward(leaves[0], SHAPES, *leaves[1:], gather=False)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return output.detach(), torch.autograd.grad(output, wanted, grad_output.double())


@pytest.mark.parametrize("numbers", [0, 2, 4], ids=["classic", "points", "boxes"])
def test_equals_the_reference_with_all_gradients(mmcv, numbers):
    inputs = make_inputs(numbers)
    grad_output = torch.randn(2, 5, 6, dtype=torch.float64)
    output, grads = exact(inputs, grad_output)
    torch.testing.assert_close(deform_attn_mmcv.forward(inputs[0], SHAPES, *inputs[1:]), output, rtol=0, atol=1e-12)
    ours = deform_attn_mmcv.backward(grad_output, inputs[0], SHAPES, *inputs[1:], needs_reference=True)
    assert (ours[1] is None) == (numbers == 0)
    for got, expected in zip([grad for grad in ours if grad is not None], grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_reference_points_get_no_gradient_unless_asked_for(mmcv):
    inputs = make_inputs(4)
    grads = deform_attn_mmcv.backward(torch.ones(2, 5, 6), inputs[0], SHAPES, *inputs[1:], needs_reference=False)
    assert grads[1] is None
    assert grads[2].abs().sum() > 0


def test_mixed_half_precision_and_strides_reach_the_operator_as_dense_float32(mmcv):
    value, points, sampling, scores = make_inputs(2)
    value = value.half().transpose(1, 2).contiguous().transpose(1, 2)
    points, scores = points.float(), scores.bfloat16()
    sampling = torch.cat([sampling, sampling], 1).float()[:, ::2][:, :5]
    inputs = (value, points, sampling, scores)
    grad_output = torch.ones(1, 1, 1, dtype=torch.float16).expand(2, 5, 6)
    output, grads = exact(inputs, grad_output)
    ours = deform_attn_mmcv.forward(value, SHAPES, points, sampling, scores)
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours.double(), output, rtol=1e-3, atol=1e-3)
    ours = deform_attn_mmcv.backward(grad_output, value, SHAPES, points, sampling, scores, needs_reference=True)
    for got, expected, source in zip(ours, grads, inputs, strict=True):
        assert got.dtype == source.dtype
        torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("batch", "step"), [(1, 1), (3, 1), (96, 32)])
def test_images_of_one_launch_divide_the_batch(mmcv, batch, step):
    inputs = make_inputs(2, batch=batch, queries=1)
    deform_attn_mmcv.forward(inputs[0], SHAPES, *inputs[1:])
    assert mmcv.steps == [step]


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_nothing_to_do_never_reaches_the_operator(mmcv, batch, queries):
    inputs = make_inputs(4, batch=batch, queries=queries)
    assert deform_attn_mmcv.forward(inputs[0], SHAPES, *inputs[1:]).shape == (batch, queries, 6)
    grad_output = torch.ones(batch, queries, 6)
    grads = deform_attn_mmcv.backward(grad_output, inputs[0], SHAPES, *inputs[1:], needs_reference=True)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
    assert not any(grad.any() for grad in grads)
    assert mmcv.steps == []


def test_says_that_mmcv_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in deform_attn_mmcv.why_not(torch.device("cuda"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recognises_mmcv_without_operators_and_says_what_to_do(tmp_path, monkeypatch, device):
    install(tmp_path, monkeypatch, operators=None)
    reason = deform_attn_mmcv.why_not(torch.device(device))
    assert "mmcv._ext is missing" in reason
    assert "prebuilt" in reason


def test_runs_on_cuda_only(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, OPERATORS)
    assert "CUDA only" in deform_attn_mmcv.why_not(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA GPU" in deform_attn_mmcv.why_not(torch.device("cuda"))
    assert "mmcv" not in sys.modules, "asking must not import mmcv"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert deform_attn_mmcv.why_not(torch.device("cuda")) is None


def test_is_left_out_where_sums_need_a_fixed_order(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, OPERATORS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.use_deterministic_algorithms(True)
    try:
        assert "no fixed order" in deform_attn_mmcv.why_not(torch.device("cuda"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert deform_attn_mmcv.why_not(torch.device("cuda")) is None
    monkeypatch.setenv("CODETR_DETERMINISTIC", "1")
    assert "no fixed order" in deform_attn_mmcv.why_not(torch.device("cuda"))


@pytest.mark.parametrize(
    ("operators", "reason"),
    [("raise ImportError('undefined symbol: _ZN3c10')", "undefined symbol"), ("", "lack ms_deform_attn_forward")],
)
def test_recognises_operators_that_cannot_be_used(tmp_path, monkeypatch, operators, reason):
    install(tmp_path, monkeypatch, operators)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert reason in deform_attn_mmcv.why_not(torch.device("cuda"))
