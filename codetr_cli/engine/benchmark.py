"""Measures speed and memory: images per second and where the time goes, in detection and in a training step.

Images and weights may be random: neither changes the work of the network. Throughput and latency are measured without
any instrument inside the network; the split into stages comes from runs of its own, with a synchronisation around each.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from codetr_cli import __version__
from codetr_cli.config import Settings
from codetr_cli.data.batch import Batch, collate, normalize
from codetr_cli.data.images import read_image
from codetr_cli.data.transforms import AnyTransform, ResizeShortLong, Sample, build_transforms
from codetr_cli.engine.environment import describe
from codetr_cli.engine.inference import TimedPostProcess, inference, resolve_precision, synchronize
from codetr_cli.engine.optim import autocast_dtype, build_optimizer, clip_gradients
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.postprocess import PostProcess
from codetr_cli.ops.deform_attn import active_backend

try:
    import resource
except ImportError:  # Windows does not tell a process its peak memory this way
    resource = None  # type: ignore[assignment]

STAGES = ("backbone", "neck", "encoder", "decoder")
"""Children of the network that are timed by name; the rest is query selection, heads and position encodings."""

TRAINING_OBJECTS = 7
"""Objects per synthetic training image: COCO has 7.3 on average."""

SOURCE_SHORT_SIDE = 480
"""Short side of the photograph that the data stage reads; most of COCO's have 427 or 480."""

Tick = Callable[[], object]


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
    """

    size: tuple[int, int]
    batch: int
    device: torch.device
    precision: str
    warmup: int
    iterations: int
    split_iterations: int

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
        peak_memory_bytes: highest memory in use: of the GPU's allocator, or of the whole process on a CPU.
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
    batch = synthetic_batch(plan, objects=0).to(plan.device)
    images = normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)

    def run(chosen: PostProcess) -> None:
        found = model.detect(images, batch.padding_mask, batch.targets, chosen)
        _ = [detections.cpu() for detections in found]  # waits for the device

    with inference(model, plan.device, plan.precision):
        for _ in range(plan.warmup):
            run(postprocess)
            tick()
        reset_peak_memory(plan.device)
        latencies = [_seconds(lambda: run(postprocess), plan.device, tick) for _ in range(plan.iterations)]
        peak = peak_memory(plan.device)
        stages = _split_inference(model, postprocess, run, plan, tick)
    transform = ResizeShortLong(short_sides=(min(plan.size),), long_side=max(plan.size))
    return _timing(latencies, {"data": _data_seconds(settings, transform, plan), **stages}, plan, peak)


def _split_inference(
    model: CoDETR, postprocess: PostProcess, run: Callable[[PostProcess], None], plan: Plan, tick: Tick
) -> dict[str, float]:
    """Mean seconds of each stage of the network and of the post-processing."""
    timed = TimedPostProcess.around(postprocess)
    with _timed_children(model, plan.device) as seconds:
        total = sum(_seconds(lambda: run(timed), plan.device, tick) for _ in range(plan.split_iterations))
    seconds = {**seconds, "heads and query selection": 0.0, "post-processing": sum(timed.seconds)}
    seconds["heads and query selection"] = max(0.0, total - sum(seconds.values()))
    return {name: value / plan.split_iterations for name, value in seconds.items()}


def benchmark_training(model: CoDETR, settings: Settings, plan: Plan, tick: Tick = lambda: None) -> Timing:
    """Times training steps on synthetic images, with everything a real step does but reading from your data.

    Args:
        model: on the plan's device, built with its auxiliary heads; its weights change.
        settings: of the objective and the optimizer.
        plan: what to measure with; its `batch` is one micro batch, and one micro batch is a step.
        tick: called after each step.
    """
    batch = synthetic_batch(plan, objects=TRAINING_OBJECTS, num_classes=settings.model.num_classes).to(plan.device)
    images = normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)
    step = _TrainingStep(model, settings, plan)
    model.train()
    for _ in range(plan.warmup):
        step.run(images, batch)
        tick()
    reset_peak_memory(plan.device)
    latencies = [_seconds(lambda: step.run(images, batch), plan.device, tick) for _ in range(plan.iterations)]
    peak = peak_memory(plan.device)
    totals = dict.fromkeys(step.STAGES, 0.0)
    for _ in range(plan.split_iterations):
        for name, part in zip(step.STAGES, step.parts(images, batch), strict=True):
            totals[name] += _seconds(part, plan.device)
        tick()
    stages = {name: seconds / plan.split_iterations for name, seconds in totals.items()}
    transform = build_transforms(settings.data, settings.test, train=True)
    return _timing(latencies, {"data": _data_seconds(settings, transform, plan), **stages}, plan, peak)


class _TrainingStep:
    """Forward, backward and optimizer of one micro batch."""

    STAGES = ("forward", "backward", "optimizer")

    def __init__(self, model: CoDETR, settings: Settings, plan: Plan) -> None:
        self.device = plan.device
        self.dtype = autocast_dtype(plan.precision, plan.device)
        self.objective = CollaborativeObjective(model, **settings.train.loss.model_dump())
        self.optimizer = build_optimizer(model, settings.train)
        self.scaler = torch.amp.GradScaler(plan.device.type, enabled=self.dtype is torch.float16)
        self.clip_norm = settings.train.clip_norm
        self.total = torch.zeros(())

    def run(self, images: Tensor, batch: Batch) -> None:
        """The whole step."""
        for part in self.parts(images, batch):
            part()

    def parts(self, images: Tensor, batch: Batch) -> tuple[Callable[[], None], ...]:
        """The step's stages, to be called in this order."""
        return lambda: self._forward(images, batch), self._backward, self._update

    def _forward(self, images: Tensor, batch: Batch) -> None:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            losses = self.objective(images, batch.padding_mask, batch.targets)
        self.total = torch.stack(list(losses.values())).sum()

    def _backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(self.total))
        self.total = self.total.detach()

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        clip_gradients([p for group in self.optimizer.param_groups for p in group["params"]], self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()


# -------------------------------------------------------------------------------------------------------------- inputs


def synthetic_batch(plan: Plan, *, objects: int, num_classes: int = 1) -> Batch:
    """Images of the plan's size without padding, with random objects of at least 8 pixels."""
    height, width = plan.size
    generator = np.random.default_rng(0)
    image = _photograph(height, width, generator)
    samples = []
    for image_id in range(plan.batch):
        corner = generator.random((objects, 2)) * np.array([width, height]) * 0.5
        sides = 8 + generator.random((objects, 2)) * np.array([width, height]) * 0.4
        sample = Sample(
            image=image,
            boxes=np.concatenate([corner, np.minimum(corner + sides, [width, height])], axis=1).astype(np.float32),
            labels=generator.integers(0, num_classes, objects),
            iscrowd=np.zeros(objects, np.int64),
            area=sides.prod(axis=1).astype(np.float32),
        )
        samples.append((image, sample.to_target(image_id=image_id, orig_size=plan.size, pad_divisor=1)))
    return collate(samples)


def _photograph(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth colours with some noise, (h, w, 3) uint8: as hard to decode as a photograph."""
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + generator.integers(-12, 13, (height, width, 3)), 0, 255).astype(np.uint8)


def _data_seconds(settings: Settings, transform: AnyTransform, plan: Plan, repeats: int = 3) -> float:
    """Seconds that one process needs to read, transform, batch, copy and normalise a batch; the median of a few."""
    short = min(plan.size)
    height, width = (max(1, round(side * SOURCE_SHORT_SIDE / short)) for side in plan.size)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="codetr-") as folder:
        path = Path(folder) / "photograph.jpg"
        cv2.imwrite(str(path), _photograph(height, width, generator))

        def prepare() -> None:
            samples = []
            for image_id in range(plan.batch):
                image = read_image(path, max_pixels=settings.data.max_pixels)
                sample = transform(Sample.from_image(image), generator)
                target = sample.to_target(image_id=image_id, orig_size=(height, width), pad_divisor=1)
                samples.append((np.ascontiguousarray(sample.image), target))
            batch = collate(samples).to(plan.device)
            normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)

        prepare()
        return float(np.median([_seconds(prepare, plan.device) for _ in range(repeats)]))


# ----------------------------------------------------------------------------------------------------------- the place


def describe_place(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on beside the network: machine, versions, threads and the attention that runs."""
    machine = describe()
    packages = ("torch", "torchvision", "numpy", "opencv-python-headless", "triton")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "attention": active_backend(device.type),
        "attention_backends": machine.attention,
        "system": machine.system,
        "cpu": cpu_name(),
        "cpus": machine.cpus,
        "memory_bytes": machine.memory_bytes,
        "gpus": [gpu.name for gpu in machine.gpus],
        "built_for": machine.built_for,
        "versions": {
            "codetr": __version__,
            "python": machine.python,
            **{name: machine.packages[name] for name in packages},
        },
    }


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


# ------------------------------------------------------------------------------------------------------ clocks, memory


def _seconds(function: Callable[[], None], device: torch.device, tick: Tick = lambda: None) -> float:
    """Wall time of a call, with the device idle before and after."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    seconds = time.perf_counter() - started
    tick()
    return seconds


@contextmanager
def _timed_children(model: nn.Module, device: torch.device) -> Iterator[dict[str, float]]:
    """Adds up the seconds spent in each stage of the network while the context lasts."""
    seconds = dict.fromkeys(STAGES, 0.0)
    started: dict[str, float] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronize(device)
            started[name] = time.perf_counter()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronize(device)
            seconds[name] += time.perf_counter() - started[name]

        return hook

    handles = []
    for name in STAGES:
        child = getattr(model, name)
        handles += [child.register_forward_pre_hook(before(name)), child.register_forward_hook(after(name))]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of a GPU's peak memory; a process's own peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the GPU allocator's peak since the reset, or the process's peak resident size; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _timing(latencies: list[float], stages: dict[str, float], plan: Plan, peak: int | None) -> Timing:
    milliseconds = np.array(latencies) * 1000
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99)).tolist()
    return Timing(
        images_per_second=plan.batch * 1000 / float(milliseconds.mean()),
        latency_ms=Latency(mean=float(milliseconds.mean()), p50=p50, p90=p90, p99=p99),
        stages_ms={name: seconds * 1000 for name, seconds in stages.items()},
        peak_memory_bytes=peak,
        memory_of="gpu" if plan.device.type == "cuda" else "process",
    )
