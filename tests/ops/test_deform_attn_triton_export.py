"""The Triton kernel in exported programs: what is traced for a GPU, without one."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

from codetr_cli.ops import deform_attn
from codetr_cli.ops import deform_attn_triton_tuning as tuning

GPUTarget = pytest.importorskip("triton.backends.compiler").GPUTarget
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

deform_attn_triton_export = pytest.importorskip("codetr_cli.ops.deform_attn_triton_export")

SHAPES = [(4, 4), (2, 2)]


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    """Programs are traced as for an H100."""
    driver = pytest.importorskip("triton.runtime").driver
    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_benchmarker=lambda: None,
    )
    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", target)  # Triton 3.3: the latter
    monkeypatch.setattr(tuning, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(deform_attn, "_choose", lambda backend, device, exporting: "triton")


class Attention(nn.Module):
    def forward(self, value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> tuple[Tensor]:
        return (deform_attn.fused_multi_scale_deformable_attention(value, SHAPES, references, offsets, logits),)


class Classic(nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor]:
        return (deform_attn.multi_scale_deformable_attention(value, SHAPES, locations, weights),)


def fake_inputs(queries: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Value, reference points, offsets and logits that claim to be on a GPU."""
    with FakeTensorMode():
        value, sampling = torch.empty(2, 20, 8, 32, dtype=dtype), torch.empty(2, queries, 8, 2, 4, 2)
        tensors = (value, torch.empty(2, queries, 2, 2), sampling, torch.empty(2, queries, 8, 2, 4))
        return tuple(tensor.to("cuda:0") for tensor in tensors)


def traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    batch = Dim("batch", min=1, max=128)
    return torch.export.export(module, inputs, dynamic_shapes=[{0: batch}] * len(inputs), strict=False)


def launches(program: ExportedProgram) -> list[dict[str, Any]]:
    """What AOTInductor sees of the kernel: its grid, arguments, constants and warps."""
    from torch._functorch.aot_autograd import aot_export_module
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_functional

    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    with torch.no_grad(), inputs[0].fake_mode:
        module, _ = aot_export_module(program.module(), inputs, trace_joint=False)
    found = []
    for node in module.graph.nodes:
        if node.target is triton_kernel_wrapper_functional:
            kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            constants = kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])
            found.append({**node.kwargs, "autotuner": kernel, "constants": constants})
    return found


def operator_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target is torch.ops.codetr.deform_attn_triton.default]


@pytest.mark.parametrize(("queries", "candidate"), [(20, "4x8w4+clamped"), (6, "1x8w4")], ids=["encoder", "decoder"])
def test_a_program_calls_the_operator_in_the_form_of_the_architecture(queries, candidate):
    (node,) = operator_nodes(traced(Attention(), fake_inputs(queries)))
    value, flat_shapes, references, *_, form = node.args
    assert (str(value), flat_shapes, str(references), form) == ("value", [4, 4, 2, 2], "references", candidate)
    assert node.meta["val"].device.type == "cuda"
    assert node.meta["val"].shape[1:] == (queries, 256)


def test_without_reference_points():
    inputs = fake_inputs(6)
    (node,) = operator_nodes(traced(Classic(), (inputs[0], *inputs[2:])))
    assert node.args[2] is None


def test_the_environment_chooses_the_form(monkeypatch):
    monkeypatch.setenv(tuning.VARIABLE, "2x4w1")
    (node,) = operator_nodes(traced(Attention(), fake_inputs(20)))
    assert node.args[-1] == "2x4w1"


def test_half_precision_is_kept():
    (node,) = operator_nodes(traced(Attention(), fake_inputs(6, torch.float16)))
    assert node.meta["val"].dtype == torch.float16


def test_a_compiler_sees_the_kernel_with_its_launch():
    (launch,) = launches(traced(Attention(), fake_inputs(20)))
    arguments = launch["kwargs"]
    (grid,) = launch["grid"]
    assert grid[:2] == (2, 8), "tiles of 4 x 8 queries on both levels, heads"
    assert isinstance(grid[2], torch.fx.Node), "images: their number may vary"
    assert arguments["queries"] == 20
    assert (arguments["value_token_stride"], arguments["value_head_stride"]) == (256, 32)
    constants = {**arguments, **launch["constants"]}
    assert (constants["BLOCK_Q"], constants["TILE_ROWS"], constants["CLAMPED"]) == (32, 4, True)
    assert (str(constants["ACC"]), str(constants["INDEX"])) == ("fp32", "int32")
    (config,) = launch["autotuner"].configs
    assert (config.num_warps, config.num_stages) == (4, 1), "one form: nothing is measured"


def test_the_level_table_is_arithmetic_of_the_program():
    call = SimpleNamespace(value=torch.zeros(1), spatial_shapes=tuple(SHAPES))
    table = deform_attn_triton_export._level_table(call)
    assert table.dtype == torch.int32
    assert table.tolist() == [[4, 4, 0, 0], [2, 2, 16, 25]]
