"""The Triton kernel as a part of exported programs, which AOTInductor compiles for a GPU together with the rest.

`torch.library.triton_op` shows the launch to the compiler: a package has the compiled kernel, and needs neither this
module, nor Triton, nor a compiler. Forward only. The form of the kernel is chosen when the program is traced.

Imported only to export, because importing Triton is slow and may be impossible.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from codetr_cli.ops import deform_attn_triton_tuning as tuning
from codetr_cli.ops.deform_attn_triton import Call, level_rows
from codetr_cli.ops.deform_attn_triton_kernels import forward_kernel


def forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
) -> Tensor:
    """One node of the program; arguments and result as for every backend's `forward`."""
    call = Call.of(value, spatial_shapes, reference_points, sampling, scores)
    flat_shapes = [side for shape in spatial_shapes for side in shape]
    return forward_operator(value, flat_shapes, reference_points, sampling, scores, str(choose(call)))


def choose(call: Call) -> tuning.Candidate:
    """The candidate that the environment forces, else the one for the GPU's architecture.

    None is measured: sizes of exported programs may vary.
    """
    problem = tuning.Problem(
        kernel="forward",
        device=call.value.device,
        query_class=0,
        is_grid=bool(call.queries == call.tokens),
        dtypes=(),
        constants=tuple((name, call.constants[name]) for name in ("CHANNELS_PAD", "POINTS_PAD", "TERMS_PAD")),
    )
    forced = tuning.forced_candidate()
    return problem.shipped() if forced is None else problem.adapted(forced)


@triton_op("codetr::deform_attn_triton", mutates_args=())
def forward_operator(
    value: Tensor,
    flat_shapes: Sequence[int],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    candidate: str,
) -> Tensor:
    """As `deform_attn_triton.forward`, in a given form.

    Args:
        value: (B, S, N, D), like all tensors with any floating dtype and strides.
        flat_shapes: height and width of each level.
        reference_points: (B, Q, L, 2 or 4), or None.
        sampling: (B, Q, N, L, P, 2).
        scores: (B, Q, N, L, P).
        candidate: name of a `Candidate`.

    Returns:
        (B, Q, N * D), the dtype of `value`.
    """
    shapes = list(zip(flat_shapes[::2], flat_shapes[1::2], strict=True))
    call = Call.of(value, shapes, reference_points, sampling, scores)
    chosen = tuning.Candidate.parse(candidate)
    output = value.new_empty(call.batch, call.queries, call.heads * call.channels)
    grid = chosen.programs(call.queries, call.spatial_shapes), call.heads, call.batch
    wrap_triton(forward_kernel)[grid](
        call.value,
        _level_table(call),
        call.reference,
        call.sampling,
        call.scores,
        output,
        call.queries,
        *call.strides,
        **call.constants,
        **chosen.constants,
        num_warps=chosen.warps,
        num_stages=1,
    )
    return output


def _level_table(call: Call) -> Tensor:
    """The table (L, 4) as arithmetic of the program: sizes may vary, and a copy from the host would wait."""
    like = call.value.new_empty(0, dtype=torch.int32)
    rows = [torch.stack([like.new_full((), number) for number in row]) for row in level_rows(call.spatial_shapes)]
    return torch.stack(rows)
