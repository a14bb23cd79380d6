"""Multi-scale deformable attention by the CUDA operator of mmcv, for users who have mmcv with compiled operators.

Calls the two functions that `mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction` calls. They take
locations and weights, so softmax and location arithmetic happen in PyTorch before, and their gradients after. All
tensors get one dtype: float64 if one has it, else float32, because half-precision locations would move samples by whole
cells on large maps. The operator adds gradients of `value` atomically, in no fixed order.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence
from importlib.machinery import PathFinder
from types import ModuleType

import torch
from torch import Tensor

from codetr_cli.ops.deform_attn_torch import place_samples, wants_fixed_order

FUNCTIONS = ("ms_deform_attn_forward", "ms_deform_attn_backward")


def why_not(device: torch.device) -> str | None:
    """The reason why mmcv's operator cannot run on `device`, one sentence; None if it can."""
    package = importlib.util.find_spec("mmcv")
    if package is None:
        return "mmcv is not installed (it is optional; its operators run on CUDA only)."
    # Found without importing mmcv, which is slow and can fail.
    if PathFinder.find_spec("mmcv._ext", package.submodule_search_locations) is None:
        return (
            "mmcv is installed without its compiled operators (mmcv._ext is missing, as happens when pip builds it "
            "without CUDA at hand), so it offers nothing faster: install a prebuilt mmcv wheel that matches your torch "
            "and CUDA, or use another backend."
        )
    if device.type != "cuda":
        return f"mmcv has no deformable attention kernel for the device {device.type}: it runs on CUDA only."
    if wants_fixed_order():
        return (
            "mmcv's operator adds gradients in no fixed order, and deterministic algorithms are enabled "
            "(torch.use_deterministic_algorithms, or CODETR_DETERMINISTIC=1)."
        )
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU on this machine."
    try:
        operators = _operators()
    except Exception as error:  # operators built for another torch fail to load in many ways
        return f"mmcv's compiled operators cannot be loaded; they may have been built for another torch ({error})."
    missing = [name for name in FUNCTIONS if not hasattr(operators, name)]
    return f"mmcv's compiled operators lack {' and '.join(missing)}; a newer mmcv has them." if missing else None


def forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
) -> Tensor:
    """Samples and sums. Inputs come checked, in any floating dtypes and with any strides.

    Args:
        value: (B, S, N, D).
        spatial_shapes: (H, W) of each level.
        reference_points: (B, Q, L, 2) or (B, Q, L, 4) as (cx, cy, w, h), normalised; None for the unfused operator.
        sampling: (B, Q, N, L, P, 2), raw offsets; the unfused operator's normalised locations.
        scores: (B, Q, N, L, P), logits; the unfused operator's weights.

    Returns:
        (B, Q, N * D), the dtype of `value`.
    """
    batch, _, heads, channels = value.shape
    if value.shape[0] * sampling.shape[1] == 0:
        return value.new_empty(batch, sampling.shape[1], heads * channels)
    dtype = _arithmetic(value, reference_points, sampling, scores)
    locations, weights = sampling.to(dtype), scores.to(dtype)
    with torch.no_grad():
        if reference_points is not None:
            locations, weights = place_samples(spatial_shapes, reference_points.to(dtype), locations, weights)
        output = _operators().ms_deform_attn_forward(
            value.to(dtype).contiguous(),
            *_tables(tuple(spatial_shapes), value.device),
            locations.contiguous(),
            weights.contiguous(),
            im2col_step=_step(batch),
        )
    return output.view(batch, -1, heads * channels).to(value.dtype)


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    *,
    needs_reference: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of everything `forward` takes, in the dtypes of the inputs.

    Args:
        grad_output: (B, Q, N * D).
        value: as for `forward`, like the next four.
        spatial_shapes: as for `forward`.
        reference_points: as for `forward`.
        sampling: as for `forward`.
        scores: as for `forward`.
        needs_reference: whether the gradient of the reference points is wanted.

    Returns:
        Gradients of `value`, `reference_points` (None unless wanted and given), `sampling` and `scores`.
    """
    dtype = _arithmetic(value, reference_points, sampling, scores)
    raw, logits = (tensor.detach().to(dtype).requires_grad_() for tensor in (sampling, scores))
    points = None if reference_points is None else reference_points.detach().to(dtype).requires_grad_(needs_reference)
    locations, weights = raw, logits
    with torch.enable_grad():
        if points is not None:
            locations, weights = place_samples(spatial_shapes, points, raw, logits)
    inputs = [tensor.detach().to(dtype).contiguous() for tensor in (value, locations, weights)]
    grads = [torch.zeros_like(tensor) for tensor in inputs]
    if value.shape[0] * sampling.shape[1] > 0:
        _operators().ms_deform_attn_backward(
            inputs[0],
            *_tables(tuple(spatial_shapes), value.device),
            *inputs[1:],
            grad_output.to(dtype).contiguous(),
            *grads,
            im2col_step=_step(value.shape[0]),
        )
    grad_value, grad_raw, grad_logits = grads
    grad_reference = None
    if points is not None and reference_points is not None:
        wanted = [raw, logits, points] if needs_reference else [raw, logits]
        grad_raw, grad_logits, *rest = torch.autograd.grad([locations, weights], wanted, grads[1:])
        grad_reference = rest[0].to(reference_points.dtype) if rest else None
    return grad_value.to(value.dtype), grad_reference, grad_raw.to(sampling.dtype), grad_logits.to(scores.dtype)


def _operators() -> ModuleType:
    return importlib.import_module("mmcv._ext")


def _arithmetic(*tensors: Tensor | None) -> torch.dtype:
    """One dtype for all, because the operator reads every tensor with that of `value`."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


@functools.lru_cache(maxsize=1024)
def _tables(spatial_shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Heights and widths (L, 2) and first tokens (L,) of the levels, int64 on the device."""
    starts = [0]
    for height, width in spatial_shapes[:-1]:
        starts.append(starts[-1] + height * width)
    with torch.inference_mode(False):
        return torch.tensor(spatial_shapes, device=device), torch.tensor(starts, device=device)


def _step(batch: int) -> int:
    """Images of one kernel launch, which must divide the batch."""
    return math.gcd(batch, 64)
