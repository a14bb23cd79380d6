"""The CPU backend of multi-scale deformable attention: hands tensors to the compiled kernel of deform_attn.c.

The library is opened by path with ctypes, so it fits every version of Python and torch. Threads are torch's setting:
the kernel hands out tasks itself, and ctypes lets go of Python's lock while it works.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from codetr_cli.ops.compile_kernel import LIBRARY, source_digest

MAX_SAMPLES = 128
"""Most levels * points of the kernel's buffers (MAX_SAMPLES in deform_attn.c)."""

SAMPLES_PER_THREAD = 20_000
"""Below this many samples a thread, waking it costs more than it saves."""

NAMES = {torch.float32: "float", torch.float64: "double"}


class _Problem(ctypes.Structure):
    """`Problem` of deform_attn.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "value", "reference", "sampling", "scores", "grad_output", "output", "grad_value", "grad_sampling",
            "grad_scores", "grad_pixels", "shapes",
        )),
        *((name, ctypes.c_int64) for name in (
            "batch", "tokens", "heads", "channels", "queries", "levels", "points", "reference_size",
            "value_stride", "heads_at_once",
            "next_task",
        )),
    )  # fmt: skip


def why_not(device_type: str) -> str | None:
    """One sentence why this backend cannot run on `device_type`, None when it can."""
    if device_type != "cpu":
        return f"The compiled kernel runs on CPUs, not on {device_type}."
    try:
        _library()
    except OSError as error:
        return str(error)
    return None


def instruction_set() -> str:
    """The instruction set that the kernel uses here: "avx512", "avx2" or "base", the compiler's default.

    Raises:
        OSError: the library cannot be used; the text says why.
    """
    return str(ctypes.string_at(_library().codetr_instruction_set()), "ascii")


def forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
) -> Tensor:
    """Samples and sums.

    Args:
        value: (B, S, N, D).
        spatial_shapes: (H, W) of each level.
        reference_points: (B, Q, L, 2) or (B, Q, L, 4); None: locations and weights are given.
        sampling: (B, Q, N, L, P, 2) raw offsets, or locations.
        scores: (B, Q, N, L, P) logits, or weights.

    Returns:
        (B, Q, N * D) in the dtype of `value`; half precision is summed in float32.
    """
    dtype = _working_dtype(value, reference_points, sampling)
    batch, queries, heads = sampling.shape[:3]
    output = torch.empty(batch, queries, heads * value.shape[3], dtype=dtype)
    points = None if reference_points is None else _plain(reference_points, dtype)
    inputs = _rows(value, dtype), points, _plain(sampling, dtype), _plain(scores, dtype)
    _run("forward", _describe(spatial_shapes, *inputs), dtype, output=output)
    return output.to(value.dtype)


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
    """Gradients of value, reference points (None unless asked for), sampling and scores; arguments as in `forward`."""
    dtype = _working_dtype(value, reference_points, sampling)
    points = None if reference_points is None else _plain(reference_points, dtype)
    rows, places, marks = _plain(value, dtype), _plain(sampling, dtype), _plain(scores, dtype)
    grad_value, grad_sampling, grad_scores = (
        torch.zeros_like(value, dtype=dtype, memory_format=torch.contiguous_format),
        torch.empty_like(places),
        torch.empty_like(marks),
    )
    # By the position in pixels: the gradient of references is a sum of it over heads and points.
    grad_pixels = torch.empty_like(places) if needs_reference and points is not None else None
    _run(
        "backward", _describe(spatial_shapes, rows, points, places, marks), dtype,
        grad_output=_plain(grad_output, dtype), grad_value=grad_value, grad_sampling=grad_sampling,
        grad_scores=grad_scores, grad_pixels=grad_pixels,
    )  # fmt: skip
    grad_reference = None
    if grad_pixels is not None and reference_points is not None:
        grad_reference = _sum_reference(grad_pixels, places, spatial_shapes, reference_points)
    return grad_value.to(value.dtype), grad_reference, grad_sampling.to(sampling.dtype), grad_scores.to(scores.dtype)


def _sum_reference(
    pixels: Tensor, offsets: Tensor, spatial_shapes: Sequence[tuple[int, int]], reference_points: Tensor
) -> Tensor:
    """Gradient of the references from that of the positions in pixels, both (B, Q, N, L, P, 2)."""
    sizes = pixels.new_tensor([(width, height) for height, width in spatial_shapes])  # (L, 2)
    centres = pixels.sum((2, 4)) * sizes  # (B, Q, L, 2)
    if reference_points.shape[-1] == 2:
        return centres.to(reference_points.dtype)
    sides = (pixels * offsets).sum((2, 4)) * sizes * (0.5 / offsets.shape[4])
    return torch.cat([centres, sides], -1).to(reference_points.dtype)


def _working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Float64 when any of the tensors is, else float32, whatever the others are."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _rows(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in the given dtype, the channels of a token in one piece and the tokens evenly apart."""
    value = value.detach().to(dtype)
    batch, tokens, heads, channels = value.shape
    stride = value.stride(1)
    even = batch == 1 or value.stride(0) == tokens * stride
    if even and stride >= heads * channels and value.stride()[2:] == (channels, 1):
        return value
    return value.contiguous()


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).contiguous()


def _describe(
    spatial_shapes: Sequence[tuple[int, int]],
    value: Tensor,
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
) -> _Problem:
    batch, queries, heads, levels, points = scores.shape
    if value.shape[1] * value.stride(1) >= 2**31:
        raise ValueError(f"value {tuple(value.shape)} has 2**31 numbers or more in an image: use the backend 'torch'")
    shapes = (ctypes.c_int64 * (2 * levels))(*(side for shape in spatial_shapes for side in shape))
    problem = _Problem(
        batch=batch, tokens=value.shape[1], heads=heads, channels=value.shape[3], queries=queries, levels=levels,
        points=points, reference_size=0 if reference_points is None else reference_points.shape[3],
        value_stride=value.stride(1), heads_at_once=_heads_at_once(batch, heads), next_task=0,
        shapes=ctypes.addressof(shapes),
    )  # fmt: skip
    problem.keep_alive = (shapes, value, reference_points, sampling, scores)
    problem.value, problem.sampling, problem.scores = value.data_ptr(), sampling.data_ptr(), scores.data_ptr()
    problem.reference = None if reference_points is None else reference_points.data_ptr()
    return problem


def _heads_at_once(batch: int, heads: int) -> int:
    """Heads of one backward task: many share what the caches hold, few give every thread the same share of work."""
    threads = torch.get_num_threads()
    choices = [count for count in range(heads, 0, -1) if heads % count == 0]
    return next((count for count in choices if batch * (heads // count) % threads == 0), 1)


def _run(name: str, problem: _Problem, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """Has every thread work on the problem until no task is left."""
    for field, tensor in tensors.items():
        setattr(problem, field, None if tensor is None else tensor.data_ptr())
    samples = problem.batch * problem.queries * problem.heads * problem.levels * problem.points
    if samples == 0 or problem.channels == 0:
        for tensor in tensors.values():
            if tensor is not None:
                tensor.zero_()
        return
    work = getattr(_library(), f"codetr_{name}_{NAMES[dtype]}_{instruction_set()}")
    threads = max(1, min(torch.get_num_threads(), samples // SAMPLES_PER_THREAD))
    others = [_threads().submit(work, ctypes.byref(problem)) for _ in range(threads - 1)]
    results = [work(ctypes.byref(problem)), *(other.result() for other in others)]
    if any(results):
        raise MemoryError("no memory for the buffers of the deformable attention kernel")


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="codetr-deform-attn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads


@functools.cache
def _library() -> ctypes.CDLL:
    """Opens the library.

    Raises:
        OSError: there is none, or it is not of this source; the text is one sentence that says what to do.
    """
    again = "install codetr again with a C compiler present (pip install --force-reinstall --no-deps)"
    if not LIBRARY.is_file():
        raise OSError(f"The compiled kernel is not in this installation: no C compiler was there; {again}.")
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.codetr_source.restype = library.codetr_instruction_set.restype = ctypes.c_void_p
        made_from = str(ctypes.string_at(library.codetr_source()), "ascii")
    except (OSError, AttributeError) as error:
        raise OSError(f"The compiled kernel {LIBRARY.name} cannot be opened ({error}); {again}.") from error
    if made_from != source_digest():
        raise OSError(f"The compiled kernel is older than its source; {again}.")
    return library
