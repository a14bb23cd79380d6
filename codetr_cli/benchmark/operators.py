"""Benchmarks deformable attention alone: every backend that runs here, in turn, beside the machine's limits.

The reference is the definition in plain PyTorch, `grid_sample` level by level. Times are of one call whose inputs are
ready; a backward pass is timed without its forward pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from codetr_cli.benchmark.operator_inputs import OperatorInputs, OperatorShape, make_inputs
from codetr_cli.benchmark.roofline import MachineLimits, Work
from codetr_cli.ops.deform_attn import (
    available_backends,
    fused_multi_scale_deformable_attention,
    multi_scale_deformable_attention,
    use_backend,
)
from codetr_cli.ops.deform_attn_backends import COMPILED, proven
from codetr_cli.ops.deform_attn_triton_tuning import CANDIDATES, Candidate, use_candidate
from codetr_cli.runtime.timing import Tick, extra_peak_memory, in_turn, seconds_of

REFERENCE = "reference"
GPU_SECONDS = 0.02
"""Calls on a GPU are repeated until they take this long together: the overhead of timing one call is too large."""


@dataclass(frozen=True, kw_only=True)
class OperatorSpec:
    """What to measure.

    Attributes:
        shape: sizes of the call.
        device: where it runs.
        dtype: of value, offsets and logits.
        unfused: the operator that takes locations and weights; otherwise the fused one.
        backends: names to measure beside the reference; None for all that run here.
        candidates: measure each form of the Triton kernels too, as "triton NAME".
        warmup: rounds before the measurement.
        rounds: measured rounds.
    """

    shape: OperatorShape
    device: torch.device
    dtype: torch.dtype
    unfused: bool = False
    backends: tuple[str, ...] | None = None
    candidates: bool = False
    warmup: int = 1
    rounds: int = 5

    @property
    def ticks(self) -> int:
        """How often the measurement reports progress, if every backend runs."""
        count = len(available_backends(self.device)) if self.backends is None else len(self.backends) + 1
        return (count + len(self.forms)) * (2 * self.rounds + 1)

    @property
    def forms(self) -> list[str]:
        """Names of the Triton candidates to measure, each once."""
        if not self.candidates:
            return []
        every = dict.fromkeys(candidate for kernel in CANDIDATES.values() for candidate in kernel)
        return [str(candidate) for candidate in every if candidate.rows == 1 or self.shape.name == "encoder"]


@dataclass(frozen=True)
class Spread:
    """Times of one backend in milliseconds."""

    median: float
    minimum: float


@dataclass(frozen=True, kw_only=True)
class OperatorTiming:
    """Results of one backend, or the reason why there are none.

    Attributes:
        name: the backend.
        reason: why it does not run here; then everything else is None.
        forward_ms: without gradients.
        backward_ms: gradients of value, sampling and scores.
        forward_speed: speed relative to the reference.
        backward_speed: likewise.
        forward_over_limit: median over the largest of the machine's limits.
        backward_over_limit: likewise.
        forward_extra_bytes: peak memory of a forward pass above its inputs and output.
        training_extra_bytes: peak memory of forward and backward pass above inputs, output and gradients.
    """

    name: str
    reason: str | None = None
    forward_ms: Spread | None = None
    backward_ms: Spread | None = None
    forward_speed: float | None = None
    backward_speed: float | None = None
    forward_over_limit: float | None = None
    backward_over_limit: float | None = None
    forward_extra_bytes: int | None = None
    training_extra_bytes: int | None = None


@dataclass(frozen=True)
class OperatorReport:
    """Results of one shape.

    Attributes:
        shape: sizes of the call.
        entry: "fused" or "unfused".
        dtype: of value, offsets and logits.
        rounds: number of measured rounds.
        forward_bounds_ms: lower bound of a forward pass by each limit of the machine.
        backward_bounds_ms: likewise of a backward pass.
        rows: one per backend, fastest first; those that do not run come last.
    """

    shape: OperatorShape
    entry: str
    dtype: str
    rounds: int
    forward_bounds_ms: dict[str, float]
    backward_bounds_ms: dict[str, float]
    rows: list[OperatorTiming]


def benchmark_operator(spec: OperatorSpec, limits: MachineLimits, tick: Tick = lambda: None) -> OperatorReport:
    """Measures all backends on one shape.

    Args:
        spec: what to measure.
        limits: of the device with the threads in use.
        tick: called after each measurement, `spec.ticks` times at most.
    """
    inputs = make_inputs(spec.shape, spec.device, spec.dtype)
    inputs = inputs.unfused() if spec.unfused else inputs
    names, reasons = usable_backends(spec)
    timers: dict[str, _Timer] = {}
    for name in names:
        try:
            timers[name] = _Timer(name, inputs, spec)
        except Exception as error:  # a broken build or driver raises anything: the others are still measured
            reasons[name] = f"it fails with these inputs: {_first_line(error)}"
        tick()
    forward = in_turn({name: timer.forward for name, timer in timers.items()}, spec.rounds, tick)
    backward = in_turn({name: timer.backward for name, timer in timers.items()}, spec.rounds, tick)
    bounds = [work.bounds_ms(limits) for work in operator_work(inputs, spec.shape)]
    return OperatorReport(
        shape=spec.shape,
        entry="unfused" if spec.unfused else "fused",
        dtype=str(spec.dtype).removeprefix("torch."),
        rounds=spec.rounds,
        forward_bounds_ms=bounds[0],
        backward_bounds_ms=bounds[1],
        rows=[_row(timer, forward, backward, bounds) for timer in timers.values()]
        + [OperatorTiming(name=name, reason=reason) for name, reason in reasons.items()],
    )


def usable_backends(spec: OperatorSpec) -> tuple[list[str], dict[str, str]]:
    """The backends to measure, and why others cannot be: name -> one sentence.

    The reference comes last: it needs the most memory, and what it does not return must not count for others.
    """
    names, reasons = [], {}
    for name, reason in available_backends(spec.device).items():
        if name == REFERENCE or (spec.backends is not None and name not in spec.backends):
            continue
        reason = reason or _why_not_proven(name, spec.device)
        if reason is None:
            names += [name, *(f"{name} {form}" for form in spec.forms)] if name == "triton" else [name]
        else:
            reasons[name] = reason
    return [*names, REFERENCE], reasons


def operator_work(inputs: OperatorInputs, shape: OperatorShape) -> tuple[Work, Work]:
    """The least work of a forward and of a backward pass.

    A sample reads four rows of D numbers and sums them. Its backward pass reads them again for the gradients of its
    location and weight, and reads and writes four rows of the value's gradient.
    """
    value = inputs.value
    output = shape.batch * shape.queries * shape.heads * shape.channels * value.element_size()
    row_bytes = shape.samples * 4 * shape.channels * value.element_size()
    flops = shape.samples * 4 * shape.channels * 2
    gradients = sum(tensor.nbytes for tensor in inputs.differentiable)
    return (
        Work(memory_bytes=inputs.nbytes + output, cache_bytes=row_bytes, flops=flops),
        Work(memory_bytes=inputs.nbytes + output + gradients, cache_bytes=3 * row_bytes, flops=2 * flops),
    )


def report_table(report: OperatorReport) -> dict[str, Any]:
    """The report in plain values, with the sizes that follow from its shape."""
    shape = report.shape
    sizes = {
        "spatial_shapes": shape.spatial_shapes,
        "tokens": shape.tokens,
        "queries": shape.queries,
        "samples": shape.samples,
    }
    return {**asdict(report), "shape": {**asdict(shape), **sizes}}


class _Timer:
    """Times one backend and measures its memory; the constructor does the warm-up."""

    def __init__(self, name: str, inputs: OperatorInputs, spec: OperatorSpec) -> None:
        self.name, self.device = name, spec.device
        self.inputs, self.leaves = inputs, inputs.requiring_grad()
        shape = (inputs.value.shape[0], inputs.sampling.shape[1], inputs.value.shape[2] * inputs.value.shape[3])
        self.upstream = torch.ones(shape, dtype=inputs.value.dtype, device=spec.device)
        self.repeats = [1, 1]
        for _ in range(max(1, spec.warmup)):
            seconds = self.forward(), self.backward()
        if spec.device.type == "cuda":
            self.repeats = [min(100, max(1, math.ceil(GPU_SECONDS / second))) for second in seconds]

    def forward(self) -> float:
        """Seconds of a forward pass without gradients."""
        with torch.no_grad():
            return self._mean(lambda: self._call(self.inputs), self.repeats[0])

    def backward(self) -> float:
        """Seconds of a backward pass, without its forward pass."""
        output = self._call(self.leaves)
        return self._mean(lambda: self._gradients(output, keep=True), self.repeats[1])

    def forward_memory(self) -> int | None:
        """Bytes of a forward pass above inputs and output."""
        with torch.no_grad():
            return extra_peak_memory(lambda: [self._call(self.inputs)], self.device)

    def training_memory(self) -> int | None:
        """Bytes of a forward and a backward pass above inputs, output and gradients."""

        def step() -> list[Tensor]:
            output = self._call(self.leaves)
            return [output, *self._gradients(output, keep=False)]

        return extra_peak_memory(step, self.device)

    def _call(self, inputs: OperatorInputs) -> Tensor:
        backend, _, form = self.name.partition(" ")
        with use_backend(backend), use_candidate(Candidate.parse(form)) if form else nullcontext():
            if inputs.reference is None:
                return multi_scale_deformable_attention(
                    inputs.value, inputs.spatial_shapes, inputs.sampling, inputs.scores
                )
            return fused_multi_scale_deformable_attention(
                inputs.value, inputs.spatial_shapes, inputs.reference, inputs.sampling, inputs.scores
            )

    def _gradients(self, output: Tensor, *, keep: bool) -> Sequence[Tensor]:
        return torch.autograd.grad(output, self.leaves.differentiable, self.upstream, retain_graph=keep)

    def _mean(self, call: Callable[[], object], repeats: int) -> float:
        def run() -> None:
            for _ in range(repeats):
                call()

        return seconds_of(run, self.device) / repeats


def _row(
    timer: _Timer,
    forward: Mapping[str, list[float]],
    backward: Mapping[str, list[float]],
    bounds: Sequence[Mapping[str, float]],
) -> OperatorTiming:
    """The results of a backend: its times, relative to the reference and to the machine's limits, and its memory."""
    values: dict[str, Any] = {}
    for name, seconds, bound in zip(("forward", "backward"), (forward, backward), bounds, strict=True):
        milliseconds = median(seconds[timer.name]) * 1000
        reference = median(seconds[REFERENCE]) * 1000 if REFERENCE in seconds else None
        values[f"{name}_ms"] = Spread(median=milliseconds, minimum=min(seconds[timer.name]) * 1000)
        values[f"{name}_speed"] = None if reference is None else reference / milliseconds
        values[f"{name}_over_limit"] = milliseconds / max(bound.values())
    return OperatorTiming(
        name=timer.name,
        **values,
        forward_extra_bytes=timer.forward_memory(),
        training_extra_bytes=timer.training_memory(),
    )


def _why_not_proven(name: str, device: torch.device) -> str | None:
    """Why a compiled backend is not used: its results on this machine differ from the reference's."""
    if name not in COMPILED:
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if proven(name, device):
            return None
    return str(caught[0].message) if caught else "Its results differ from the reference's on this machine."


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
