"""The CPU backend of multi-scale deformable attention: calls the compiled kernel of deform_attn.c.

The library is loaded by path with ctypes, so it works with every version of Python and torch. The number of threads is
that of torch: the kernel distributes tasks itself, and ctypes releases the GIL during calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from codetr_cli.ops.compile_kernel import LIBRARY, source_digest
from codetr_cli.ops.deform_attn_backends import CPU_SAMPLES

SAMPLES_PER_THREAD = 20_000
"""Minimum samples per thread: with fewer, waking a thread costs more than it saves."""

NAMES = {torch.float32: "float", torch.float64: "double"}


POINTERS = (
    "value", "reference", "sampling", "scores", "grad_output", "output", "grad_value", "grad_sampling", "grad_scores",
    "grad_pixels", "shapes",
)  # fmt: skip
NUMBERS = (
    "batch", "tokens", "heads", "channels", "queries", "levels", "points", "reference_size", "heads_at_once",
    "next_task",
)  # fmt: skip


class _Problem(ctypes.Structure):
    """`Problem` of deform_attn.c, field by field."""

    _fields_ = (*((name, ctypes.c_void_p) for name in POINTERS), *((name, ctypes.c_int64) for name in NUMBERS))


def why_not(device: torch.device) -> str | None:
    """One sentence why this backend cannot run on `device`, None when it can."""
    if device.type != "cpu":
        return f"The compiled kernel runs on CPUs, not on {device.type}."
    try:
        _library()
    except OSError as error:
        return str(error)
    return None


def instruction_set() -> str:
    """The instruction set that the kernel uses here: "avx512", "avx2" or "base", the compiler's default.

    Raises:
        OSError: the library cannot be used; the message gives the reason.
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
    call = _Call(value, spatial_shapes, reference_points, sampling, scores)
    output = call.give("output", call.empty(sampling.shape[0], sampling.shape[1], value.shape[2] * value.shape[3]))
    call.run("forward")
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
    call = _Call(value, spatial_shapes, reference_points, sampling, scores)
    call.give("grad_output", grad_output.detach().to(call.dtype).contiguous())
    grad_value = call.give("grad_value", _zeros(value.shape, call.dtype))
    grad_sampling = call.give("grad_sampling", call.empty(*sampling.shape))
    grad_scores = call.give("grad_scores", call.empty(*scores.shape))
    grad_reference = None
    if needs_reference and reference_points is not None:
        # By the position in pixels: the gradient of references is a sum of it over heads and points.
        grad_pixels = call.give("grad_pixels", call.empty(*sampling.shape))
        call.run("backward")
        grad_reference = _sum_reference(grad_pixels, call.tensors["sampling"], spatial_shapes, reference_points)
    else:
        call.run("backward")
    return grad_value.to(value.dtype), grad_reference, grad_sampling.to(sampling.dtype), grad_scores.to(scores.dtype)


def _zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros; large ones are the system's zero pages, which cost nothing until somebody writes to them.

    A decoder's queries write to a part of the map only.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < 2**20:
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system that has none
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


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


class _Call:
    """One call of the kernel: its tensors, in the working precision and contiguous, and their addresses.

    Args: as for `forward`.

    Raises:
        ValueError: shapes that contradict each other or exceed the kernel's buffers: it would write anywhere.
    """

    def __init__(
        self,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        reference_points: Tensor | None,
        sampling: Tensor,
        scores: Tensor,
    ) -> None:
        _check(value, spatial_shapes, reference_points, sampling, scores)
        inputs = {"value": value, "sampling": sampling, "scores": scores}
        if reference_points is not None:
            inputs["reference"] = reference_points
        doubles = any(tensor.dtype == torch.float64 for tensor in inputs.values())
        self.dtype = torch.float64 if doubles else torch.float32
        batch, queries, heads, levels, points = scores.shape
        self.problem = _Problem(
            batch=batch, tokens=value.shape[1], heads=heads, channels=value.shape[3], queries=queries, levels=levels,
            points=points, reference_size=0 if reference_points is None else reference_points.shape[3],
            heads_at_once=_heads_at_once(batch, heads),
        )  # fmt: skip
        # The kernel works on memory that these references keep.
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in inputs.items():
            self.give(name, tensor.detach().to(self.dtype).contiguous())
        self.shapes = (ctypes.c_int64 * (2 * levels))(*(side for shape in spatial_shapes for side in shape))
        self.problem.shapes = ctypes.addressof(self.shapes)

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised tensor in the working precision."""
        return torch.empty(shape, dtype=self.dtype)

    def give(self, name: str, tensor: Tensor) -> Tensor:
        """Makes a tensor the problem's field `name`, and returns it."""
        self.tensors[name] = tensor
        setattr(self.problem, name, tensor.data_ptr())
        return tensor

    def run(self, name: str) -> None:
        """Runs "forward" or "backward": has every thread work on the problem until no task is left."""
        problem = self.problem
        samples = problem.batch * problem.queries * problem.heads * problem.levels * problem.points
        if samples == 0 or problem.channels == 0:
            for result in ("output", "grad_value", "grad_sampling", "grad_scores", "grad_pixels"):
                if result in self.tensors:
                    self.tensors[result].zero_()
            return
        function = getattr(_library(), f"codetr_{name}_{NAMES[self.dtype]}_{instruction_set()}")
        helpers: list[Future[int]] = []
        try:
            for _ in range(min(torch.get_num_threads(), samples // SAMPLES_PER_THREAD) - 1):
                try:
                    helpers.append(_threads().submit(function, ctypes.byref(problem)))
                except RuntimeError:  # the interpreter is about to exit: this thread does all
                    break
            failed = bool(function(ctypes.byref(problem)))
        finally:
            # Also after Ctrl-C: nobody may still write when the tensors are given back.
            started = [helper for helper in helpers if not helper.cancel()]
            wait(started)
        if failed or any(helper.result() for helper in started):
            raise MemoryError("no memory for the buffers of the deformable attention kernel")


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
) -> None:
    """Rejects arguments that would make the kernel read or write out of bounds.

    Raises:
        ValueError: with the arguments that do not match.
    """
    batch, queries, heads, levels, points = scores.shape
    if levels * points > CPU_SAMPLES:
        raise ValueError(f"scores {tuple(scores.shape)} have more than {CPU_SAMPLES} samples for a query and head")
    fits = (
        sampling.shape == (*scores.shape, 2)
        and value.shape[0] == batch
        and value.shape[2] == heads
        and len(spatial_shapes) == levels
        and sum(height * width for height, width in spatial_shapes) == value.shape[1]
        and all(height > 0 and width > 0 for height, width in spatial_shapes)
    )
    if reference_points is not None:
        fits = fits and reference_points.shape in ((batch, queries, levels, 2), (batch, queries, levels, 4))
    if not fits:
        raise ValueError(
            f"value {tuple(value.shape)}, spatial_shapes {list(spatial_shapes)}, sampling {tuple(sampling.shape)} and "
            f"scores {tuple(scores.shape)} have incompatible shapes"
        )
    if value.shape[1] * heads * value.shape[3] >= 2**31:
        raise ValueError(f"value {tuple(value.shape)} has 2**31 numbers or more in an image: use the backend 'torch'")


def _heads_at_once(batch: int, heads: int) -> int:
    """Heads per backward task: many share cached data, few balance the work of the threads."""
    threads = torch.get_num_threads()
    choices = [count for count in range(heads, 0, -1) if heads % count == 0]
    return next((count for count in choices if batch * (heads // count) % threads == 0), 1)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="codetr-deform-attn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not survive a fork


@functools.cache
def _library() -> ctypes.CDLL:
    """Opens the library.

    Raises:
        OSError: it is missing or does not match the source; the message is one sentence with the fix.
    """
    again = (
        "install codetr again with a C compiler present (pip install --force-reinstall --no-deps --no-cache-dir; in a "
        "checkout that is installed editable, python codetr_cli/ops/compile_kernel.py)"
    )
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
