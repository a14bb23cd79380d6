"""Multi-scale deformable attention on GPUs (CUDA and ROCm) with Triton: the host side of its kernels.

Softmax, location arithmetic, bilinear gather and weighted sum are one kernel, so that neither sampling locations nor
attention weights nor samples are ever written to memory; backward recomputes them. docs/triton_kernels.md derives the
traffic and the limits. Besides the launches, this module contains:

* `deform_attn_triton_tuning` chooses the form of the kernels, once for each set of dtypes and layer shape and for a
  coarse class of query counts: another image size does not tune again;
* the level table goes to the device once for each set of map sizes, so that calls copy nothing and never wait: they
  can be captured in a CUDA graph;
* the gradient of `value` is summed by atomic additions, or in a fixed order when `torch.use_deterministic_algorithms`
  is on or CODETR_DETERMINISTIC=1: see `_ordered_backward`.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codetr_cli.ops import deform_attn_triton_tuning as tuning
from codetr_cli.ops.deform_attn_torch import wants_fixed_order

MIN_TRITON = (3, 1)
"""The oldest version that the kernels were run with, in its interpreter."""

INT32_REACH = 2**31
"""Offsets inside one image from here on are computed with 64 bits."""

MIN_CAPABILITY = (7, 0)
"""The oldest CUDA device that Triton generates code for."""

COMPILER_OPTIONS = {"enable_fp_fusion": True}
"""Fused multiply-adds are asked for, because the default is about to change and Triton warns about that."""

INTERPRETED = tuning.Candidate(1, 64, 4)
"""Triton's interpreter takes as long for a large block as for a small one."""


def why_not(device: torch.device) -> str | None:
    """The reason why the kernels cannot run on `device`, one sentence; None if they can."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type == "cpu" and not interpreted:
        return "Triton runs on GPUs (TRITON_INTERPRET=1 interprets its kernels on the CPU, slowly, for tests)."
    if device.type not in ("cpu", "cuda"):
        return f"these Triton kernels run on CUDA and ROCm GPUs, not on {device.type}."
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA or ROCm GPU on this machine."
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (torch's GPU builds for Linux bring it; on Windows install triton-windows)."
    try:
        version = str(importlib.import_module("triton").__version__)
    except Exception as error:  # a broken installation can raise anything and must not stop the program
        return f"Triton is installed but cannot be imported: {error}"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < MIN_TRITON:
        return f"Triton {version} is older than {'.'.join(map(str, MIN_TRITON))}, which these kernels need."
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            return "this GPU is too old for Triton: its compute capability is {}.{}, 7.0 is needed.".format(*capability)
    return None


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
    call = Call.of(value, spatial_shapes, reference_points, sampling, scores)
    output = value.new_empty(call.batch, call.queries, call.heads * call.channels)
    if output.numel() == 0:
        return output
    arguments = (
        call.value,
        call.levels(),
        call.reference,
        call.sampling,
        call.scores,
        output,
        call.queries,
        *call.strides,
    )
    with torch.cuda.device(value.get_device()):
        _launch("forward", call, arguments, call.constants)
    return output


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
    call = Call.of(value, spatial_shapes, reference_points, sampling, scores)
    needs_reference = needs_reference and reference_points is not None
    grad_sampling = torch.empty(sampling.shape, dtype=sampling.dtype, device=value.device)
    grad_scores = torch.empty(scores.shape, dtype=scores.dtype, device=value.device)
    parts = None
    if needs_reference and reference_points is not None:
        parts = call.accumulator(call.heads, *reference_points.shape)
    with torch.cuda.device(value.get_device()):
        if call.batch * call.queries * call.heads * call.channels * sampling.numel() == 0:
            grad_value = value.new_zeros(value.shape)
            grad_sampling.zero_()
            grad_scores.zero_()
            parts = parts.zero_() if parts is not None else None
        elif wants_fixed_order():
            grad_value = _ordered_backward(grad_output, call, parts, grad_sampling, grad_scores, needs_reference)
        else:
            grad_value = _atomic_backward(grad_output, call, parts, grad_sampling, grad_scores, needs_reference)
    grad_reference = None
    if parts is not None and reference_points is not None:
        grad_reference = parts.sum(0).to(reference_points.dtype)
    return grad_value, grad_reference, grad_sampling, grad_scores


def _atomic_backward(
    grad_output: Tensor,
    call: Call,
    parts: Tensor | None,
    grad_sampling: Tensor,
    grad_scores: Tensor,
    needs_reference: bool,
) -> Tensor:
    """Fills the gradients and returns that of `value`, summed by atomic additions in the precision of arithmetic."""
    grad = _inner_contiguous(grad_output)
    total = call.accumulator(*call.value.shape).zero_()
    nothing = call.scores  # placeholder of unused arguments
    outputs = (total, nothing if parts is None else parts, grad_sampling, grad_scores, nothing, nothing)
    sizes = (call.tokens, call.queries, 0, 0)
    arguments = (grad, call.value, *call.inputs(), *outputs, *sizes, *grad.stride()[:2], *call.strides)
    constants = call.backward_constants(needs_reference=needs_reference, ordered=False)
    _launch("backward", call, arguments, constants, total=total)
    return total.to(call.value.dtype)


def _ordered_backward(
    grad_output: Tensor,
    call: Call,
    parts: Tensor | None,
    grad_sampling: Tensor,
    grad_scores: Tensor,
    needs_reference: bool,
) -> Tensor:
    """As `_atomic_backward`, with sums in a fixed order: the same bits in every run on the same device and versions.

    The samples of one image are sorted by the upper left cell they read, with a stable sort; then one program for each
    cell of `value` sums what belongs to it. Fixed-point atomics (64-bit integers, whose sums do not depend on order)
    were the alternative: they need the largest contribution beforehand, double the atomic traffic, and lose small
    values next to it. Sorting costs about 50 bytes of memory a sample, one image at a time.
    """
    grad = _inner_contiguous(grad_output)
    samples = call.sampling[0].numel() // 2
    base_cells = torch.empty(samples, dtype=torch.int32, device=grad.device)
    shares = call.accumulator(3, samples)
    per_head = sum((height + 1) * (width + 1) for height, width in call.spatial_shapes)
    if call.heads * per_head > torch.iinfo(base_cells.dtype).max:
        raise ValueError(f"value has too many cells for the deterministic backward: {call.heads * per_head} over heads")
    first_of_cell = torch.arange(call.heads * per_head + 1, dtype=torch.int32, device=grad.device)
    grad_value = torch.empty(call.value.shape, dtype=call.value.dtype, device=grad.device)
    constants = call.backward_constants(needs_reference=needs_reference, ordered=True)
    for image in range(call.batch):
        part = slice(image, image + 1)
        of_image = call.of_image(image)
        grad_reference = call.scores if parts is None else call.accumulator(call.heads, 1, *parts.shape[2:])
        outputs = (of_image.scores, grad_reference, grad_sampling[part], grad_scores[part], base_cells, shares)
        sizes = (call.tokens, call.queries, per_head, samples)
        arguments = (grad[part], of_image.value, *of_image.inputs(), *outputs, *sizes, *grad.stride()[:2])
        _launch("backward", of_image, (*arguments, *call.strides), constants)
        if parts is not None:
            parts[:, part] = grad_reference
        ordered, order = torch.sort(base_cells, stable=True)
        bounds = torch.searchsorted(ordered, first_of_cell)
        _kernels().ordered[(call.tokens, call.heads)](
            grad[image],
            call.levels(),
            bounds,
            order,
            shares,
            grad_value[image],
            per_head,
            samples,
            grad.stride(1),
            **{name: constants[name] for name in ("HEADS", "CHANNELS", "LEVELS", "POINTS", "CHANNELS_PAD", "ACC")},
            BLOCK=16,
            num_warps=1,
            **COMPILER_OPTIONS,
        )
    return grad_value


class Call(NamedTuple):
    """The inputs of one call as the kernels want them: innermost dimensions dense, outer strides free."""

    value: Tensor
    reference: Tensor  # `scores` stands in for it in the unfused operator
    sampling: Tensor
    scores: Tensor
    spatial_shapes: tuple[tuple[int, int], ...]
    reference_numbers: int  # of a reference point: 0 without

    @classmethod
    def of(
        cls,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        reference_points: Tensor | None,
        sampling: Tensor,
        scores: Tensor,
    ) -> Call:
        """The call of `forward` with these arguments; copies what is not dense enough."""
        scores = _inner_contiguous(scores)
        return cls(
            value=value if value.stride(-1) == 1 else value.contiguous(),
            reference=scores if reference_points is None else _inner_contiguous(reference_points),
            sampling=_inner_contiguous(sampling),
            scores=scores,
            spatial_shapes=tuple((height, width) for height, width in spatial_shapes),
            reference_numbers=0 if reference_points is None else reference_points.shape[-1],
        )

    def of_image(self, image: int) -> Call:
        """The same call for one image of the batch."""
        part = slice(image, image + 1)
        return self._replace(
            value=self.value[part],
            reference=self.reference[part],
            sampling=self.sampling[part],
            scores=self.scores[part],
        )

    @property
    def batch(self) -> int:
        """Images."""
        return self.value.shape[0]

    @property
    def tokens(self) -> int:
        """Cells of all levels."""
        return self.value.shape[1]

    @property
    def heads(self) -> int:
        """Heads."""
        return self.value.shape[2]

    @property
    def channels(self) -> int:
        """Channels of a head."""
        return self.value.shape[3]

    @property
    def queries(self) -> int:
        """Queries of an image."""
        return self.sampling.shape[1]

    @property
    def query_class(self) -> int:
        """What tuning distinguishes: decoders, which hardly fill a GPU, small encoders, and large ones.

        Class 0 is not worth tuning: tests, and the check on first use.
        """
        rows = self.batch * self.queries
        return sum(rows > limit for limit in (256, 4096, 65536))

    @property
    def arithmetic(self) -> torch.dtype:
        """Float32, or float64 as soon as one input has it."""
        tensors = (self.value, self.reference, self.sampling, self.scores)
        return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Outer strides, in the kernels' order."""
        outer = (self.reference, self.sampling, self.scores)
        return (*self.value.stride()[:3], *(stride for tensor in outer for stride in tensor.stride()[:2]))

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time constants of the forward kernel, but the candidate's. Unknown ones are an error."""
        import triton.language as tl

        levels, points = self.sampling.shape[3:5]
        reach = max(
            self.tokens * self.value.stride(1),
            self.heads * self.value.stride(2),
            self.tokens * self.heads * self.channels,
        )
        for tensor in (self.reference, self.sampling, self.scores):
            reach = max(reach, (self.queries + tuning.MOST_QUERIES) * tensor.stride(1))
        return {
            "HEADS": self.heads,
            "CHANNELS": self.channels,
            "LEVELS": levels,
            "POINTS": points,
            "CHANNELS_PAD": _power_of_two(self.channels),
            "POINTS_PAD": _power_of_two(points),
            "TERMS_PAD": _power_of_two(levels * points),
            "REFERENCE": self.reference_numbers,
            "ACC": tl.float64 if self.arithmetic == torch.float64 else tl.float32,
            "INDEX": tl.int64 if reach >= INT32_REACH else tl.int32,
        }

    def backward_constants(self, *, needs_reference: bool, ordered: bool) -> dict[str, Any]:
        """Compile-time constants of the backward kernel, but the candidate's."""
        own = {"LEVELS_PAD": _power_of_two(self.sampling.shape[3]), "NEEDS_REFERENCE": needs_reference}
        return self.constants | own | {"ORDERED": ordered}

    def levels(self) -> Tensor:
        """The level table on the device."""
        if self.value.is_cuda and torch.cuda.is_current_stream_capturing():
            return _captured_level_table(self.spatial_shapes, self.value.device)
        return _level_table(self.spatial_shapes, self.value.device)

    def inputs(self) -> tuple[Tensor, ...]:
        """What both kernels read after `value`."""
        return self.levels(), self.reference, self.sampling, self.scores

    def accumulator(self, *shape: int) -> Tensor:
        """An uninitialised tensor in the precision of arithmetic."""
        return torch.empty(shape, dtype=self.arithmetic, device=self.value.device)


def level_rows(spatial_shapes: tuple[tuple[int, int], ...]) -> list[tuple[int, int, int, int]]:
    """Height, width, first token and first base cell of each level. Base cells begin at (-1, -1)."""
    rows, token, cell = [], 0, 0
    for height, width in spatial_shapes:
        rows.append((height, width, token, cell))
        token += height * width
        cell += (height + 1) * (width + 1)
    return rows


@functools.lru_cache(maxsize=1024)
def _level_table(spatial_shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Made in a separate thread: what this thread allocates may belong to a CUDA graph.

    torch.compile warms its graphs up with the thread's allocations sent to their memory pool, where nothing may stay.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(torch.tensor, level_rows(spatial_shapes), dtype=torch.int32, device=device).result()


def _captured_level_table(spatial_shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """The same table as part of a CUDA graph, for sizes never seen before the capture.

    A graph cannot copy from ordinary host memory, so constants are written by kernels; the table belongs to the graph
    and holds nothing before it is replayed, so it is not kept.
    """
    table = torch.empty(len(spatial_shapes), 4, dtype=torch.int32, device=device)
    for row, numbers in zip(table, level_rows(spatial_shapes), strict=True):
        for cell, number in zip(row, numbers, strict=True):
            cell.fill_(number)
    return table


class _Kernels(NamedTuple):
    """Compiled on first launch."""

    plain: dict[str, Any]
    ordered: Any
    interpreted: bool


@functools.cache
def _kernels() -> _Kernels:
    import triton

    from codetr_cli.ops.deform_attn_triton_kernels import backward_kernel, forward_kernel
    from codetr_cli.ops.deform_attn_triton_ordered import ordered_value_kernel

    interpreted = not isinstance(forward_kernel, triton.JITFunction)
    return _Kernels({"forward": forward_kernel, "backward": backward_kernel}, ordered_value_kernel, interpreted)


def _launch(
    name: str, call: Call, arguments: tuple[Any, ...], constants: dict[str, Any], total: Tensor | None = None
) -> None:
    """Runs a kernel over all blocks of queries, heads and images, and finds the form that is fastest the first time.

    Args:
        name: "forward" or "backward".
        call: the inputs.
        arguments: of the kernel.
        constants: its compile-time constants, but the candidate's.
        total: the tensor of zeros that it adds to.
    """
    kernels = _kernels()
    problem = tuning.Problem(
        kernel=name,
        device=call.value.device,
        query_class=call.query_class,
        is_grid=call.queries == call.tokens,
        dtypes=tuple(argument.dtype for argument in arguments if isinstance(argument, Tensor)),
        constants=tuple((key, value if isinstance(value, int) else str(value)) for key, value in constants.items()),
    )

    def run(candidate: tuning.Candidate) -> None:
        grid = candidate.programs(call.queries, call.spatial_shapes), call.heads, call.batch
        compiler = {} if kernels.interpreted else {"num_warps": candidate.warps, "num_stages": 1, **COMPILER_OPTIONS}
        kernels.plain[name][grid](*arguments, **constants, **candidate.constants, **compiler)

    if kernels.interpreted:
        run(problem.adapted(tuning.forced_candidate() or INTERPRETED))
        return
    candidate = tuning.choose(problem, fixed=wants_fixed_order())
    if candidate is None:
        candidate = tuning.measure(problem, run)
        if total is not None:
            total.zero_()  # of what the measurement added
    run(candidate)


def _inner_contiguous(tensor: Tensor) -> Tensor:
    """`tensor` itself where everything behind its first two dimensions is dense, else a copy."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
