"""Multi-scale deformable attention: the only interface between the network and the kernels.

The operator of Deformable DETR (arXiv 2010.04159, Eq. 2 and 3) after its linear projections: every query samples each
level at a few points, bilinearly with zeros outside the map, and sums the samples by weight.
`mmcv.ops.multi_scale_deform_attn` has the same definition. Callers never branch on hardware: they call one of the two
entries. Kernels are reached through `torch.library` operators, so that torch.compile, torch.export and activation
checkpointing see one operator with shapes and gradients, and only the inputs are kept for the backward pass.

A compiled function keeps the backend that was chosen when it was traced. Gradients of gradients are not supported.

Autocast has no rule for the operators on purpose: values keep the half precision that autocast gave them, positions
keep their own, and every backend sums in float32.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codetr_cli.ops import deform_attn_export, deform_attn_torch
from codetr_cli.ops.deform_attn_backends import (
    BACKENDS,
    COMPILED,
    CPU_SAMPLES,
    active_backend,
    available_backends,
    backend_module,
    choose_backend,
    is_forced,
    use_backend,
)
from codetr_cli.ops.deform_attn_torch import (
    reference_fused_multi_scale_deformable_attention,
    reference_multi_scale_deformable_attention,
)
from codetr_cli.tracing import is_exporting

__all__ = [
    "BACKENDS",
    "active_backend",
    "available_backends",
    "fused_multi_scale_deformable_attention",
    "multi_scale_deformable_attention",
    "reference_fused_multi_scale_deformable_attention",
    "reference_multi_scale_deformable_attention",
    "use_backend",
]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Samples every level of `value` at the given locations and sums by weight.

    Args:
        value: (B, S, N, D), the levels' tokens in row-major order, one level after the other.
        spatial_shapes: (H, W) of each level; their areas add up to S.
        sampling_locations: (B, Q, N, L, P, 2) as (x, y) in units of the map's size: [0, 1] covers the map, values
            outside read zeros.
        attention_weights: (B, Q, N, L, P), summing to 1 over levels and points as the caller's softmax leaves them.
        backend: "auto" or one of `BACKENDS`.

    Returns:
        (B, Q, N * D), the dtype of `value`.

    Raises:
        ValueError: shapes, dtypes or devices that contradict each other, with the argument's name.
        ResourceError: a backend was asked for that cannot run here.
    """
    _check(value, spatial_shapes, None, sampling_locations, attention_weights, "sampling_locations attention_weights")
    return _dispatch(value, spatial_shapes, None, sampling_locations, attention_weights, backend)


def fused_multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """The same from what the projections give: softmax and the arithmetic of locations happen in the kernel.

    Args:
        value: (B, S, N, D), the levels' tokens in row-major order, one level after the other.
        spatial_shapes: (H, W) of each level; their areas add up to S.
        reference_points: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh boxes, normalised.
        sampling_offsets: (B, Q, N, L, P, 2) raw: in cells of the level around points, in half sides over P around the
            centres of boxes.
        attention_logits: (B, Q, N, L, P), softmaxed over levels and points together.
        backend: "auto" or one of `BACKENDS`.

    Returns:
        (B, Q, N * D), the dtype of `value`.

    Raises:
        ValueError: shapes, dtypes or devices that contradict each other, with the argument's name.
        ResourceError: a backend was asked for that cannot run here.
    """
    names = "sampling_offsets attention_logits"
    _check(value, spatial_shapes, reference_points, sampling_offsets, attention_logits, names)
    return _dispatch(value, spatial_shapes, reference_points, sampling_offsets, attention_logits, backend)


def _dispatch(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    backend: str,
) -> Tensor:
    name = _choose(backend, value.device, is_exporting())
    if name == "cpu" and scores.shape[3] * scores.shape[4] > CPU_SAMPLES:
        name = "torch"
    if name == "triton" and is_exporting():
        return backend_module("triton_export").forward(value, spatial_shapes, reference_points, sampling, scores)
    if name in COMPILED:
        flat_shapes = [side for shape in spatial_shapes for side in shape]
        return _forward_operator(value, flat_shapes, reference_points, sampling, scores, name)
    if is_exporting() and backend == "auto":
        return deform_attn_export.forward(value, spatial_shapes, reference_points, sampling, scores)
    gather = name == "torch"
    return deform_attn_torch.forward(value, spatial_shapes, reference_points, sampling, scores, gather=gather)


def _choose(backend: str, device: torch.device, exporting: bool) -> str:
    # An exported program must run without the kernels of this package: it uses plain PyTorch, unless requested.
    if backend == "auto" and exporting and not is_forced():
        return "reference"
    return choose_backend(backend, device)


# Same as torch.compiler.assume_constant_result, without importing the compiler in every process (1 s).
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op("codetr::deform_attn", mutates_args=())
def _forward_operator(
    value: Tensor,
    flat_shapes: Sequence[int],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    backend: str,
) -> Tensor:
    return backend_module(backend).forward(value, _pairs(flat_shapes), reference_points, sampling, scores)


@_forward_operator.register_fake
def _(
    value: Tensor,
    flat_shapes: Sequence[int],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    backend: str,
) -> Tensor:
    return value.new_empty(value.shape[0], sampling.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("codetr::deform_attn_backward", mutates_args=())
def _backward_operator(
    grad_output: Tensor,
    value: Tensor,
    flat_shapes: Sequence[int],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    backend: str,
    needs_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_value, grad_reference, grad_sampling, grad_scores = backend_module(backend).backward(
        grad_output, value, _pairs(flat_shapes), reference_points, sampling, scores, needs_reference=needs_reference
    )
    if grad_reference is None:  # an operator returns tensors only
        grad_reference = value.new_empty(0)
    return grad_value, grad_reference, grad_sampling, grad_scores


@_backward_operator.register_fake
def _(
    grad_output: Tensor,
    value: Tensor,
    flat_shapes: Sequence[int],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    backend: str,
    needs_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = needs_reference and reference_points is not None
    grad_reference = _empty_like(reference_points) if wanted and reference_points is not None else None
    return (
        _empty_like(value),
        value.new_empty(0) if grad_reference is None else grad_reference,
        _empty_like(sampling),
        _empty_like(scores),
    )


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.flat_shapes, reference_points, sampling, scores, ctx.backend = inputs
    ctx.save_for_backward(value, reference_points, sampling, scores)


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, reference_points, sampling, scores = ctx.saved_tensors
    needs_reference = ctx.needs_input_grad[2]
    grad_value, grad_reference, grad_sampling, grad_scores = _backward_operator(
        grad_output, value, ctx.flat_shapes, reference_points, sampling, scores, ctx.backend, needs_reference
    )
    return grad_value, None, grad_reference if needs_reference else None, grad_sampling, grad_scores, None


_forward_operator.register_autograd(_differentiate, setup_context=_keep_inputs)


def _pairs(flat_shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat_shapes[::2], flat_shapes[1::2], strict=True))


# --------------------------------------------------------------------------------------------------------------- checks


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    names: str,
) -> None:
    """Rejects wrong shapes, dtypes and devices, which kernels do not check."""
    sampling_name, scores_name = names.split()
    tensors = {"value": value, sampling_name: sampling, scores_name: scores}
    if reference_points is not None:
        tensors["reference_points"] = reference_points
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} must be a floating point tensor of 16, 32 or 64 bits, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device} but value is on {value.device}")
    if value.dim() != 4:
        raise ValueError(f"value must have shape (B, S, N, D), got {tuple(value.shape)}")
    batch, tokens, heads, _ = value.shape
    if any(not _is_size(shape) for shape in spatial_shapes):
        raise ValueError(
            f"spatial_shapes must be whole (H, W) of at least 1 x 1 for each level, got {list(spatial_shapes)}"
        )
    total = sum(height * width for height, width in spatial_shapes)
    if total != tokens:
        raise ValueError(f"value has {tokens} tokens but spatial_shapes {list(spatial_shapes)} have {total} cells")
    if sampling.dim() != 6 or sampling.shape[-1] != 2:
        raise ValueError(f"{sampling_name} must have shape (B, Q, N, L, P, 2), got {tuple(sampling.shape)}")
    if (sampling.shape[0], *sampling.shape[2:4]) != (batch, heads, len(spatial_shapes)) or sampling.shape[4] < 1:
        raise ValueError(
            f"{sampling_name} {tuple(sampling.shape)} do not fit value {tuple(value.shape)} and "
            f"{len(spatial_shapes)} levels"
        )
    if scores.shape != sampling.shape[:-1]:
        raise ValueError(f"{scores_name} {tuple(scores.shape)} do not fit {sampling_name} {tuple(sampling.shape)}")
    if reference_points is not None:
        expected = (batch, sampling.shape[1], len(spatial_shapes))
        if reference_points.shape[:-1] != expected or reference_points.shape[-1] not in (2, 4):
            raise ValueError(
                f"reference_points must have shape {(*expected, 2)} or {(*expected, 4)}, "
                f"got {tuple(reference_points.shape)}"
            )


def _is_size(shape: Any) -> bool:
    whole = (int, torch.SymInt)
    return isinstance(shape, Sequence) and len(shape) == 2 and all(isinstance(n, whole) and n >= 1 for n in shape)
