"""Triton kernel of the deterministic backward: the gradient of the values, summed in a fixed order.

The backward kernel of `deform_attn_triton_kernels` writes what each sample gives, the host sorts the samples by cell,
and this kernel sums. Letters and names are those of that module.
"""

# ruff: noqa: N803 - capitals mark compile-time constants, as everywhere in Triton.
# mypy: disallow-untyped-decorators=False
# Of the annotations Triton reads only `tl.constexpr`; Triton 3.1's interpreter does not know it as a text, so no
# `from __future__ import annotations`.
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_base_cells", "num_samples"])
def ordered_value_kernel(
    grad_output: tl.tensor,
    levels: tl.tensor,
    bounds: tl.tensor,
    order: tl.tensor,
    shares: tl.tensor,
    grad_value: tl.tensor,
    num_base_cells: tl.tensor,
    num_samples: tl.tensor,
    output_query_stride: tl.tensor,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS_PAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Writes grad_value (S, N, D) of one image, each cell summed by one program in a fixed order. Grid: (S, N).

    A sample's base cell is the upper left one of the four it reads, (-1, -1) at the least. `order` lists the samples by
    base cell, `bounds` where each base cell's begin; a cell collects from the base cells up to one row and one column
    before it. Two neighbouring base cells of a row are one stretch of `order`.
    """
    token = tl.program_id(0)
    head = tl.program_id(1)
    channel = tl.arange(0, CHANNELS_PAD)
    has_channel = channel < CHANNELS
    width = tl.load(levels + 1)
    start = tl.load(levels + 2)
    base = tl.load(levels + 3)
    for level in range(1, LEVELS):
        begins = tl.load(levels + level * 4 + 2)
        here = token >= begins
        width = tl.where(here, tl.load(levels + level * 4 + 1), width)
        base = tl.where(here, tl.load(levels + level * 4 + 3), base)
        start = tl.where(here, begins, start)
    row = (token - start) // width
    column = (token - start) % width
    sums = tl.zeros((CHANNELS_PAD,), dtype=ACC)
    for down in tl.static_range(2):
        cell = head * num_base_cells + base + (row + down) * (width + 1) + column
        first = tl.load(bounds + cell)
        middle = tl.load(bounds + cell + 1)
        end = tl.load(bounds + cell + 2)
        begin = first
        while begin < end:
            slot = begin + tl.arange(0, BLOCK)
            present = slot < end
            sample = tl.load(order + slot, mask=present, other=0)
            weight = tl.load(shares + sample, mask=present, other=0.0)
            share_x = tl.load(shares + num_samples + sample, mask=present, other=0.0)
            share_y = tl.load(shares + num_samples + num_samples + sample, mask=present, other=0.0)
            # The row above and the column before have this cell as their lower and right corner.
            weight *= tl.where(slot < middle, share_x, 1.0 - share_x)
            weight *= share_y if down == 0 else 1.0 - share_y
            query = sample // (HEADS * LEVELS * POINTS)
            grad = tl.load(
                grad_output + query[:, None] * output_query_stride + head * CHANNELS + channel[None, :],
                mask=present[:, None] & has_channel[None, :],
                other=0.0,
            ).to(ACC)
            sums += tl.sum(grad * weight[:, None], axis=0)
            begin += BLOCK
    rows = (token.to(tl.int64) * HEADS + head) * CHANNELS
    tl.store(grad_value + rows + channel, sums.to(grad_value.dtype.element_ty), mask=has_channel)
