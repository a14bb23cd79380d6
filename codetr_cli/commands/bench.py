"""`codetr bench`: how fast this machine detects and trains, where the time goes, and what makes it faster."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codetr_cli import console
from codetr_cli.commands import _bench_tables as tables
from codetr_cli.commands._bench_data import measure_data, show_data
from codetr_cli.commands._bench_network import Network
from codetr_cli.commands._options import (
    CheckpointOption,
    DeviceOption,
    ForceOption,
    InferencePrecisionOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SetOption,
    ThreadsOption,
)
from codetr_cli.commands._outputs import free_file
from codetr_cli.commands._weights import resolve_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from codetr_cli.benchmark.operator_inputs import Shape

EXAMPLES = (
    "codetr bench --preset co_dino_r50",
    "codetr bench --train --preset co_dino_r50 --batch 2",
    "codetr bench --data /path/to/coco",
)
DEFAULT_PRESET = "co_dino_r50"
DEFAULT_OPERATOR_SIZE = (800, 1333)
DEFAULT_LEVELS = 5
# Warm-up runs, runs that count, runs for the split into stages.
CPU_RUNS = (1, 3, 1)
GPU_RUNS = (10, 50, 10)
DTYPES = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}
NETWORK_OPTIONS = ("fps", "train", "preset", "checkpoint", "compare", "objects", "set")
NOT_OF_DATA = ("fps", "train", "ops", "checkpoint", "compare", "objects", "size", "batch", "precision", "warmup")
DATA_OPTIONS = ("folder", "workers", "step_images_per_s")
OPERATOR_OPTIONS = ("backend", "shape", "levels", "dtype", "classic")


def bench(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR]", show_default=False, help="With --data: the data set. Without it: CODETR_DATA or data/coco."
        ),
    ] = None,
    fps: Annotated[bool, typer.Option("--fps", help="Time detection; the default.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Time training steps.")] = False,
    ops: Annotated[
        bool, typer.Option("--ops", help="Time deformable attention alone: every backend, beside the machine's limits.")
    ] = False,
    data: Annotated[
        bool, typer.Option("--data", help="Time reading your training images and name what holds them up.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="With --data: only so many. Without it: 1, 2, 4 ... cores."),
    ] = None,
    step_images_per_s: Annotated[
        float | None,
        typer.Option(
            "--step-images-per-s",
            metavar="X",
            min=1e-6,
            help="With --data: what a training step takes. Without it: measured where there is a GPU.",
        ),
    ] = None,
    compare: Annotated[
        Literal["torch"] | None,
        typer.Option(
            "--compare",
            help="torch: time the network in turn with and without what makes it fast, i.e. in plain PyTorch.",
        ),
    ] = None,
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
    objects: Annotated[
        int | None,
        typer.Option("--objects", metavar="N", min=1, help="Boxes in each training image. Without it: 7, as in COCO."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="With --ops: this one beside the reference. May be repeated."),
    ] = None,
    shape: Annotated[
        Literal["encoder", "decoder", "both"] | None,
        typer.Option("--shape", help="With --ops: whose call; without it both."),
    ] = None,
    levels: Annotated[
        int | None, typer.Option("--levels", metavar="N", min=1, max=8, help="With --ops: feature levels, 5.")
    ] = None,
    dtype: Annotated[
        Literal["fp32", "fp64", "bf16", "fp16"] | None,
        typer.Option("--dtype", help="With --ops: numbers of value, offsets and logits; without it fp32."),
    ] = None,
    classic: Annotated[
        bool,
        typer.Option("--classic", help="With --ops: the entry that takes locations and weights, not the fused one."),
    ] = False,
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

    Images are synthetic (but with --data, which reads yours) and a preset's weights are random: neither changes the
    speed.
    """
    console.set_mode(json=json_output, quiet=quiet)
    given = {
        **{"fps": fps, "train": train, "preset": preset, "checkpoint": checkpoint, "compare": compare},
        **{"objects": objects, "set": overrides, "precision": precision if precision != "auto" else None},
        **{"backend": backend, "shape": shape, "levels": levels, "dtype": dtype, "classic": classic},
        **{"folder": folder, "workers": workers, "step_images_per_s": step_images_per_s},
        **{"ops": ops, "size": size, "batch": batch, "warmup": warmup},
    }
    _check_data(data, given)
    _check(ops, given)
    wanted_size = _parse_size(size) if size else None

    import torch

    from codetr_cli.runtime.devices import choose_device

    chosen_device = choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    runs = GPU_RUNS if data else _runs(chosen_device.type, warmup, iterations)
    target = None if ops else resolve_weights(checkpoint) or preset or DEFAULT_PRESET
    report = _facts(target, chosen_device)
    if ops:
        shapes: list[Shape] = ["encoder", "decoder"] if shape is None or shape == "both" else [shape]
        report["operators"] = _measure_operators(
            shapes, backend, size=wanted_size or DEFAULT_OPERATOR_SIZE, levels=levels or DEFAULT_LEVELS,
            batch=batch or 1, device=chosen_device, dtype=dtype or "fp32", classic=classic, runs=runs,
            machine=report["machine"],
        )  # fmt: skip
    if data and target:
        report["data"] = measure_data(
            target, overrides or [], folder=folder, workers=workers, needed=step_images_per_s, images=iterations,
            measure_step=_step_rate(target, overrides or [], chosen_device), device=chosen_device,
        )  # fmt: skip
        show_data(report["data"])
    for kind, wanted in (("inference", fps or not (train or ops or data)), ("training", train)):
        if wanted and target:
            network = Network(kind, target, overrides or [], chosen_device, random_weights=checkpoint is None)
            plan = network.plan(size=wanted_size, batch=batch, precision=precision, objects=objects, runs=runs)
            report[kind] = network.compare(plan) if compare else network.measure(plan)
            show = tables.show_comparison if compare else tables.show_timing
            show(kind, report[kind], report["machine"])
    console.result(tables.place_text(report["machine"]))
    report = tables.without_folders(report)
    if out is not None:
        _write(free_file(out, force=force), report)
    console.result_json(report)


def _check_data(data: bool, given: Mapping[str, Any]) -> None:
    """Refuses options that do not go with reading data, or with anything else.

    Raises:
        ConfigError: names one of them.
    """
    from codetr_cli.errors import ConfigError

    names = (*NOT_OF_DATA, *OPERATOR_OPTIONS) if data else DATA_OPTIONS
    culprit = next((name for name in names if given[name]), None)
    if culprit is None:
        return
    option = "a folder" if culprit == "folder" else f"--{culprit.replace('_', '-')}"
    if data:
        raise ConfigError(f"{option} is about the network, --data about reading images: leave one of them out")
    raise ConfigError(f"{option} is about reading images: add --data, or leave it out")


def _step_rate(target: str, overrides: Sequence[str], device: torch.device) -> Callable[[], float] | None:
    """What measures images/s of a training step; None on a CPU, which is busy with it for minutes."""
    if device.type == "cpu":
        return None

    def measure() -> float:
        network = Network("training", target, overrides, device, random_weights=True)
        plan = network.plan(size=None, batch=None, precision="auto", objects=None, runs=(3, 8, 1))
        return float(network.measure(plan)["images_per_second"])

    return measure


def _check(ops: bool, given: Mapping[str, Any]) -> None:
    """Refuses options that say nothing about what is measured.

    Raises:
        ConfigError: names one of them.
    """
    from codetr_cli.errors import ConfigError

    if given["preset"] and given["checkpoint"]:
        raise ConfigError("give --preset or --checkpoint, not both: a checkpoint brings its own settings")
    names = (*NETWORK_OPTIONS, "precision") if ops else OPERATOR_OPTIONS
    culprit = next((name for name in names if given[name]), None)
    if culprit and ops:
        hint = " (there it is --dtype)" if culprit == "precision" else ""
        raise ConfigError(
            f"--{culprit} is about the whole network, --ops about one operator{hint}: leave one of them out"
        )
    if culprit:
        raise ConfigError(f"--{culprit} is about the operator alone: add --ops, or leave it out")
    if given["objects"] and not given["train"]:
        raise ConfigError("--objects is about training images: add --train, or leave it out")


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


def _facts(target: str | None, device: torch.device) -> dict[str, Any]:
    """What a reader of the numbers must know to repeat them."""
    from codetr_cli.runtime.environment import benchmark_conditions

    return {
        "command": shlex.join(["codetr", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **({"weights": target} if target else {}),
        "machine": benchmark_conditions(device),
    }


def _measure_operators(
    shapes: Sequence[Shape],
    backends: Sequence[str] | None,
    *,
    size: tuple[int, int],
    levels: int,
    batch: int,
    device: torch.device,
    dtype: str,
    classic: bool,
    runs: tuple[int, int, int],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """Times deformable attention alone, after what the machine can do at best."""
    import torch

    from codetr_cli.benchmark.operator_inputs import OperatorShape
    from codetr_cli.benchmark.operators import OperatorPlan, benchmark_operator, contenders, report_table
    from codetr_cli.benchmark.roofline import measure_limits

    plans = [
        OperatorPlan(
            shape=OperatorShape(name=name, size=size, levels=levels, batch=batch),
            device=device,
            dtype=getattr(torch, DTYPES[dtype]),
            classic=classic,
            backends=_known_backends(backends, device.type),
            warmup=runs[0],
            rounds=runs[1],
        )
        for name in shapes
    ]
    limits = measure_limits(device, plans[0].dtype)
    tables.show_limits(limits)
    found = []
    for plan in plans:
        ticks = plan.ticks(len(contenders(plan)[0]))
        with console.progress(f"timing the {plan.shape.name}'s operator", ticks) as advance:
            report = benchmark_operator(plan, limits, advance)
        tables.show_operator(report, machine)
        found.append(report_table(report))
    return {"limits": asdict(limits), "shapes": found}


def _known_backends(names: Sequence[str] | None, device_type: str) -> tuple[str, ...] | None:
    """The names as given.

    Raises:
        ConfigError: one of them does not exist.
    """
    from codetr_cli.benchmark.operators import contender_names
    from codetr_cli.errors import ConfigError, nearest

    if not names:
        return None
    known = contender_names(device_type)
    for name in names:
        if name not in known:
            raise ConfigError(f"--backend {name!r} is unknown: {nearest(name, known)}")
    return tuple(names)


def _write(file: Path, report: Mapping[str, Any]) -> None:
    from codetr_cli.files import write_text

    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(report, indent=2) + "\n")
    console.result(f"Written to {file}")
