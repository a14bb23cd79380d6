"""Measures deformable attention alone: every backend that runs here, in turn, beside what the machine could do at best.

The yardstick is the definition in plain PyTorch, `grid_sample` level by level; the package `torch-ms-deform-attn` is
measured beside it when it is installed. Times are of one call with its inputs ready; a backward pass is timed without
its forward pass.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, TypeVar

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
from codetr_cli.runtime.timing import Tick, extra_peak_memory, in_turn, seconds_of

REFERENCE = "reference"
"""Name of the yardstick's row."""

PACKAGE = "torch-ms-deform-attn"
PACKAGE_MODULE = "torch_ms_deform_attn"

ERROR_SIZE = (96, 160)
"""Largest (height, width) of the image whose shapes errors are measured at: float64 takes long."""

ERROR_QUERIES = 100
GPU_SECONDS = 0.02
"""Calls on a GPU are repeated until they take this long together: a single one is mostly waiting for the clock."""

Call = Callable[[OperatorInputs], Tensor]
Stage = TypeVar("Stage")


@dataclass(frozen=True, kw_only=True)
class OperatorPlan:
    """What to measure.

    Attributes:
        shape: sizes of the call.
        device: where.
        dtype: of value, offsets and logits.
        classic: the entry that takes locations and weights; otherwise the fused one.
        backends: names to measure beside the reference; None for all that run here.
        warmup: rounds before anything counts.
        rounds: rounds that count.
    """

    shape: OperatorShape
    device: torch.device
    dtype: torch.dtype
    classic: bool = False
    backends: tuple[str, ...] | None = None
    warmup: int = 1
    rounds: int = 5

    def wants(self, name: str) -> bool:
        """Whether that backend is to be measured."""
        return self.backends is None or name in self.backends

    def ticks(self, contenders: int) -> int:
        """How often the measurement reports progress."""
        return contenders * (2 * self.rounds + 2)


@dataclass(frozen=True)
class Spread:
    """Times of one contender in milliseconds."""

    median: float
    minimum: float


@dataclass(frozen=True, kw_only=True)
class OperatorTiming:
    """What was measured of one backend, or why nothing was.

    Attributes:
        name: the backend, "reference" or "torch-ms-deform-attn".
        reason: why it cannot run here; then everything else is None or empty.
        forward_ms: without gradients.
        backward_ms: gradients of value, sampling and scores.
        forward_speed: times as fast as the reference.
        backward_speed: likewise.
        forward_extra_bytes: peak memory of a forward pass above its inputs and output.
        training_extra_bytes: peak memory of forward and backward pass above inputs, output and gradients.
        errors: largest relative error against float64 of "output", "grad_value", "grad_sampling", "grad_scores" and,
            of the fused entry, "grad_reference"; each relative to the largest number of the exact tensor.
        forward_over_limit: median over the largest of the machine's limits.
        backward_over_limit: likewise.
    """

    name: str
    reason: str | None = None
    forward_ms: Spread | None = None
    backward_ms: Spread | None = None
    forward_speed: float | None = None
    backward_speed: float | None = None
    forward_extra_bytes: int | None = None
    training_extra_bytes: int | None = None
    errors: dict[str, float] = field(default_factory=dict)
    forward_over_limit: float | None = None
    backward_over_limit: float | None = None


@dataclass(frozen=True)
class OperatorReport:
    """All rows of one shape.

    Attributes:
        shape: sizes of the call.
        entry: "fused" or "classic".
        dtype: of value, offsets and logits.
        rounds: that counted.
        forward_bounds_ms: least time of a forward pass by each limit of the machine.
        backward_bounds_ms: likewise of a backward pass.
        rows: one a backend, in the order in which they took turns; those that cannot run come last.
    """

    shape: OperatorShape
    entry: str
    dtype: str
    rounds: int
    forward_bounds_ms: dict[str, float]
    backward_bounds_ms: dict[str, float]
    rows: list[OperatorTiming]


@dataclass(frozen=True)
class Contender:
    """One way to compute the operator.

    Args:
        name: as its row is called.
        call: runs it on inputs of its entry.
        classic: takes the classic entry's inputs whatever is measured.
    """

    name: str
    call: Call
    classic: bool = False


def contender_names(device_type: str) -> list[str]:
    """Everything that `OperatorPlan.backends` may name."""
    return [*available_backends(device_type), PACKAGE]


def contenders(plan: OperatorPlan) -> tuple[list[Contender], dict[str, str]]:
    """Who is measured, and who cannot be: name -> one sentence.

    The backends come in the seam's order, fastest first, then the package, the reference last: it needs the most
    memory, and nothing it leaves behind is to be counted for others.
    """
    found, absent = [], {}
    for name, reason in available_backends(plan.device.type).items():
        if name != REFERENCE and plan.wants(name):
            reason = reason or _why_not_proven(name, plan.device.type)
            if reason is None:
                found.append(Contender(name, _forced(name)))
            else:
                absent[name] = reason
    if plan.wants(PACKAGE):
        if _installed(PACKAGE_MODULE):
            try:
                found.append(Contender(PACKAGE, _package_call(plan.device), classic=True))
            except Exception as error:  # one built for another torch fails in many ways
                absent[PACKAGE] = f"It cannot be imported: {_first_line(error)}"
        elif plan.backends is not None:
            absent[PACKAGE] = "It is not installed."
    return [*found, Contender(REFERENCE, _forced(REFERENCE))], absent


def _why_not_proven(name: str, device_type: str) -> str | None:
    """Why a backend that could run is not used: its first numbers differ from the reference's."""
    if name not in COMPILED:
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if proven(name, device_type):
            return None
    return str(caught[0].message) if caught else "It did not give the reference's numbers on this machine."


def benchmark_operator(plan: OperatorPlan, limits: MachineLimits, tick: Tick = lambda: None) -> OperatorReport:
    """Measures all contenders of one shape.

    Args:
        plan: what to measure.
        limits: of the device with the threads in use.
        tick: called after each measurement, `plan.ticks(len(contenders))` times at most.
    """
    inputs = make_inputs(plan.shape, plan.device, plan.dtype)
    ready = {False: inputs, True: inputs.classic()}
    runnable, absent = contenders(plan)
    clocks: dict[str, _Clock] = {}
    for contender in runnable:
        own = ready[contender.classic or plan.classic]
        clock = _attempt(contender.name, partial(_Clock, contender, own, plan), absent)
        if clock is not None:
            clocks[contender.name] = clock
        tick()
    forward, backward = (
        in_turn({name: partial(_attempt, name, stage, absent) for name, stage in stages.items()}, plan.rounds, tick)
        for stages in (
            {name: clock.forward for name, clock in clocks.items()},
            {name: clock.backward for name, clock in clocks.items()},
        )
    )
    rows = []
    for name, clock in clocks.items():
        row = _attempt(name, partial(_row, clock, forward[name], backward[name], plan), absent)
        if row is not None:
            rows.append(row)
        tick()
    works = operator_work(ready[plan.classic], plan.shape)
    bounds = [work.bounds_ms(limits) for work in works]
    rows = [_judged(row, rows, *bounds) for row in rows]
    return OperatorReport(
        shape=plan.shape,
        entry="classic" if plan.classic else "fused",
        dtype=str(plan.dtype).removeprefix("torch."),
        rounds=plan.rounds,
        forward_bounds_ms=bounds[0],
        backward_bounds_ms=bounds[1],
        rows=rows + [OperatorTiming(name=name, reason=reason) for name, reason in absent.items()],
    )


def _attempt(name: str, stage: Callable[[], Stage], absent: dict[str, str]) -> Stage | None:
    """What a contender's stage gives; None once one has failed, and the reason stands in `absent`."""
    if name in absent:
        return None
    try:
        return stage()
    except Exception as error:  # whatever a broken build or driver throws: the others are still measured
        absent[name] = f"it fails with these inputs: {_first_line(error)}"
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _row(
    clock: _Clock, forward: Sequence[float | None], backward: Sequence[float | None], plan: OperatorPlan
) -> OperatorTiming:
    """All that was measured of a contender whose timing never failed, and what is left to measure."""
    return OperatorTiming(
        name=clock.contender.name,
        forward_ms=_spread(forward),
        backward_ms=_spread(backward),
        forward_extra_bytes=clock.forward_memory(),
        training_extra_bytes=clock.training_memory(),
        errors=largest_errors(clock.contender, plan),
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


def operator_work(inputs: OperatorInputs, shape: OperatorShape) -> tuple[Work, Work]:
    """What a forward and a backward pass cannot avoid.

    A sample reads four rows of D numbers and adds each up; its backward pass reads them again for the gradients of
    place and weight, and reads and writes four rows of the value's gradient.
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


def largest_errors(contender: Contender, plan: OperatorPlan) -> dict[str, float]:
    """Largest relative error of output and gradients against the reference in float64, at a small image's shapes.

    Both get the same numbers, and no sample lies where interpolation has no derivative.
    """
    size = (min(plan.shape.size[0], ERROR_SIZE[0]), min(plan.shape.size[1], ERROR_SIZE[1]))
    queries = min(plan.shape.decoder_queries, ERROR_QUERIES)
    fused = make_inputs(replace(plan.shape, size=size, decoder_queries=queries), plan.device, plan.dtype, seed=1)
    classic = contender.classic or plan.classic
    inputs = fused.away_from_borders()
    inputs = (inputs.classic() if classic else inputs).requiring_grad(reference=True)
    exact = inputs.to(torch.float64).requiring_grad(reference=True)
    found, wanted = (
        _with_gradients(call, given) for call, given in ((contender.call, inputs), (_forced(REFERENCE), exact))
    )
    return {
        name: float((found[name].double() - right).abs().max() / right.abs().max().clamp_min(1e-300))
        for name, right in wanted.items()
    }


def _with_gradients(call: Call, inputs: OperatorInputs) -> dict[str, Tensor]:
    output = call(inputs)
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float32).to(output.device, torch.bfloat16)
    leaves = [*inputs.differentiable, *([] if inputs.reference is None else [inputs.reference])]
    names = ["grad_value", "grad_sampling", "grad_scores", "grad_reference"]
    gradients = torch.autograd.grad(output, leaves, upstream.to(output.dtype))
    return {"output": output.detach(), **dict(zip(names, gradients, strict=False))}


class _Clock:
    """Times one contender and measures its memory; making one runs it a first time."""

    def __init__(self, contender: Contender, inputs: OperatorInputs, plan: OperatorPlan) -> None:
        self.contender, self.device = contender, plan.device
        self.inputs, self.leaves = inputs, inputs.requiring_grad()
        shape = (inputs.value.shape[0], inputs.sampling.shape[1], inputs.value.shape[2] * inputs.value.shape[3])
        self.upstream = torch.ones(shape, dtype=inputs.value.dtype, device=plan.device)
        self.repeats = [1, 1]
        for _ in range(max(1, plan.warmup)):
            times = self.forward(), self.backward()
        if plan.device.type == "cuda":
            self.repeats = [min(100, max(1, math.ceil(GPU_SECONDS / seconds))) for seconds in times]

    def forward(self) -> float:
        """Seconds of a forward pass without gradients."""
        with torch.no_grad():
            return self._mean(lambda: self.contender.call(self.inputs), self.repeats[0])

    def backward(self) -> float:
        """Seconds of a backward pass; the forward pass that it belongs to is not timed."""
        output = self.contender.call(self.leaves)
        return self._mean(lambda: self._gradients(output, keep=True), self.repeats[1])

    def forward_memory(self) -> int | None:
        """Bytes of a forward pass above inputs and output."""
        with torch.no_grad():
            return extra_peak_memory(lambda: [self.contender.call(self.inputs)], self.device)

    def training_memory(self) -> int | None:
        """Bytes of a forward and a backward pass above inputs, output and gradients."""

        def step() -> list[Tensor]:
            output = self.contender.call(self.leaves)
            return [output, *self._gradients(output, keep=False)]

        return extra_peak_memory(step, self.device)

    def _gradients(self, output: Tensor, *, keep: bool) -> Sequence[Tensor]:
        return torch.autograd.grad(output, self.leaves.differentiable, self.upstream, retain_graph=keep)

    def _mean(self, call: Callable[[], object], repeats: int) -> float:
        def run() -> None:
            for _ in range(repeats):
                call()

        return seconds_of(run, self.device) / repeats


# -------------------------------------------------------------------------------------------------------- who computes


def _forced(name: str) -> Call:
    """The seam with a backend forced, in the backward pass as well."""

    def call(inputs: OperatorInputs) -> Tensor:
        with use_backend(name):
            if inputs.reference is None:
                return multi_scale_deformable_attention(
                    inputs.value, inputs.spatial_shapes, inputs.sampling, inputs.scores
                )
            return fused_multi_scale_deformable_attention(
                inputs.value, inputs.spatial_shapes, inputs.reference, inputs.sampling, inputs.scores
            )

    return call


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _package_call(device: torch.device) -> Call:
    """The package's operator; its small tables of levels are part of the call."""
    package = importlib.import_module(PACKAGE_MODULE)

    def call(inputs: OperatorInputs) -> Tensor:
        shapes = torch.tensor(inputs.spatial_shapes, device=device)
        areas = shapes.prod(1)
        dtype = inputs.value.dtype  # the package wants one for all
        output: Tensor = package.ms_deform_attn(
            inputs.value, shapes, areas.cumsum(0) - areas, inputs.sampling.to(dtype), inputs.scores.to(dtype)
        )
        return output

    return call


# ----------------------------------------------------------------------------------------------------------- judgement


def _spread(measured: Sequence[float | None]) -> Spread:
    seconds = [second for second in measured if second is not None]
    return Spread(median=median(seconds) * 1000, minimum=min(seconds) * 1000)


def _judged(
    row: OperatorTiming, rows: Sequence[OperatorTiming], forward_ms: dict[str, float], backward_ms: dict[str, float]
) -> OperatorTiming:
    """The row with its speed beside the reference's and its distance from the machine's limits."""
    yardstick = next((other for other in rows if other.name == REFERENCE), None)
    assert row.forward_ms is not None
    assert row.backward_ms is not None
    speeds: tuple[float | None, float | None] = (None, None)
    if yardstick is not None and yardstick.forward_ms is not None and yardstick.backward_ms is not None:
        speeds = (
            yardstick.forward_ms.median / row.forward_ms.median,
            yardstick.backward_ms.median / row.backward_ms.median,
        )
    return replace(
        row,
        forward_speed=speeds[0],
        backward_speed=speeds[1],
        forward_over_limit=row.forward_ms.median / max(forward_ms.values()),
        backward_over_limit=row.backward_ms.median / max(backward_ms.values()),
    )
