"""Compares the optimized network with plain PyTorch in one process: speed, memory, and whether results agree.

Plain is what published code does without its compiled operator: deformable attention by `grid_sample` level by level,
and a network that is built for training and used unchanged. Both networks have the same weights and images. They take
turns, so that other load on the machine affects both, and their results must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from codetr_cli.benchmark.model import BenchmarkSpec, Timing, Workload, summarize
from codetr_cli.models.postprocess import Detections
from codetr_cli.ops.deform_attn import active_backend, use_backend
from codetr_cli.runtime.timing import Tick, in_turn, peak_memory, reset_peak_memory

OURS, PLAIN = "ours", "plain"
PLAIN_BACKEND = "reference"

SAME_BOX_PX = 1.0
SAME_SCORE = 1e-3


@dataclass(frozen=True)
class Comparison:
    """Results of both networks.

    Attributes:
        ours: optimized. Peak memory is that of the whole process, libraries included, from the network's first run on;
            it is measured before the plain network ran: memory that is not returned to the system would count.
        plain: likewise, after our network was freed.
        latency_median_ms: of each network.
        speed_up: plain over ours, of these medians.
        memory_ratio: plain over ours, of the peaks; None where they are unknown.
        attention: backend of deformable attention, of each network.
        order: names in the order of the measured runs.
        agreement: difference between the first results of both.
    """

    ours: Timing
    plain: Timing
    latency_median_ms: dict[str, float]
    speed_up: float
    memory_ratio: float | None
    attention: dict[str, str]
    order: list[str]
    agreement: dict[str, Any]


class _Variant:
    """One of the two networks: its memory is measured alone in the process, then its time in turn with the other."""

    def __init__(self, make: Callable[[], Workload], spec: BenchmarkSpec, *, plain: bool) -> None:
        self.make, self.spec, self.plain = make, spec, plain
        self.attention = PLAIN_BACKEND if plain else active_backend(spec.device)
        self.workload: Workload | None = None
        self.peak: int | None = None
        self.first_result: list[Detections] | float = 0.0

    def start(self) -> None:
        """Builds the network and runs it until its memory has settled; the first call keeps the peak."""
        self.workload = self.make()
        torch.manual_seed(0)  # the same random numbers in the first training step
        known = reset_peak_memory(self.spec.device)
        self.once()
        result = self.workload.result
        for _ in range(max(self.workload.settling_runs, self.spec.warmup) - 1):
            self.once()
        if self.peak is None:
            self.peak = peak_memory(self.spec.device) if known else None
            self.first_result = result

    def once(self) -> float:
        """Seconds of one run."""
        assert self.workload is not None
        with self._backend():
            return self.workload.once()

    def split(self) -> dict[str, float]:
        """Seconds of the stages of one run."""
        assert self.workload is not None
        with self._backend():
            return self.workload.split()

    def _backend(self) -> AbstractContextManager[None]:
        return use_backend(PLAIN_BACKEND) if self.plain else nullcontext()


def compare(
    make_ours: Callable[[], Workload],
    make_plain: Callable[[], Workload],
    spec: BenchmarkSpec,
    tick: Tick = lambda: None,
) -> Comparison:
    """Measures both networks.

    Args:
        make_ours: builds the optimized network; called twice, because the network is freed while the memory of the
            plain one is measured.
        make_plain: builds the network without optimizations, with the same weights.
        spec: what to measure. Each network runs until its memory has settled before the measurement, whatever `warmup`
            is.
        tick: called `spec.comparison_ticks` times.
    """
    ours, plain = _Variant(make_ours, spec, plain=False), _Variant(make_plain, spec, plain=True)
    variants = {OURS: ours, PLAIN: plain}
    ours.start()
    tick()
    ours.workload = None
    plain.start()
    tick()
    ours.start()
    tick()
    order: list[str] = []

    def recorded(name: str, variant: _Variant) -> Callable[[], float]:
        def once() -> float:
            order.append(name)
            return variant.once()

        return once

    latencies = in_turn({name: recorded(name, variant) for name, variant in variants.items()}, spec.iterations, tick)
    splits = in_turn({name: variant.split for name, variant in variants.items()}, spec.split_iterations, tick)
    assert ours.workload is not None
    data_seconds = ours.workload.data_seconds()
    timings = {
        name: summarize(ours.workload, latencies[name], splits[name], variant.peak, data_seconds=data_seconds)
        for name, variant in variants.items()
    }
    medians = {name: median(seconds) * 1000 for name, seconds in latencies.items()}
    return Comparison(
        ours=timings[OURS],
        plain=timings[PLAIN],
        latency_median_ms=medians,
        speed_up=medians[PLAIN] / medians[OURS],
        memory_ratio=None if ours.peak is None or plain.peak is None else plain.peak / ours.peak,
        attention={name: variant.attention for name, variant in variants.items()},
        order=order,
        agreement=_agreement(ours.first_result, plain.first_result),
    )


def _agreement(ours: list[Detections] | float, plain: list[Detections] | float) -> dict[str, Any]:
    """Difference between two results: losses of training steps, or detections."""
    if isinstance(ours, float):
        assert isinstance(plain, float)
        difference = abs(ours - plain) / max(abs(plain), 1e-300)
        return {"loss_ours": ours, "loss_plain": plain, "relative_difference": difference}
    assert not isinstance(plain, float)
    return compare_detections(ours, plain)


def compare_detections(ours: Sequence[Detections], plain: Sequence[Detections]) -> dict[str, Any]:
    """Difference between two sets of detections on the same images, one entry per image.

    Returns:
        detections_ours, detections_plain: counts; labels_equal: whether the labels are equal in order of score;
        unmatched: detections of ours without one of the same label, box (within a pixel) and score (within 0.001);
        largest_box_difference_px, largest_score_difference: over the matched ones, None without any.
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
    counts = [sum(len(image.scores) for image in detections) for detections in (ours, plain)]
    matched = len(boxes) > 1
    return {
        "detections_ours": counts[0],
        "detections_plain": counts[1],
        "labels_equal": all(torch.equal(a.labels, b.labels) for a, b in zip(ours, plain, strict=True)),
        "unmatched": unmatched,
        "largest_box_difference_px": max(boxes) if matched else None,
        "largest_score_difference": max(scores) if matched else None,
    }
