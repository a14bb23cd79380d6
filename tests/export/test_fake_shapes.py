"""Shapes that are found in less time are the same shapes, and the programs are the same programs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

from codetr_cli.export.fake_shapes import quick_shapes

SAMPLER = torch.ops.aten.grid_sampler_2d.default


class Sampled(nn.Module):
    def forward(self, images: Tensor, grid: Tensor) -> Tensor:
        return 2 * nn.functional.grid_sample(images, grid, align_corners=False).flatten(2).mean(-1)


def program() -> ExportedProgram:
    size = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    shapes = ({0: Dim("batch", max=8), **size}, {0: Dim("batch", max=8), 1: Dim.DYNAMIC})
    given = torch.randn(2, 3, 16, 24), torch.rand(2, 5, 7, 2)
    return torch.export.export(Sampled(), given, dynamic_shapes=shapes, strict=False)


def test_the_program_is_the_same() -> None:
    with quick_shapes():
        ours = program()
    expected = program()
    assert str(ours.graph) == str(expected.graph)
    assert [str(limits) for limits in ours.range_constraints.values()] == [
        str(limits) for limits in expected.range_constraints.values()
    ]
    given = torch.randn(3, 3, 20, 9), torch.rand(3, 4, 7, 2)
    assert torch.equal(ours.module()(*given), expected.module()(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_sampled_has_the_layout_that_torch_gives_it(dtype: torch.dtype, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with FakeTensorMode():
        images = torch.empty(2, 3, 8, 9, dtype=dtype).contiguous(memory_format=layout)
        arguments = images, torch.empty(2, 5, 7, 2, dtype=dtype), 0, 0, False
        expected = decomposition_table[SAMPLER](*arguments)
        with quick_shapes():
            found = decomposition_table[SAMPLER](*arguments)
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())


def test_afterwards_torch_is_as_before() -> None:
    before = decomposition_table[SAMPLER]
    assert torch._dynamo.config.fake_tensor_cache_enabled
    with quick_shapes():
        assert not torch._dynamo.config.fake_tensor_cache_enabled
        assert decomposition_table[SAMPLER] is not before
    assert decomposition_table[SAMPLER] is before
    assert torch._dynamo.config.fake_tensor_cache_enabled


def test_after_an_error_torch_is_as_before() -> None:
    before = decomposition_table[SAMPLER]
    with pytest.raises(KeyError), quick_shapes():
        raise KeyError
    assert decomposition_table[SAMPLER] is before
    assert torch._dynamo.config.fake_tensor_cache_enabled


def test_a_torch_without_the_cache_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo, "config", object())
    before = decomposition_table[SAMPLER]
    with quick_shapes():
        assert decomposition_table[SAMPLER] is not before
