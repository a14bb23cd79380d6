"""What runs on the emulated GPU: training steps, evaluated batches, predictions, on random images and weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from codetr_cli.benchmark.model import BenchmarkSpec, TrainingWorkload
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch, normalize
from codetr_cli.evaluation.evaluator import run_detector
from codetr_cli.evaluation.request import EvalRequest, expects_masks
from codetr_cli.evaluation.results import LocalCollector
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.inference.detector import Detector
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.inference.prediction import Prediction
from codetr_cli.losses import assigners
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.runtime.synthetic import randomize_weights, synthetic_batch
from tests.strict.recorder import GPU

STAGES = ("forward", "backward", "update")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One batch.

    Attributes:
        size: (height, width) of the batch in pixels.
        images: in the batch.
        precision: as for the commands.
        padded: the last image is smaller than the batch.
        objects: per training image.
        optimized: evaluation with the network as `codetr eval` loads it.
    """

    size: tuple[int, int]
    images: int = 2
    precision: str = "fp32"
    padded: bool = False
    objects: int = 7
    optimized: bool = True


@dataclass
class StageCounts:
    """Kernels and waits of each stage of a training step, by line."""

    kernel_lines: dict[str, Counter] = field(default_factory=dict)
    wait_lines: dict[str, Counter] = field(default_factory=dict)

    def add(self, stage: str) -> None:
        """Takes what was counted since the last stage."""
        kernels, waits = Counter(GPU.kernels), GPU.waits
        for lines in self.kernel_lines.values():
            kernels -= lines
        for lines in self.wait_lines.values():
            waits -= lines
        self.kernel_lines[stage], self.wait_lines[stage] = kernels, waits

    @property
    def kernels(self) -> dict[str, int]:
        """Their sum."""
        return {stage: sum(lines.values()) for stage, lines in self.kernel_lines.items()}

    @property
    def waits(self) -> dict[str, int]:
        """Their sum."""
        return {stage: sum(lines.values()) for stage, lines in self.wait_lines.items()}


def random_network(settings: Settings) -> CoDETR:
    """The same random network for each call."""
    torch.manual_seed(0)
    model = build_model(settings.model)
    randomize_weights(model)
    return model


def training_step(
    model: CoDETR,
    settings: Settings,
    work: Work,
    device: torch.device,
    *,
    update: bool = True,
    warm: bool = False,
) -> tuple[TrainingWorkload, StageCounts]:
    """A forward and backward pass, and an update of the weights; counts start with the forward pass.

    The update runs twice, and only the second one counts: the first one creates the optimizer's state. `warm` runs the
    forward pass before it counts too: the first one computes the constants of these sizes.
    """
    spec = BenchmarkSpec(
        size=work.size, batch=work.images, device=device, precision=work.precision, warmup=0, iterations=1,
        split_iterations=1, objects=work.objects,
    )  # fmt: skip
    torch.manual_seed(7)
    workload = TrainingWorkload(model, settings, spec)
    batch = _batch(settings, work, training=True).to(device)
    data = settings.data
    workload.batch, workload.images = batch, normalize(batch.images, batch.padding_mask, data.mean, data.std)
    if warm:
        with GPU.paused():
            workload._forward()
    torch.manual_seed(3)
    counts = StageCounts()
    if device.type != "cpu":
        GPU.clear()
    # A CPU draws samples in another way: it must take the same.
    with mock.patch.object(assigners, "_one_by_one", return_value=False):
        for stage, run_stage in zip(STAGES[: 3 if update else 2], workload._stages(), strict=False):
            if stage == "update":
                with GPU.paused():
                    run_stage()
            run_stage()
            counts.add(stage)
    return workload, counts


def evaluated_batch(model: CoDETR, settings: Settings, work: Work, device: torch.device) -> DetectionTable:
    """The detections of two equal batches of an evaluation; counts are of the second one."""
    if work.optimized:
        model = optimize_for_inference(model)
    ids = list(range(1, settings.model.num_classes + 1))
    nothing: Any = None  # is scored
    request = EvalRequest(
        settings=settings,
        ground_truth=nothing,
        annotations_path=Path("none.json"),
        category_ids=ids,
        postprocess=build_postprocess(settings.test),
        masks=expects_masks(settings),
        precision=work.precision,
    )

    def batches() -> Any:
        for _ in range(2):
            batch = _batch(settings, work, training=False)
            batch = batch.pin_memory() if device.type == "cuda" else batch
            if device.type != "cpu":
                GPU.clear()
            yield batch
        if device.type != "cpu":
            GPU.active = False  # the end of an evaluation belongs to no batch

    collector = LocalCollector()
    run_detector(model, batches(), request, collector, device=device)
    (results,) = collector.gather()
    return results.detections


def predicted_image(model: CoDETR, settings: Settings, work: Work, device: torch.device) -> Prediction:
    """The second prediction of one image of this size; counts are of that alone."""
    sides = [f"test.short_side={min(work.size)}", f"test.long_side={max(work.size)}"]
    settings = apply_overrides(settings, sides)
    if work.optimized:
        model = optimize_for_inference(model)
    ids = list(range(1, settings.model.num_classes + 1))
    loaded = LoadedModel(
        model=model,
        postprocess=build_postprocess(settings.test),
        settings=settings,
        class_names=[f"class {number}" for number in ids],
        category_ids=ids,
        path=None,
    )
    detector = Detector(loaded, device=device, precision=work.precision)
    image = np.random.default_rng(0).integers(0, 256, (*work.size, 3), dtype=np.uint8)
    detector.predict(image, score=0.0)
    if device.type != "cpu":
        GPU.clear()
    return detector.predict(image, score=0.0)


def _batch(settings: Settings, work: Work, *, training: bool) -> Batch:
    """A random batch in host memory, whose last image may be smaller."""
    batch = synthetic_batch(
        work.size, work.images, objects=work.objects if training else 0, num_classes=settings.model.num_classes,
        masks=settings.learns_masks and training,
    )  # fmt: skip
    if not work.padded:
        return batch
    height, width = int(work.size[0] * 0.8) // 2 * 2, int(work.size[1] * 0.7) // 2 * 2
    target = batch.targets[-1]
    target["size"] = target["norm_size"] = target["pad_size"] = (height, width)
    target["boxes"][:, 0::2].clamp_(max=width)
    target["boxes"][:, 1::2].clamp_(max=height)
    if "masks" in target:
        target["masks"] = target["masks"][:, :height, :width].contiguous()
    batch.padding_mask[-1, height:] = True
    batch.padding_mask[-1, :, width:] = True
    return batch
