"""Formulations of deformable attention for exported programs against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codetr_cli.ops import deform_attn_export as export
from codetr_cli.ops.deform_attn import fused_multi_scale_deformable_attention, multi_scale_deformable_attention
from codetr_cli.ops.deform_attn_torch import reference_multi_scale_deformable_attention

SHAPES = [(5, 7), (3, 4), (1, 1)]


def inputs(batch: int = 2, shapes: list[tuple[int, int]] = SHAPES) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations inside and far outside the maps, and weights; 2 heads of 8 channels, 6 queries, 4 points."""
    generator = torch.Generator().manual_seed(batch)
    tokens, levels = sum(height * width for height, width in shapes), len(shapes)
    value = torch.randn(batch, tokens, 2, 8, generator=generator)
    locations = 3 * torch.rand(batch, 6, 2, levels, 4, 2, generator=generator) - 1
    locations[0, 0, 0, 0, :, 0] = torch.tensor([1e12, -1e12, 0.0, 1.0])  # of cells: beyond int32, and on the border
    return value, locations, torch.rand(batch, 6, 2, levels, 4, generator=generator)


@pytest.mark.parametrize("formulation", [export.gather_rows, export.call_plugin])
@pytest.mark.parametrize("shapes", [SHAPES, [(1, 1)], [(1, 9), (9, 1)], [(16, 3)]])
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_to_the_reference(formulation, shapes, batch) -> None:
    value, locations, weights = inputs(batch, shapes)
    expected = reference_multi_scale_deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(formulation(value, shapes, locations, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formulation", [export.gather_rows, export.call_plugin])
def test_half_precision_values_are_summed_in_float32(formulation, dtype) -> None:
    value, locations, weights = inputs()
    value = value.to(dtype)
    expected = reference_multi_scale_deformable_attention(value.float(), SHAPES, locations, weights)
    result = formulation(value, SHAPES, locations, weights)
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected.to(dtype), rtol=0, atol=0.02)


def test_softmax_and_locations_of_half_precision_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(export, "gather_rows", lambda *arguments: seen.append([t.dtype for t in arguments[2:]]))
    value, locations, weights = inputs()
    references = torch.rand(2, 6, 3, 4)
    with export.use_formulation("gather"):
        export.forward(value.half(), SHAPES, references, locations.half(), weights.half())
    assert seen == [[torch.float32, torch.float32]]


class _Attention(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=self.backend)


def operators(backend: str) -> set[str]:
    program = torch.export.export(_Attention(backend), inputs(), strict=False)
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_programs_have_the_formulation_of_the_context() -> None:
    found = {}
    for name in export.FORMULATIONS:
        with export.use_formulation(name):
            found[name] = operators("auto")
    samplers = {"aten.grid_sampler.default", "aten.embedding.default", "codetr.deform_attn_plugin.default"}
    assert {name: samplers & names for name, names in found.items()} == {
        "gridsample": {"aten.grid_sampler.default"},
        "gather": {"aten.embedding.default"},
        "plugin": {"codetr.deform_attn_plugin.default"},
    }


def test_a_backend_that_is_asked_for_counts_more_than_the_context() -> None:
    with export.use_formulation("plugin"):
        assert "aten.grid_sampler.default" in operators("reference")


def test_the_context_does_not_change_what_runs_here() -> None:
    value, locations, weights = inputs()
    references = torch.rand(2, 6, 3, 4)
    expected = fused_multi_scale_deformable_attention(value, SHAPES, references, locations, weights)
    with export.use_formulation("plugin"):
        result = fused_multi_scale_deformable_attention(value, SHAPES, references, locations, weights)
    assert torch.equal(result, expected)
    assert export._formulation == "gridsample"


def test_the_operator_of_the_plugin_follows_the_rules_of_operators() -> None:
    value, locations, weights = inputs()
    shapes, starts = torch.tensor(SHAPES, dtype=torch.int32), torch.tensor([0, 35, 47], dtype=torch.int32)
    torch.library.opcheck(export.plugin_operator, (value, shapes, starts, locations, weights))
