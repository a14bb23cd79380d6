"""Stages of `gpu_session.py` that are more than a command: `python benchmarks/gpu_stages.py STAGE --out FILE`.

    parity      losses, gradients and detections of this device against the CPU's, family by family
    profile     kernels, idle share and the most expensive kernels of a training step and of a detection
    waits       operations that made the host wait for the device, by line, beside those the emulated device counts
    memory      peak of training steps, beside what the check before a training predicts
    commands    prepare, train, continue, eval and predict on the demo data set
    exported    fp32 and fp16 files in ONNX Runtime and TensorRT, where those are installed, and a package of PyTorch
                with our kernel: verified and timed

Each writes a JSON object with its figures, and exits with 1 where they are not what they must be.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_cli.benchmark.model import BenchmarkSpec, InferenceWorkload, TrainingWorkload
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import normalize
from codetr_cli.export.options import SUFFIXES
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.build import build_model, build_postprocess
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.runtime.devices import choose_device
from codetr_cli.runtime.precision import float32_arithmetic
from codetr_cli.runtime.synthetic import randomize_weights, synthetic_batch
from codetr_cli.training.memory_check import WorstBatch, measure

REPOSITORY = Path(__file__).resolve().parent.parent

DEFORMABLE = (
    "model.family=co_deformable",
    "model.finest_stride=8",
    "model.num_levels=4",
    "train.loss.class_weight=2.0",
)
NETWORKS = {
    "Co-DINO": (),
    "Co-Deformable-DETR": DEFORMABLE,
    "Co-Deformable-DETR with masks": (*DEFORMABLE, "model.mask.kind=fcn", "model.mask.dim=32"),
    "Co-DINO with masks": ("model.mask.kind=refine", "model.mask.dim=32"),
    "Co-DINO, recomputation": ("model.encoder_checkpointing=2", "model.decoder_checkpointing=true"),
}
"""Small networks that are compared with the CPU: name -> overrides of the tiny preset."""

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-2
"""Relative differences of float32: of a loss, and of a parameter's gradient, as norms. Sums have no common order."""

BOX_TOLERANCE, SCORE_TOLERANCE = 0.1, 1e-3
"""Pixels, and scores, between detections that count as the same."""

TOP_KERNELS = 30
OBJECTS = 7


class HostRandom(RandomSource):
    """The CPU's random numbers on every device, so that a step can be compared with the CPU's.

    The first candidates are sampled: a GPU permutes all boxes of a batch at once, a CPU the candidates of each image.
    """

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return super().uniform(shape, like.new_empty(0, device="cpu")).to(like.device)

    def integers(self, high: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uniform int64 numbers in [0, high)."""
        return super().integers(high, shape, like.new_empty(0, device="cpu")).to(like.device)

    def permutation(self, count: int, like: Tensor) -> Tensor:
        """0 ... count - 1."""
        return torch.arange(count, device=like.device)


def main() -> int:
    """Runs one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", default="cuda", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    parser.add_argument("--folder", type=Path, help="where the commands work")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    figures, ok = STAGES[arguments.stage](arguments, choose_device(arguments.device))
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if ok else 1


# --------------------------------------------------------------------------------------------------------------- parity


def parity(arguments: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], bool]:
    """Every small network, then the published ResNet-50 at a small size."""
    rows = {}
    for name, overrides in list(NETWORKS.items())[: 2 if arguments.quick else None]:
        settings = load_preset("co_dino_tiny", list(overrides))
        rows[name] = compare(settings, device, (96, 128) if arguments.quick else (192, 256))
    if not arguments.quick:
        rows["co_dino_r50"] = compare(load_preset("co_dino_r50"), device, (320, 416))
    return rows, all(row["ok"] for row in rows.values())


def compare(settings: Settings, device: torch.device, size: tuple[int, int]) -> dict[str, Any]:
    """Differences of one network between the device and the CPU, in float32.

    Returns:
        relative differences of the losses and of the gradients (the largest, with names), detections without a
        counterpart, and `ok`.
    """
    torch.manual_seed(0)
    model = build_model(settings.model)
    randomize_weights(model)
    on_cpu, on_device = (step(copy.deepcopy(model), settings, size, torch.device(kind)) for kind in ("cpu", device))
    losses = {name: relative(on_device[0][name], value) for name, value in on_cpu[0].items()}
    gradients = {name: relative(on_device[1][name], value) for name, value in on_cpu[1].items()}
    found = [detections(copy.deepcopy(model), settings, size, torch.device(kind)) for kind in ("cpu", device)]
    unmatched = sum(without_counterpart(*pair) for pair in zip(*found, strict=True))
    worst_loss, worst_gradient = max(losses, key=losses.__getitem__), max(gradients, key=gradients.__getitem__)
    return {
        "loss_difference": losses[worst_loss],
        "worst_loss": worst_loss,
        "gradient_difference": gradients[worst_gradient],
        "worst_gradient": worst_gradient,
        "detections": sum(len(image) for image in found[0]),
        "without_counterpart": unmatched,
        "ok": losses[worst_loss] <= LOSS_TOLERANCE
        and gradients[worst_gradient] <= GRADIENT_TOLERANCE
        and unmatched <= 0.01 * sum(len(image) for image in found[0]),
    }


def step(
    model: CoDETR, settings: Settings, size: tuple[int, int], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of one forward and backward pass, on the CPU."""
    objective = build_objective(model.to(device), settings.train.loss).train()
    classes, masks = settings.model.num_classes, settings.learns_masks
    batch = synthetic_batch(size, 2, objects=OBJECTS, num_classes=classes, masks=masks).to(device)
    images = normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)
    torch.manual_seed(1)
    with float32_arithmetic("fp32", device):
        losses = objective.run(images, batch.padding_mask, batch.targets, HostRandom()).losses
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach().cpu() for name, value in losses.items()}, gradients


def detections(model: CoDETR, settings: Settings, size: tuple[int, int], device: torch.device) -> list[Any]:
    """Detections of two images by the optimized network, on the CPU."""
    spec = spec_of(size, 2, device, "fp32")
    model = optimize_for_inference(model.to(device))
    workload = InferenceWorkload(model, build_postprocess(settings.test), settings, spec)
    workload.once()
    return workload.result


def without_counterpart(ours: Any, theirs: Any) -> int:
    """Detections of one side that the other has not, at the tolerances above."""
    if not len(ours) or not len(theirs):
        return len(ours) + len(theirs)
    near = (ours.boxes[:, None] - theirs.boxes[None]).abs().amax(-1) <= BOX_TOLERANCE
    near &= (ours.scores[:, None] - theirs.scores[None]).abs() <= SCORE_TOLERANCE
    near &= ours.labels[:, None] == theirs.labels[None]
    return int((~near.any(1)).sum() + (~near.any(0)).sum())


def relative(ours: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    scale = float(reference.double().norm())
    return float((ours.double() - reference.double()).norm()) / max(scale, 1e-12)


def spec_of(size: tuple[int, int], batch: int, device: torch.device, precision: str) -> BenchmarkSpec:
    """One run."""
    return BenchmarkSpec(
        size=size, batch=batch, device=device, precision=precision, warmup=0, iterations=1, split_iterations=1
    )


# ------------------------------------------------------------------------------------------ what a step asks of the GPU


def workloads(arguments: argparse.Namespace, device: torch.device) -> dict[str, TrainingWorkload | InferenceWorkload]:
    """A training step and a detection: of ResNet-50, in bf16 on a GPU; of the tiny preset in a rehearsal."""
    settings = load_preset("co_dino_tiny" if arguments.quick else "co_dino_r50")
    size = (96, 128) if arguments.quick else (800, 1333)
    precision = "bf16" if device.type == "cuda" else "fp32"
    torch.manual_seed(0)
    model = build_model(settings.model)
    randomize_weights(model)
    detector = optimize_for_inference(copy.deepcopy(model).to(device))
    return {
        "training": TrainingWorkload(model.to(device), settings, spec_of(size, 2, device, precision)),
        "inference": InferenceWorkload(
            detector, build_postprocess(settings.test), settings, spec_of(size, 1, device, precision)
        ),
    }


def profile(arguments: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], bool]:
    """Kernels, their share of the wall time, and the most expensive ones."""
    rows = {}
    for name, workload in workloads(arguments, device).items():
        for _ in range(1 if arguments.quick else 4):
            workload.once()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            seconds = workload.once()
        rows[name] = {"ms": seconds * 1000, **profiled(profiler, device)}
    return rows, True


def profiled(profiler: torch.profiler.profile, device: torch.device) -> dict[str, Any]:
    """Figures of a profile: of its kernels, or of operators on a CPU."""
    if device.type == "cpu":
        rows = [(row.key, row.self_cpu_time_total, row.count) for row in profiler.key_averages()]
        spans: list[tuple[float, float]] = []
    else:
        kernels = [event for event in profiler.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA]
        spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
        times: dict[str, list[float]] = {}
        for event in kernels:
            times.setdefault(event.name, []).append(event.time_range.elapsed_us())
        rows = [(name, sum(each), len(each)) for name, each in times.items()]
    top = sorted(rows, key=lambda row: -row[1])[:TOP_KERNELS]
    return {
        "kernels": len(spans),
        "idle_share": idle_share(spans),
        "top": [{"name": name[:120], "ms": us / 1000, "calls": count} for name, us, count in top],
    }


def idle_share(spans: list[tuple[float, float]]) -> float | None:
    """Share of the time from the first to the last kernel in which none runs; None without kernels."""
    if not spans or spans[-1][1] <= spans[0][0]:
        return None
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / (end - spans[0][0])


def waits(arguments: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], bool]:
    """Host waits by line, as the CUDA runtime of PyTorch reports them, after caches are filled."""
    rows: dict[str, Any] = {}
    for name, workload in workloads(arguments, device).items():
        stages = (
            {"forward": workload._forward, "backward": workload._backward, "update": workload._update}
            if isinstance(workload, TrainingWorkload)
            else {"detection": workload.once}
        )
        workload.once()
        rows[name] = {stage: waits_of(run, device) for stage, run in stages.items()}
    rows["counted by the emulated device"] = emulated_counts()
    return rows, True


def waits_of(run: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Line of the package -> waits of one call."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchronizing" in str(warning.message):
            found[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    return dict(found.most_common())


def emulated_counts() -> Any:
    """The counts that the tests hold, if the checkout has them."""
    path = REPOSITORY / "tests" / "strict_counts.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# --------------------------------------------------------------------------------------------------------------- memory


def memory(arguments: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], bool]:
    """Peak of two training steps beside the prediction; a prediction below the peak fails."""
    rows: dict[str, Any] = {}
    cases = [("co_dino_r50", 1), ("co_dino_r50", 2), ("co_dino_vit_l", 1)]
    for preset, images in [("co_dino_tiny", 1)] if arguments.quick else cases:
        for recompute in (False, True):
            overrides = ["model.encoder_checkpointing=6", "model.backbone.checkpointing=true"] if recompute else []
            name = f"{preset}, batch {images}{', recomputation' if recompute else ''}"
            rows[name] = memory_of(load_preset(preset, overrides), images, device, quick=arguments.quick)
    return rows, all(row["ok"] for row in rows.values())


def memory_of(settings: Settings, images: int, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Prediction and peak in bytes; both None where they are unknown."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    size = (96, 128) if quick else (800, 1333)
    model = build_model(settings.model).to(device)
    randomize_weights(model)
    train = settings.train.model_copy(update={"precision": precision})
    settings = settings.model_copy(update={"train": train})
    need = measure(model, settings, WorstBatch(size, images, OBJECTS), device)
    if device.type != "cuda":
        return {"predicted_bytes": need and need.needed, "peak_bytes": None, "ok": True}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    workload = TrainingWorkload(model, settings, spec_of(size, images, device, precision))
    for _ in range(2):
        workload.once()
    peak = torch.cuda.max_memory_reserved(device)
    figures = {
        "predicted_bytes": need and need.needed,
        "peak_bytes": peak,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "ok": need is None or need.needed >= 0.97 * peak,
    }
    del workload, model
    torch.cuda.empty_cache()
    return figures


# ------------------------------------------------------------------------------------------------------------- commands


def commands(arguments: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], bool]:
    """The verbs one after the other on the demo data set, the training interrupted by its number of steps once."""
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    data, run = folder / "data", folder / "run"
    steps = (2, 3) if arguments.quick else (40, 200)
    on = ("--device", str(device) if device.index else device.type)
    train = ("train", "--preset", "co_dino_tiny", "--data", str(data), "--run", str(run), *on)
    weights = str(run / "checkpoints" / "last" / "model.safetensors")
    few = ("--max-images", "4") if arguments.quick else ()
    planned = {
        "prepare": ("prepare", "--demo", str(data), "--no-link"),
        "train": (*train, "--no-eval", "--set", f"train.max_steps={steps[0]}"),
        "continue": (*train, "--no-eval", "--set", f"train.max_steps={steps[1]}"),
        "eval": ("eval", weights, "--data", str(data), *on, *few, "--out", str(folder / "eval"), "--json"),
        "predict": ("predict", str(data / "val2017"), "--checkpoint", weights, *on, "--out", str(folder / "pictures")),
    }
    rows: dict[str, Any] = {}
    for name, words in planned.items():
        started = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-m", "codetr_cli", *words], capture_output=True, text=True, check=False, cwd=folder
        )
        rows[name] = {"status": ran.returncode, "seconds": round(time.monotonic() - started, 1)}
        if ran.returncode:
            rows[name]["output"] = (ran.stdout + ran.stderr)[-3000:]
            return rows, False
        if name == "eval":
            rows[name]["result"] = json.loads(ran.stdout)
    return rows, True


# ------------------------------------------------------------------------------------------------------------- exported

EXPORTS = {
    "ONNX fp32": ("--format", "onnx"),
    "ONNX fp16": ("--format", "onnx", "--precision", "fp16", "--attention", "gather"),
    "TensorRT fp32": ("--format", "tensorrt"),
    "TensorRT fp16": ("--format", "tensorrt", "--precision", "fp16"),
    "TensorRT fp16, plugin": ("--format", "tensorrt", "--precision", "fp16", "--attention", "plugin"),
    "PyTorch fp32, plugin": ("--format", "torch", "--attention", "plugin"),  # last: compiling takes minutes
}
"""Exported files: name -> options of `codetr export`."""
NEEDED = {
    "ONNX": ("onnx", "onnxscript", "onnxruntime"),
    "TensorRT": ("onnx", "onnxscript", "tensorrt"),
    "PyTorch": ("triton",),
}


def exported(arguments: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], bool]:
    """Files of the checkpoint that the stage of the commands trained, each verified on the device that runs it."""
    rows: dict[str, Any] = {}
    checkpoint = arguments.folder / "run" / "checkpoints" / "last" / "model.safetensors"
    if not checkpoint.is_file():
        return {"skipped": f"there is no {checkpoint}: the stage of the commands writes it"}, True
    for name, options in EXPORTS.items():
        missing = [package for package in NEEDED[name.split()[0]] if importlib.util.find_spec(package) is None]
        if missing:
            rows[name] = {"skipped": f"not installed: {', '.join(missing)}"}
            continue
        path = arguments.folder / f"{name.replace(' ', '_').replace(',', '')}{SUFFIXES[options[1]]}"
        on = ("--device", str(device) if device.index else device.type)
        words = ("export", str(checkpoint), *options, "--out", str(path), "--force", "--verify", *on, "--json")
        started = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-m", "codetr_cli", *words], capture_output=True, text=True, check=False, cwd=REPOSITORY
        )
        rows[name] = {"status": ran.returncode, "seconds": round(time.monotonic() - started, 1)}
        if ran.returncode:
            rows[name]["output"] = (ran.stdout + ran.stderr)[-3000:]
        else:
            rows[name]["result"] = json.loads(ran.stdout)
    return rows, all(row.get("status", 0) == 0 for row in rows.values())


STAGES: dict[str, Callable[[argparse.Namespace, torch.device], tuple[dict[str, Any], bool]]] = {
    "parity": parity,
    "profile": profile,
    "waits": waits,
    "memory": memory,
    "commands": commands,
    "exported": exported,
}


if __name__ == "__main__":
    sys.exit(main())
