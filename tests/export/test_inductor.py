"""Strides that are expanded are the strides that inductor finds itself, and afterwards inductor is as before."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch._inductor import decomposition, sizevars
from torch._inductor.codegen import cpp
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from codetr_cli.export.inductor import expanded_strides, quick_compilation

SAMPLER = torch.ops.aten.grid_sampler_2d.default
HEIGHT, WIDTH = sympy.symbols("s0 s1", integer=True, positive=True)
ROW, COLUMN = sympy.symbols("d0 d1", integer=True, nonnegative=True)
CELLS = (FloorDiv(WIDTH - 1, 4) + 1) * (FloorDiv(HEIGHT - 1, 4) + 1)
"""Of a level, for images of any size."""
INDICES = {
    "contiguous": ROW * CELLS + COLUMN,
    "product": (ROW + 3) * (CELLS + WIDTH) + 2 * COLUMN,
    "quotient": (COLUMN + ROW * CELLS) * CELLS - ROW * CELLS**2,
    "divided": FloorDiv(COLUMN, 16 * WIDTH) * WIDTH + ModularIndexing(COLUMN, 1, 16 * WIDTH),
}


@pytest.mark.parametrize("variable", [ROW, COLUMN])
@pytest.mark.parametrize("name", INDICES)
def test_the_strides_are_the_same(monkeypatch: pytest.MonkeyPatch, name: str, variable: sympy.Symbol) -> None:
    expected = cpp.stride_at_vec_range(INDICES[name], variable, 16)
    for module in (cpp, sizevars):
        for function in ("stride_at", "simplify_index_in_vec_range", "stride_at_vec_range"):
            if hasattr(module, function):
                getattr(module, function).cache_clear()
    with expanded_strides():
        monkeypatch.setattr(sympy, "simplify", lambda expression: pytest.fail("it takes minutes"))
        found = cpp.stride_at_vec_range(INDICES[name], variable, 16)
    assert (found.is_number, found in (0, 1)) == (expected.is_number, expected in (0, 1))
    assert sympy.expand(found - expected) == 0


def test_conditions_are_simplified() -> None:
    condition = sympy.And(HEIGHT > WIDTH, sympy.true)
    with expanded_strides():
        assert sizevars.sympy.simplify(condition) == sympy.simplify(condition)
        assert sizevars.sympy.Expr is sympy.Expr


def fail_inside() -> None:
    with quick_compilation():
        assert SAMPLER not in decomposition.decompositions
        assert sizevars.sympy is not sympy
        raise KeyError


def test_after_an_error_inductor_is_as_before() -> None:
    before = decomposition.decompositions.get(SAMPLER)
    with pytest.raises(KeyError):
        fail_inside()
    assert decomposition.decompositions.get(SAMPLER) is before
    assert sizevars.sympy is sympy
    assert cpp.sympy is sympy
