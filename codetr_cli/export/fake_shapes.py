"""Shapes of what a program computes, which torch.export asks for at every operator and in every pass over the program.

A third of the time of an export for any size went into two things that nothing needs: the cache of torch's fake
tensors, which builds each entry twice and seldom finds one where sizes are symbols, and the arithmetic of a bilinear
sampler, operator by operator, for the shape of its result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def quick_shapes() -> Iterator[None]:
    """Inside, torch finds the shapes of results in less time; the programs are the same."""
    from torch._decomp import decomposition_table

    config = torch._dynamo.config
    has_cache = hasattr(config, "fake_tensor_cache_enabled")  # since torch 2.2; no release need keep the name
    operator = torch.ops.aten.grid_sampler_2d.default
    before = decomposition_table.get(operator)
    if before is not None:  # else torch has a function for its shape
        decomposition_table[operator] = _sampled
    try:
        with config.patch(fake_tensor_cache_enabled=False) if has_cache else contextlib.nullcontext():
            yield
    finally:
        if before is not None:
            decomposition_table[operator] = before


def _sampled(images: Tensor, grid: Tensor, *options: object, **named: object) -> Tensor:
    """A result of `grid_sampler_2d` without its values: (B, C, H, W) for images (B, C, ...) and a grid (B, H, W, 2)."""
    return images.new_empty(images.shape[0], images.shape[1], grid.shape[1], grid.shape[2])
