"""`codetr bench`: how fast this machine detects and trains, and where the time goes."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetr_cli import console
from codetr_cli.commands._options import (
    CheckpointOption,
    DeviceOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SetOption,
    ThreadsOption,
)
from codetr_cli.commands._outputs import ForceOption, InferencePrecisionOption, free_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

DEFAULT_PRESET = "co_dino_r50"
# Warm-up runs, runs that count, runs for the split into stages.
CPU_RUNS = (1, 3, 1)
GPU_RUNS = (10, 50, 10)


def bench(
    fps: Annotated[bool, typer.Option("--fps", help="Time detection; the default.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Time training steps.")] = False,
    preset: PresetOption = None,
    checkpoint: CheckpointOption = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Input in pixels. Without it: the preset's, e.g. 800x1333."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, help="Images at once. Without it: 1; the preset's to train."),
    ] = None,
    device: DeviceOption = "auto",
    precision: InferencePrecisionOption = "auto",
    threads: ThreadsOption = None,
    warmup: Annotated[int | None, typer.Option("--warmup", metavar="N", min=0, help="Runs that do not count.")] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", metavar="N", min=1, help="Runs that count.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write the JSON here; FILE_2, ... when it is taken."),
    ] = None,
    force: ForceOption = False,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure speed and memory: co_dino_r50 at 800x1333 on the best device here, unless told otherwise.

    Images are synthetic and a preset's weights are random: neither changes the speed.
    """
    from codetr_cli.errors import ConfigError

    console.set_mode(json=json_output, quiet=quiet)
    if preset and checkpoint:
        raise ConfigError("give --preset or --checkpoint, not both: a checkpoint brings its own settings")
    wanted_size = _parse_size(size) if size else None

    import torch

    from codetr_cli.engine.environment import choose_device

    chosen_device = choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    target = checkpoint or preset or DEFAULT_PRESET
    runs = _runs(chosen_device.type, warmup, iterations)
    report = _facts(target, chosen_device)
    for kind, wanted in (("inference", fps or not train), ("training", train)):
        if wanted:
            report[kind] = _measure(
                kind, target, overrides or [], size=wanted_size, batch=batch, device=chosen_device, precision=precision,
                runs=runs,
            )  # fmt: skip
            _show(kind, report[kind], report["machine"])
    console.result(_place_text(report["machine"]))
    if out is not None:
        _write(free_file(out, force=force), report)
    console.result_json(report)


def _parse_size(text: str) -> tuple[int, int]:
    """(height, width) of text as 800x1333.

    Raises:
        ConfigError: something else.
    """
    from codetr_cli.errors import ConfigError

    match = re.fullmatch(r"(\d+)\s*[xX*,]\s*(\d+)", text.strip())
    if not match or not (32 <= int(match[1]) <= 16384 and 32 <= int(match[2]) <= 16384):
        raise ConfigError(f"--size {text!r} is not HEIGHTxWIDTH in pixels from 32 to 16384, e.g. --size 800x1333")
    return int(match[1]), int(match[2])


def _runs(device_type: str, warmup: int | None, iterations: int | None) -> tuple[int, int, int]:
    """Warm-up runs, counted runs and runs for the split."""
    usual = CPU_RUNS if device_type == "cpu" else GPU_RUNS
    if device_type == "cpu" and iterations is None:
        console.warn(
            f"measuring on a CPU, {usual[1]} runs only: this takes minutes for a large network, and whatever else the "
            "machine does shows in the numbers. --iterations N measures longer, --size HxW a smaller input"
        )
    counted = usual[1] if iterations is None else iterations
    return usual[0] if warmup is None else warmup, counted, min(usual[2], counted)


def _facts(target: str, device: torch.device) -> dict[str, Any]:
    """What a reader of the numbers must know to repeat them."""
    from codetr_cli.engine.benchmark import describe_place

    return {
        "command": shlex.join(["codetr", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "weights": target,
        "machine": describe_place(device),
    }


def _measure(
    kind: str,
    target: str,
    overrides: Sequence[str],
    *,
    size: tuple[int, int] | None,
    batch: int | None,
    device: torch.device,
    precision: str,
    runs: tuple[int, int, int],
) -> dict[str, Any]:
    """Builds the network, times it and tells with what."""
    from codetr_cli.engine.benchmark import Plan, benchmark_inference, benchmark_training
    from codetr_cli.engine.loading import load_detector

    training = kind == "training"
    loaded = load_detector(target, device, overrides, training=training)
    settings = loaded.settings
    plan = Plan(
        size=size or (settings.test.short_side, settings.test.long_side),
        batch=batch or (settings.train.micro_batch if training else 1),
        device=device,
        precision=precision,
        warmup=runs[0],
        iterations=runs[1],
        split_iterations=runs[2],
    )
    with console.progress(f"timing {kind}", plan.ticks) as advance:
        if training:
            timing = benchmark_training(loaded.model, settings, plan, advance)
        else:
            timing = benchmark_inference(loaded.model, loaded.postprocess, settings, plan, advance)
    return {
        "name": settings.name,
        "size": list(plan.size),
        "batch": plan.batch,
        "precision": plan.resolved_precision(training=training),
        "warmup": plan.warmup,
        "iterations": plan.iterations,
        "split_iterations": plan.split_iterations,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        **asdict(timing),
    }


def _show(kind: str, numbers: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    height, width = numbers["size"]
    latency = numbers["latency_ms"]
    memory = numbers["peak_memory_bytes"]
    console.table(
        f"{'Detection' if kind == 'inference' else 'Training step'}: {numbers['name']} at {height}x{width}, "
        f"batch {numbers['batch']}, {numbers['precision']}, {machine['device']}",
        ["images/s", "mean [ms]", "p50 [ms]", "p90 [ms]", "p99 [ms]", f"peak memory of the {numbers['memory_of']}"],
        [
            [
                round(numbers["images_per_second"], 3),
                *(round(latency[name], 1) for name in ("mean", "p50", "p90", "p99")),
                None if memory is None else console.bytes_text(memory),
            ]
        ],
    )
    stages = numbers["stages_ms"]
    within = sum(milliseconds for name, milliseconds in stages.items() if name != "data")
    rows = [
        [name, round(value, 1), "beside the network" if name == "data" else f"{value / max(within, 1e-9):.0%}"]
        for name, value in stages.items()
    ]
    console.table("", ["stage", "time [ms]", "share"], rows)


def _place_text(machine: Mapping[str, Any]) -> str:
    reasons = [f"{name}: {reason}" for name, reason in machine["attention_backends"].items() if reason]
    text = (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}; "
        f"deformable attention by {machine['attention']}"
    )
    return text + (f". Not usable here: {' '.join(reasons)}" if reasons else "")


def _write(file: Path, report: Mapping[str, Any]) -> None:
    from codetr_cli.engine.files import write_text

    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(report, indent=2) + "\n")
    console.result(f"Written to {file}")
