"""Multi-scale deformable attention on GPUs (CUDA and ROCm) with Triton: the host side of its kernels.

Softmax, location arithmetic, bilinear gather and weighted sum are one kernel, so that neither sampling locations nor
attention weights nor samples are ever written to memory; backward recomputes them. docs/triton_kernels.md derives the
traffic and the limits. Besides the launches, this module contains:

* block shapes are tuned on first use, from a short list, once for each set of dtypes and layer shape and for a coarse
  class of query counts: another image size does not tune again. Triton keeps the results on disk;
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
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codetr_cli.ops.deform_attn_torch import wants_fixed_order

MIN_TRITON = (3, 6)
"""The version that comes with the oldest supported torch."""

INT32_REACH = 2**31
"""Offsets inside one image from here on are computed with 64 bits."""

MIN_CAPABILITY = (7, 0)
"""The oldest CUDA device that Triton generates code for."""

BLOCKS = ((8, 1), (8, 2), (8, 4), (16, 2), (16, 4), (32, 4), (64, 8))
"""Tuning candidates: queries of a block, warps. Large channel counts and odd point counts use fewer of them.

Many queries to a warp share the arithmetic of locations among threads, few leave registers for more warps.
"""

DEFAULT_BLOCK = (8, 4)
"""Used where nothing may be timed: inside a CUDA graph capture before tuning, and for the deterministic backward."""

COMPILER_OPTIONS = {"enable_fp_fusion": True}
"""Fused multiply-adds are asked for, because the default is about to change and Triton warns about that."""

INTERPRETED_BLOCK_Q = 64
"""Triton's interpreter takes as long for a large block as for a small one."""


def why_not(device_type: str) -> str | None:
    """The reason why the kernels cannot run on `device_type` ("cpu", "cuda"), one sentence; None if they can."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type == "cpu" and not interpreted:
        return "Triton runs on GPUs (TRITON_INTERPRET=1 interprets its kernels on the CPU, slowly, for tests)."
    if device_type not in ("cpu", "cuda"):
        return f"these Triton kernels run on CUDA and ROCm GPUs, not on {device_type}."
    if device_type == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA or ROCm GPU on this machine."
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (torch's GPU builds for Linux bring it; on Windows install triton-windows)."
    try:
        version = str(importlib.import_module("triton").__version__)
    except Exception as error:  # a broken installation can raise anything and must not stop the program
        return f"Triton is installed but cannot be imported: {error}"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < MIN_TRITON:
        return f"Triton {version} is older than {'.'.join(map(str, MIN_TRITON))}, which these kernels need."
    if device_type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() < MIN_CAPABILITY:
        return "this GPU is too old for Triton, which needs compute capability 7.0."
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
    call = _Call.of(value, spatial_shapes, reference_points, sampling, scores)
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
        call.query_class,
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
    call = _Call.of(value, spatial_shapes, reference_points, sampling, scores)
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
    call: _Call,
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
    sizes = (call.tokens, call.queries, call.query_class, 0, 0)
    arguments = (grad, call.value, *call.inputs(), *outputs, *sizes, *grad.stride()[:2], *call.strides)
    constants = call.constants | {"NEEDS_REFERENCE": needs_reference, "ORDERED": False}
    _launch("backward", call, arguments, constants)
    return total.to(call.value.dtype)


def _ordered_backward(
    grad_output: Tensor,
    call: _Call,
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
    constants = call.constants | {"NEEDS_REFERENCE": needs_reference, "ORDERED": True}
    for image in range(call.batch):
        part = slice(image, image + 1)
        of_image = call.of_image(image)
        grad_reference = call.scores if parts is None else call.accumulator(call.heads, 1, *parts.shape[2:])
        outputs = (of_image.scores, grad_reference, grad_sampling[part], grad_scores[part], base_cells, shares)
        sizes = (call.tokens, call.queries, call.query_class, per_head, samples)
        arguments = (grad[part], of_image.value, *of_image.inputs(), *outputs, *sizes, *grad.stride()[:2])
        _launch("backward", of_image, (*arguments, *call.strides), constants, tune=False)
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


class _Call(NamedTuple):
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
    ) -> _Call:
        scores = _inner_contiguous(scores)
        return cls(
            value=value if value.stride(-1) == 1 else value.contiguous(),
            reference=scores if reference_points is None else _inner_contiguous(reference_points),
            sampling=_inner_contiguous(sampling),
            scores=scores,
            spatial_shapes=tuple((int(height), int(width)) for height, width in spatial_shapes),
            reference_numbers=0 if reference_points is None else reference_points.shape[-1],
        )

    def of_image(self, image: int) -> _Call:
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
        return self.value.shape[0]

    @property
    def tokens(self) -> int:
        return self.value.shape[1]

    @property
    def heads(self) -> int:
        return self.value.shape[2]

    @property
    def channels(self) -> int:
        return self.value.shape[3]

    @property
    def queries(self) -> int:
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
        """The kernels' compile-time constants, but the block."""
        import triton.language as tl

        levels, points = self.sampling.shape[3:5]
        reach = max(
            self.tokens * self.value.stride(1),
            self.heads * self.value.stride(2),
            self.tokens * self.heads * self.channels,
        )
        for tensor in (self.reference, self.sampling, self.scores):
            reach = max(reach, (self.queries + max(block for block, _ in BLOCKS)) * tensor.stride(1))
        return {
            "HEADS": self.heads,
            "CHANNELS": self.channels,
            "LEVELS": levels,
            "POINTS": points,
            "CHANNELS_PAD": _power_of_two(self.channels),
            "LEVELS_PAD": _power_of_two(levels),
            "POINTS_PAD": _power_of_two(points),
            "TERMS_PAD": _power_of_two(levels * points),
            "REFERENCE": self.reference_numbers,
            "ACC": tl.float64 if self.arithmetic == torch.float64 else tl.float32,
            "INDEX": tl.int64 if reach >= INT32_REACH else tl.int32,
        }

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


def _level_rows(spatial_shapes: tuple[tuple[int, int], ...]) -> list[tuple[int, int, int, int]]:
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
        return thread.submit(torch.tensor, _level_rows(spatial_shapes), dtype=torch.int32, device=device).result()


def _captured_level_table(spatial_shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """The same table as part of a CUDA graph, for sizes never seen before the capture.

    A graph cannot copy from ordinary host memory, so constants are written by kernels; the table belongs to the graph
    and holds nothing before it is replayed, so it is not kept.
    """
    table = torch.empty(len(spatial_shapes), 4, dtype=torch.int32, device=device)
    for row, numbers in zip(table, _level_rows(spatial_shapes), strict=True):
        for cell, number in zip(row, numbers, strict=True):
            cell.fill_(number)
    return table


class _Kernels(NamedTuple):
    """Compiled on first launch. The tuners wrap the kernels of the same name."""

    plain: dict[str, Any]
    tuners: dict[str, Any]
    ordered: Any
    interpreted: bool


@functools.cache
def _kernels() -> _Kernels:
    import triton

    from codetr_cli.ops import deform_attn_triton_kernels as kernels

    plain = {"forward": kernels.forward_kernel, "backward": kernels.backward_kernel}
    interpreted = not isinstance(kernels.forward_kernel, triton.JITFunction)
    tuners = {}
    if not interpreted:
        key = ["query_class", "HEADS", "CHANNELS", "LEVELS", "POINTS", "REFERENCE"]  # dtypes come by themselves
        for name, kernel in plain.items():
            tuners[name] = triton.autotune(
                configs=[triton.Config({"BLOCK_Q": block}, num_warps=warps, num_stages=1) for block, warps in BLOCKS],
                key=key,
                reset_to_zero=["grad_value"] if name == "backward" else None,
                prune_configs_by={"early_config_prune": _prune},
                do_bench=functools.partial(triton.testing.do_bench, warmup=10, rep=40),
                cache_results=True,
            )(kernel)
    return _Kernels(plain, tuners, kernels.ordered_value_kernel, interpreted)


def _elements_per_thread(block: int, warps: int, constants: dict[str, Any]) -> float:
    return block * constants["POINTS_PAD"] * constants["CHANNELS_PAD"] / (32 * warps)


def _prune(configs: list[Any], _named: dict[str, Any], **constants: Any) -> list[Any]:
    """Skips blocks whose tile would not fit the registers or would leave threads idle."""

    def tile(config: Any) -> float:
        return _elements_per_thread(config.kwargs["BLOCK_Q"], config.num_warps, constants)

    fitting = [config for config in configs if 4 <= tile(config) <= 32]
    return fitting or [min(configs, key=tile)]


def _fixed_block(constants: dict[str, Any]) -> dict[str, int]:
    """A block chosen without timing: the default, smaller where its tile would not fit the registers."""
    block, warps = DEFAULT_BLOCK
    while block > 1 and _elements_per_thread(block, warps, constants) > 32:
        block //= 2
    return {"BLOCK_Q": block, "num_warps": warps, "num_stages": 1}


_chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
_tuning = threading.Lock()


def _launch(
    name: str, call: _Call, arguments: tuple[Any, ...], constants: dict[str, Any], *, tune: bool = True
) -> None:
    """Runs a kernel over all blocks of queries, heads and images, and finds its block shape the first time."""
    kernels = _kernels()

    def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
        return -(-call.queries // meta["BLOCK_Q"]), call.heads, call.batch

    if kernels.interpreted:
        kernels.plain[name][grid](*arguments, **constants, BLOCK_Q=INTERPRETED_BLOCK_Q)
        return
    dtypes = tuple(argument.dtype for argument in arguments if isinstance(argument, Tensor))
    key = (name, call.value.device, call.query_class, dtypes, tuple(map(str, constants.values())))
    block = _chosen.get(key) if tune and call.query_class else _fixed_block(constants)
    if block is None and torch.cuda.is_current_stream_capturing():
        block = _fixed_block(constants)  # nothing can be timed in a capture
    if block is not None:
        kernels.plain[name][grid](*arguments, **constants, **block, **COMPILER_OPTIONS)
        return
    with _tuning:
        kernels.tuners[name][grid](*arguments, **constants, **COMPILER_OPTIONS)
        _chosen[key] = kernels.tuners[name].best_config.all_kwargs()


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
