"""What inductor does otherwise for the programs of codetr: the same values, compiled in minutes where sizes vary."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator

import torch

from codetr_cli.export.fake_shapes import quick_shapes


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Inside, AOTInductor compiles for CPUs in less time, and programs for any size in minutes at all."""
    with quick_shapes(), own_grid_sampler(), expanded_strides():
        yield


@contextlib.contextmanager
def own_grid_sampler() -> Iterator[None]:
    """Has compiled programs call torch's own grid sampler, which is vectorised.

    Inductor would write it out as arithmetic, which it fuses with everything around it: minutes of compilation for
    code that reads one number at a time.
    """
    from torch._inductor import decomposition, lowering

    operator = torch.ops.aten.grid_sampler_2d.default
    before = decomposition.decompositions.pop(operator, None)
    decomposition.fast_random_decomps.cache_clear()  # a copy of the table
    # Else inductor does it, and refuses to where CI is in the environment.
    lowering.make_fallback(operator, warn=False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if before is not None:
            decomposition.decompositions[operator] = before
        decomposition.fast_random_decomps.cache_clear()


@contextlib.contextmanager
def expanded_strides() -> Iterator[None]:
    """Has inductor expand the strides of a loop, where it would simplify them.

    It looks for loops to vectorise, and asks whether a stride is 0, 1 or another number. Polynomials in the sizes need
    no more than their expansion for this; the heuristics of `sympy.simplify` take minutes for them.
    """
    import sympy
    from torch._inductor import sizevars
    from torch._inductor.codegen import cpp  # has the functions before torch moved them to `sizevars`

    def expanded(expression: sympy.Basic) -> sympy.Basic:
        # A condition has no expansion.
        return sympy.expand(expression) if isinstance(expression, sympy.Expr) else sympy.simplify(expression)

    expanding = types.ModuleType("sympy")
    expanding.__dict__.update(vars(sympy), simplify=expanded)
    modules = (cpp, sizevars)
    for module in modules:
        module.__dict__["sympy"] = expanding
    try:
        yield
    finally:
        for module in modules:
            module.__dict__["sympy"] = sympy
