"""Measures speed and memory: images per second and the time of each stage, of inference and of training steps.

Images and weights may be random: neither changes the work of the network. Throughput and latency are measured without
hooks in the network. The split into stages comes from separate runs, with a synchronization around each stage.
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
from codetr_cli.inference.cuda_graph import GraphedNetwork, Network, with_cuda_graphs
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.pipeline import TimedPostProcess, inference
from codetr_cli.losses.build import build_objective
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.runtime.precision import (
    DTYPES,
    float32_arithmetic,
    resolve_precision,
    resolve_training_precision,
)
from codetr_cli.runtime.synthetic import data_seconds, synthetic_batch
from codetr_cli.runtime.timing import Tick, in_turn, peak_memory, reset_peak_memory, seconds_of, timed_children
from codetr_cli.training.optim import build_optimizer, clip_gradients

STAGES = ("backbone", "neck", "encoder", "decoder")
"""Children of the network that are timed; the rest is query selection, heads and position encodings."""

TRAINING_OBJECTS = 7
"""Objects per synthetic training image: COCO has 7.3 on average."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """What to measure.

    Attributes:
        size: (height, width) of the network's input in pixels.
        batch: images per batch.
        device: where the network is.
        precision: "auto", "fp32", "tf32", "bf16" or "fp16".
        warmup: runs before the measurement.
        iterations: measured runs, for throughput and latency.
        split_iterations: measured runs for the split into stages.
        objects: boxes per training image.
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
        """The precision that is used: "auto" depends on the device in training and means fp32 in inference."""
        chosen = self.precision if training else resolve_precision(self.precision)
        return resolve_training_precision(chosen, self.device)

    @property
    def ticks(self) -> int:
        """How often `measure` reports progress."""
        return self.warmup + self.iterations + self.split_iterations

    @property
    def comparison_ticks(self) -> int:
        """How often `codetr_cli.benchmark.compare.compare` reports progress."""
        return 3 + 2 * (self.iterations + self.split_iterations)


@dataclass(frozen=True)
class Latency:
    """Wall time of one run on the batch, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Timing:
    """Results of a measurement.

    Attributes:
        images_per_second: batch size over mean latency.
        latency_ms: of a batch, from normalized images on the device to detections, or of a training step without data.
        stages_ms: mean time of each stage for a batch; `data` is one process that reads, resizes, batches, copies and
            normalizes, in practice in parallel with the network.
        peak_memory_bytes: peak during the measured runs: of the GPU's allocator, or of the whole process on a CPU; None
            where unknown.
        memory_of: "gpu" or "process".
    """

    images_per_second: float
    latency_ms: Latency
    stages_ms: dict[str, float]
    peak_memory_bytes: int | None
    memory_of: str


class InferenceWorkload:
    """Inference on one batch of synthetic images.

    Args:
        model: on the spec's device.
        postprocess: as built from the settings.
        settings: mean and std of the input.
        spec: what to measure.

    Attributes:
        result: the last run's detections, on the CPU.
        settling_runs: after which memory no longer grows; the second of a graphed network records a graph.
    """

    STAGES: tuple[str, ...] = (*STAGES, "heads and query selection", "post-processing")

    def __init__(
        self, model: CoDETR | ExportedNetwork, postprocess: PostProcess, settings: Settings, spec: BenchmarkSpec
    ) -> None:
        self.model, self.postprocess, self.settings, self.spec = model, postprocess, settings, spec
        self.batch = synthetic_batch(spec.size, spec.batch, objects=0).to(spec.device)
        self.images = normalize(self.batch.images, self.batch.padding_mask, settings.data.mean, settings.data.std)
        self.network = with_cuda_graphs(model, settings.test, spec.device)
        self.settling_runs = 3 if isinstance(self.network, GraphedNetwork) else 1
        self.result: list[Detections] = []

    @property
    def cuda_graphs(self) -> int:
        """Number of recorded graphs that the network replays."""
        return len(self.network) if isinstance(self.network, GraphedNetwork) else 0

    def once(self) -> float:
        """Seconds from normalized images on the device to detections on the CPU."""
        with inference(self.model, self.spec.device, self.spec.precision):
            return seconds_of(lambda: self._detect(self.network, self.postprocess), self.spec.device)

    def split(self) -> dict[str, float]:
        """Seconds of each stage of one run, without CUDA graphs."""
        timed = TimedPostProcess.around(self.postprocess)
        with (
            inference(self.model, self.spec.device, self.spec.precision),
            timed_children(self.model, STAGES, self.spec.device) as seconds,
        ):
            total = seconds_of(lambda: self._detect(self.model, timed), self.spec.device)
        rest = total - sum(seconds.values()) - sum(timed.seconds)
        return {**seconds, "heads and query selection": max(0.0, rest), "post-processing": sum(timed.seconds)}

    def data_seconds(self) -> float:
        """Seconds that one process takes to prepare the batch."""
        size = self.spec.size
        on_canvas = size == (self.settings.test.canvas,) * 2
        transform = (
            ResizeToCanvas(canvas=size[0])
            if on_canvas
            else ResizeShortLong(short_sides=(min(size),), long_side=max(size))
        )
        return data_seconds(self.settings, transform, size, self.spec.batch, self.spec.device)

    def _detect(self, network: Network, postprocess: PostProcess) -> None:
        detections = network.detect(self.images, self.batch.padding_mask, self.batch.targets, postprocess)
        self.result = [image.cpu() for image in detections]  # waits for the device


class TrainingWorkload:
    """Training steps on one batch of synthetic images: forward, backward and optimizer.

    Args:
        model: on the spec's device, built with its auxiliary heads; its weights change.
        settings: of the objective and the optimizer.
        spec: what to measure.

    Attributes:
        result: the last step's loss.
    """

    STAGES = ("forward", "backward", "optimizer")
    settling_runs = 2  # the first step creates the optimizer's state, which the second has from its start

    def __init__(self, model: CoDETR, settings: Settings, spec: BenchmarkSpec) -> None:
        self.model, self.settings, self.spec = model.train(), settings, spec
        num_classes = settings.model.num_classes
        batch = synthetic_batch(
            spec.size, spec.batch, objects=spec.objects, num_classes=num_classes, masks=settings.learns_masks
        )
        self.batch = batch.to(spec.device)
        self.images = normalize(self.batch.images, self.batch.padding_mask, settings.data.mean, settings.data.std)
        self.precision = spec.resolved_precision(training=True)
        self.dtype = DTYPES[self.precision]
        self.objective: nn.Module = build_objective(model, settings.train.loss)
        self.optimizer = build_optimizer(model, settings.train)
        self.scaler = torch.amp.GradScaler(spec.device.type, enabled=self.dtype is torch.float16)
        self.loss = torch.zeros(())

    @property
    def result(self) -> float:
        """The last step's loss."""
        return float(self.loss)

    def once(self) -> float:
        """Seconds of a step."""

        def step() -> None:
            for run_stage in self._stages():
                run_stage()

        with float32_arithmetic(self.precision, self.spec.device):
            return seconds_of(step, self.spec.device)

    def split(self) -> dict[str, float]:
        """Seconds of each stage of one step."""
        stages = zip(self.STAGES, self._stages(), strict=True)
        with float32_arithmetic(self.precision, self.spec.device):
            return {name: seconds_of(run_stage, self.spec.device) for name, run_stage in stages}

    def data_seconds(self) -> float:
        """Seconds that one process takes to prepare the batch."""
        transform = build_transforms(self.settings.data, self.settings.test, train=True)
        return data_seconds(self.settings, transform, self.spec.size, self.spec.batch, self.spec.device)

    def _stages(self) -> tuple[Callable[[], None], ...]:
        """The stages of a step, in order."""
        return self._forward, self._backward, self._update

    def _forward(self) -> None:
        with torch.autocast(self.spec.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            losses = self.objective(self.images, self.batch.padding_mask, self.batch.targets)
        self.loss = torch.stack(list(losses.values())).sum()

    def _backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(self.loss))
        self.loss = self.loss.detach()

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        clip_gradients(parameters, self.settings.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()


Workload = InferenceWorkload | TrainingWorkload


def measure(workload: Workload, tick: Tick = lambda: None) -> Timing:
    """Times a workload; `tick` is called after each run, `spec.ticks` times."""
    spec = workload.spec
    for _ in range(spec.warmup):
        workload.once()
        tick()
    reset_peak_memory(spec.device)
    latencies = in_turn({"run": workload.once}, spec.iterations, tick)["run"]
    peak = peak_memory(spec.device)
    splits = in_turn({"run": workload.split}, spec.split_iterations, tick)["run"]
    return summarize(workload, latencies, splits, peak, data_seconds=workload.data_seconds())


def summarize(
    workload: Workload, latencies: list[float], splits: list[dict[str, float]], peak: int | None, *, data_seconds: float
) -> Timing:
    """The results of a measurement.

    Args:
        workload: what ran.
        latencies: seconds of each measured run.
        splits: seconds of the stages, of each run that was split.
        peak: peak memory in bytes.
        data_seconds: of preparing the batch.
    """
    milliseconds = np.array(latencies) * 1000
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99)).tolist()
    stages = {name: float(np.mean([split[name] for split in splits])) for name in workload.STAGES}
    return Timing(
        images_per_second=workload.spec.batch * 1000 / float(milliseconds.mean()),
        latency_ms=Latency(mean=float(milliseconds.mean()), p50=p50, p90=p90, p99=p99),
        stages_ms={name: seconds * 1000 for name, seconds in {"data": data_seconds, **stages}.items()},
        peak_memory_bytes=peak,
        memory_of="gpu" if workload.spec.device.type == "cuda" else "process",
    )
