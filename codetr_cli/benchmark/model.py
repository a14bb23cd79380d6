"""Measures speed and memory: images per second and where the time goes, in detection and in a training step.

Images and weights may be random: neither changes the work of the network. Throughput and latency are measured without
any instrument inside the network; the split into stages comes from runs of its own, with a synchronisation around each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import normalize
from codetr_cli.data.transforms import ResizeShortLong, ResizeToCanvas, build_transforms
from codetr_cli.inference.pipeline import TimedPostProcess, inference
from codetr_cli.losses.build import build_objective
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.runtime.precision import autocast_dtype, resolve_precision
from codetr_cli.runtime.synthetic import data_seconds, synthetic_batch
from codetr_cli.runtime.timing import Tick, in_turn, peak_memory, reset_peak_memory, seconds_of, timed_children
from codetr_cli.training.optim import build_optimizer, clip_gradients

STAGES = ("backbone", "neck", "encoder", "decoder")
"""Children of the network that are timed by name; the rest is query selection, heads and position encodings."""

TRAINING_OBJECTS = 7
"""Objects per synthetic training image: COCO has 7.3 on average."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure with.

    Attributes:
        size: (height, width) of the network's input in pixels.
        batch: images at once.
        device: where the network is.
        precision: "auto", "fp32", "bf16" or "fp16".
        warmup: runs before anything counts.
        iterations: runs that count for throughput and latency.
        split_iterations: runs that count for the split into stages.
        objects: boxes in each training image.
    """

    size: tuple[int, int]
    batch: int
    device: torch.device
    precision: str
    warmup: int
    iterations: int
    split_iterations: int
    objects: int = TRAINING_OBJECTS

    def resolved_precision(self, *, training: bool) -> str:
        """The arithmetic that is used: training chooses by the device, detection is fp32 unless told otherwise."""
        dtype = autocast_dtype(self.precision if training else resolve_precision(self.precision), self.device)
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]

    @property
    def ticks(self) -> int:
        """How often the measurement reports progress."""
        return self.warmup + self.iterations + self.split_iterations


@dataclass(frozen=True)
class Latency:
    """Wall time of one run over the batch, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Attributes:
        images_per_second: batch size over mean latency.
        latency_ms: of a batch, from normalised images on the device to detections, or of a training step without data.
        stages_ms: mean time of each stage for a batch; `data` is one process reading, resizing, batching, copying and
            normalising, which in practice happens beside the network.
        peak_memory_bytes: highest memory in use while the counted runs went on: of the GPU's allocator, or of the whole
            process on a CPU; None where unknown.
        memory_of: "gpu" or "process".
    """

    images_per_second: float
    latency_ms: Latency
    stages_ms: dict[str, float]
    peak_memory_bytes: int | None
    memory_of: str


def benchmark_inference(
    model: CoDETR, postprocess: PostProcess, settings: Settings, plan: Plan, tick: Tick = lambda: None
) -> Timing:
    """Times detection.

    Args:
        model: on the plan's device.
        postprocess: as built from the settings.
        settings: mean and std of the input.
        plan: what to measure with.
        tick: called after each run.
    """
    return measure(DetectionRun(model, postprocess, settings, plan), plan, tick)


def benchmark_training(model: CoDETR, settings: Settings, plan: Plan, tick: Tick = lambda: None) -> Timing:
    """Times training steps on synthetic images, with everything a real step does but reading from your data.

    Args:
        model: on the plan's device, built with its auxiliary heads; its weights change.
        settings: of the objective and the optimizer.
        plan: what to measure with; its `batch` is one micro batch, and one micro batch is a step.
        tick: called after each step.
    """
    return measure(TrainingRun(model, settings, plan), plan, tick)


class DetectionRun:
    """Detection of one batch of synthetic images, again and again.

    Args:
        model: on the plan's device.
        postprocess: as built from the settings.
        settings: mean and std of the input.
        plan: what to measure with.

    Attributes:
        result: the last run's detections, on the CPU.
    """

    STAGES = (*STAGES, "heads and query selection", "post-processing")
    SETTLED = 1  # runs after which memory no longer grows

    def __init__(self, model: CoDETR, postprocess: PostProcess, settings: Settings, plan: Plan) -> None:
        self.model, self.postprocess, self.settings, self.plan = model, postprocess, settings, plan
        self.batch = synthetic_batch(plan.size, plan.batch, objects=0).to(plan.device)
        self.images = normalize(self.batch.images, self.batch.padding_mask, settings.data.mean, settings.data.std)
        self.result: list[Detections] = []

    def once(self) -> float:
        """Seconds from normalised images on the device to detections on the CPU."""
        with inference(self.model, self.plan.device, self.plan.precision):
            return seconds_of(lambda: self._detect(self.postprocess), self.plan.device)

    def split(self) -> dict[str, float]:
        """Seconds of each stage of one run."""
        timed = TimedPostProcess.around(self.postprocess)
        with (
            inference(self.model, self.plan.device, self.plan.precision),
            timed_children(self.model, STAGES, self.plan.device) as seconds,
        ):
            total = seconds_of(lambda: self._detect(timed), self.plan.device)
        rest = total - sum(seconds.values()) - sum(timed.seconds)
        return {**seconds, "heads and query selection": max(0.0, rest), "post-processing": sum(timed.seconds)}

    def data_seconds(self) -> float:
        """Seconds that one process needs to prepare the batch."""
        size = self.plan.size
        on_canvas = size == (self.settings.test.canvas,) * 2
        transform = (
            ResizeToCanvas(canvas=size[0])
            if on_canvas
            else ResizeShortLong(short_sides=(min(size),), long_side=max(size))
        )
        return data_seconds(self.settings, transform, size, self.plan.batch, self.plan.device)

    def _detect(self, postprocess: PostProcess) -> None:
        found = self.model.detect(self.images, self.batch.padding_mask, self.batch.targets, postprocess)
        self.result = [detections.cpu() for detections in found]  # waits for the device


class TrainingRun:
    """Training steps on one batch of synthetic images: forward, backward and optimizer.

    Args:
        model: on the plan's device, built with its auxiliary heads; its weights change.
        settings: of the objective and the optimizer.
        plan: what to measure with.

    Attributes:
        result: the last step's total loss.
    """

    STAGES = ("forward", "backward", "optimizer")
    SETTLED = 2  # the first step ends with the optimizer's states, which the second has from its start

    def __init__(self, model: CoDETR, settings: Settings, plan: Plan) -> None:
        self.model, self.settings, self.plan = model.train(), settings, plan
        num_classes = settings.model.num_classes
        batch = synthetic_batch(
            plan.size, plan.batch, objects=plan.objects, num_classes=num_classes, masks=settings.learns_masks
        )
        self.batch = batch.to(plan.device)
        self.images = normalize(self.batch.images, self.batch.padding_mask, settings.data.mean, settings.data.std)
        self.dtype = autocast_dtype(plan.precision, plan.device)
        self.objective: nn.Module = build_objective(model, settings.train.loss)
        self.optimizer = build_optimizer(model, settings.train)
        self.scaler = torch.amp.GradScaler(plan.device.type, enabled=self.dtype is torch.float16)
        self.total = torch.zeros(())

    @property
    def result(self) -> float:
        """The last step's total loss."""
        return float(self.total)

    def once(self) -> float:
        """Seconds of a step."""

        def step() -> None:
            for part in self._parts():
                part()

        return seconds_of(step, self.plan.device)

    def split(self) -> dict[str, float]:
        """Seconds of each stage of one step."""
        return {name: seconds_of(part, self.plan.device) for name, part in zip(self.STAGES, self._parts(), strict=True)}

    def data_seconds(self) -> float:
        """Seconds that one process needs to prepare the batch."""
        transform = build_transforms(self.settings.data, self.settings.test, train=True)
        return data_seconds(self.settings, transform, self.plan.size, self.plan.batch, self.plan.device)

    def _parts(self) -> tuple[Callable[[], None], ...]:
        """The step's stages, to be called in this order."""
        return self._forward, self._backward, self._update

    def _forward(self) -> None:
        with torch.autocast(self.plan.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            losses = self.objective(self.images, self.batch.padding_mask, self.batch.targets)
        self.total = torch.stack(list(losses.values())).sum()

    def _backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(self.total))
        self.total = self.total.detach()

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        clip_gradients(parameters, self.settings.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()


Run = DetectionRun | TrainingRun


def measure(run: Run, plan: Plan, tick: Tick = lambda: None) -> Timing:
    """Times a run; arguments as for `benchmark_inference`."""
    for _ in range(plan.warmup):
        run.once()
        tick()
    reset_peak_memory(plan.device)
    latencies = in_turn({"run": run.once}, plan.iterations, tick)["run"]
    peak = peak_memory(plan.device)
    splits = in_turn({"run": run.split}, plan.split_iterations, tick)["run"]
    return timing_of(run, latencies, splits, peak, data_seconds=run.data_seconds())


def timing_of(
    run: Run, latencies: list[float], splits: list[dict[str, float]], peak: int | None, *, data_seconds: float
) -> Timing:
    """Sums up what was measured of a run.

    Args:
        run: what ran.
        latencies: seconds of each run that counts.
        splits: seconds of the stages of each run that was split.
        peak: highest memory in use, bytes.
        data_seconds: that preparing the batch takes.
    """
    milliseconds = np.array(latencies) * 1000
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99)).tolist()
    stages = {name: float(np.mean([split[name] for split in splits])) for name in run.STAGES}
    return Timing(
        images_per_second=run.plan.batch * 1000 / float(milliseconds.mean()),
        latency_ms=Latency(mean=float(milliseconds.mean()), p50=p50, p90=p90, p99=p99),
        stages_ms={name: seconds * 1000 for name, seconds in {"data": data_seconds, **stages}.items()},
        peak_memory_bytes=peak,
        memory_of="gpu" if run.plan.device.type == "cuda" else "process",
    )
