"""Measures what this program's savings bring: the whole model with all of them beside the plain way, in one process.

Plain is what published code does where its own operator is not compiled: deformable attention by `grid_sample` level by
level, and a network that is built for training and used as it is. Both have the same weights and images, take turns so
that whatever else the machine does hits both, and have to find the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from codetr_cli.benchmark.model import Plan, Run, Timing, timing_of
from codetr_cli.models.postprocess import Detections
from codetr_cli.ops.deform_attn import active_backend, use_backend
from codetr_cli.runtime.timing import Tick, in_turn, peak_memory, reset_peak_memory

OURS, PLAIN = "ours", "plain"

REFERENCE = "reference"
"""The backend of the plain way."""

SAME_BOX_PX = 1.0
SAME_SCORE = 1e-3


@dataclass(frozen=True)
class Comparison:
    """What was measured of both ways.

    Attributes:
        ours: with all savings. Peak memory is of the whole process from the network's first run on, the libraries in
            it included, and measured before the plain way ever ran: memory that is not given back would count.
        plain: likewise, with our network gone.
        latency_median_ms: of each way.
        speed_up: plain over ours, of these medians.
        memory_ratio: plain over ours, of the peaks; None where they are unknown.
        attention: deformable attention of each way.
        order: who ran, in the order of the timed runs.
        agreement: how much the results of the first run of each differ.
    """

    ours: Timing
    plain: Timing
    latency_median_ms: dict[str, float]
    speed_up: float
    memory_ratio: float | None
    attention: dict[str, str]
    order: list[str]
    agreement: dict[str, Any]


class _Way:
    """One of the two ways: measures its memory alone in the process, then its time beside the other."""

    def __init__(self, make: Callable[[], Run], plan: Plan, *, plain: bool) -> None:
        self.make, self.plan, self.plain = make, plan, plain
        self.attention = REFERENCE if plain else active_backend(plan.device.type)
        self.run: Run | None = None
        self.peak: int | None = None
        self.first_result: list[Detections] | float = 0.0

    def start(self) -> None:
        """Builds the network and runs it until its memory has settled; the first time the peak is kept."""
        self.run = self.make()
        torch.manual_seed(0)  # the same draws in the first training step
        known = reset_peak_memory(self.plan.device)
        self.once()
        result = self.run.result
        for _ in range(max(self.run.SETTLED, self.plan.warmup) - 1):
            self.once()
        if self.peak is None:
            self.peak = peak_memory(self.plan.device) if known else None
            self.first_result = result

    def once(self) -> float:
        """Seconds of one run."""
        assert self.run is not None
        with self._operator():
            return self.run.once()

    def split(self) -> dict[str, float]:
        """Seconds of the stages of one run."""
        assert self.run is not None
        with self._operator():
            return self.run.split()

    def _operator(self) -> AbstractContextManager[None]:
        return use_backend(REFERENCE) if self.plain else nullcontext()


def compare_ticks(plan: Plan) -> int:
    """How often `compare` reports progress."""
    return 3 + 2 * (plan.iterations + plan.split_iterations)


def compare(
    make_ours: Callable[[], Run], make_plain: Callable[[], Run], plan: Plan, tick: Tick = lambda: None
) -> Comparison:
    """Measures both ways.

    Args:
        make_ours: builds the network as this program uses it, and its run; called twice, because the network is gone
            while the plain way's memory is measured.
        make_plain: builds the network without the savings, with the same weights, and its run.
        plan: what to measure with; each way runs until its memory has settled before anything counts, whatever
            `warmup` says.
        tick: called after each run that counts, and after each start of a way.
    """
    ours, plain = _Way(make_ours, plan, plain=False), _Way(make_plain, plan, plain=True)
    ways = {OURS: ours, PLAIN: plain}
    ours.start()
    tick()
    ours.run = None
    plain.start()
    tick()
    ours.start()
    tick()
    order: list[str] = []

    def timed(name: str, way: _Way) -> Callable[[], float]:
        def measure() -> float:
            order.append(name)
            return way.once()

        return measure

    latencies = in_turn({name: timed(name, way) for name, way in ways.items()}, plan.iterations, tick)
    splits = in_turn({name: way.split for name, way in ways.items()}, plan.split_iterations, tick)
    assert ours.run is not None
    data_seconds = ours.run.data_seconds()
    timings = {
        name: timing_of(ours.run, latencies[name], splits[name], way.peak, data_seconds=data_seconds)
        for name, way in ways.items()
    }
    medians = {name: median(seconds) * 1000 for name, seconds in latencies.items()}
    return Comparison(
        ours=timings[OURS],
        plain=timings[PLAIN],
        latency_median_ms=medians,
        speed_up=medians[PLAIN] / medians[OURS],
        memory_ratio=None if ours.peak is None or plain.peak is None else plain.peak / ours.peak,
        attention={name: way.attention for name, way in ways.items()},
        order=order,
        agreement=_agreement(ours.first_result, plain.first_result),
    )


def _agreement(ours: list[Detections] | float, plain: list[Detections] | float) -> dict[str, Any]:
    """How much two results differ: of training steps their losses, else their detections."""
    if isinstance(ours, float) or isinstance(plain, float):
        losses = {"loss_ours": ours, "loss_plain": plain}
        assert isinstance(ours, float)
        assert isinstance(plain, float)
        return {**losses, "relative_difference": abs(ours - plain) / max(abs(plain), 1e-300)}
    return compare_detections(ours, plain)


def compare_detections(ours: Sequence[Detections], plain: Sequence[Detections]) -> dict[str, Any]:
    """How much two sets of detections of the same images differ.

    Args:
        ours: one entry an image.
        plain: likewise.

    Returns:
        detections_ours, detections_plain: how many; labels_equal: whether label for label in order of score;
        unmatched: detections of ours without one of the same label, box (within a pixel) and score (within 0.001);
        largest_box_difference_px, largest_score_difference: over those that have one, None without any.
    """
    unmatched, boxes, scores = 0, [0.0], [0.0]
    for left, right in zip(ours, plain, strict=True):
        for box, score, label in zip(left.boxes, left.scores, left.labels, strict=True):
            score_gaps = (right.scores - score).abs()
            near = (right.labels == label) & (score_gaps <= SAME_SCORE)
            box_gaps = (right.boxes - box).abs().amax(1)
            box_gaps[~near] = torch.inf
            if not len(box_gaps) or box_gaps.min() > SAME_BOX_PX:
                unmatched += 1
                continue
            boxes.append(float(box_gaps.min()))
            scores.append(float(score_gaps[box_gaps.argmin()]))
    counts = [sum(len(image.scores) for image in found) for found in (ours, plain)]
    paired = len(boxes) > 1
    return {
        "detections_ours": counts[0],
        "detections_plain": counts[1],
        "labels_equal": all(torch.equal(a.labels, b.labels) for a, b in zip(ours, plain, strict=True)),
        "unmatched": unmatched,
        "largest_box_difference_px": max(boxes) if paired else None,
        "largest_score_difference": max(scores) if paired else None,
    }
