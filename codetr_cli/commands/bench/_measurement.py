"""What the commands of `codetr bench` share: the measurement of a network, and the report."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from codetr_cli import console
from codetr_cli.commands._defaults import Invocation
from codetr_cli.commands._launch import requested, run_placed, worker_output
from codetr_cli.commands._submit import submit_command
from codetr_cli.commands._weights import place_exported, resolve_weights
from codetr_cli.commands.bench import _tables
from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch

Kind = Literal["inference", "training"]

logger = logging.getLogger(__name__)

DEFAULT_PRESET = "co_dino_r50"
# Warm-up runs, measured runs, runs for the split into stages.
CPU_RUNS = (1, 3, 1)
GPU_RUNS = (10, 50, 10)


def check_target(preset: str | None, checkpoint: str | None) -> None:
    """Refuses two networks at once.

    Raises:
        ConfigError: both are given.
    """
    if preset and checkpoint:
        raise ConfigError("give --preset or --checkpoint, not both: a checkpoint contains its settings")


def prepare_device(device: str, threads: int | None) -> torch.device:
    """The device that is asked for, made the current one, with the number of CPU threads set."""
    import torch

    from codetr_cli.runtime.devices import choose_device, use_device

    chosen = use_device(choose_device(device))
    if threads:
        torch.set_num_threads(threads)
    return chosen


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of text as 800x1333.

    Raises:
        ConfigError: something else.
    """
    match = re.fullmatch(r"(\d+)\s*[xX*,]\s*(\d+)", text.strip())
    if not match or not (32 <= int(match[1]) <= 16384 and 32 <= int(match[2]) <= 16384):
        raise ConfigError(f"--size {text!r} is not HEIGHTxWIDTH in pixels from 32 to 16384, e.g. --size 800x1333")
    return int(match[1]), int(match[2])


def run_counts(device_type: str, warmup: int | None, iterations: int | None) -> tuple[int, int, int]:
    """Warm-up runs, measured runs and runs for the split into stages."""
    default = CPU_RUNS if device_type == "cpu" else GPU_RUNS
    if device_type == "cpu" and iterations is None:
        logger.warning(
            "measuring %d runs only, on a CPU: a large network takes minutes, and other processes affect the numbers. "
            "--iterations N measures more runs, --size HxW a smaller input",
            default[1],
        )
    measured = default[1] if iterations is None else iterations
    return default[0] if warmup is None else warmup, measured, min(default[2], measured)


@dataclass(frozen=True, kw_only=True)
class NetworkBenchmark:
    """What to measure of a network.

    Attributes:
        kind: what the network does, and the result's key in the report.
        target: checkpoint or preset.
        overrides: of the settings.
        random_weights: of a preset, as its published weights are not needed.
        threads: CPU threads of each process; None: PyTorch's choice.
        compare: also measure plain PyTorch; for one process.
        spec: arguments of `BenchmarkedNetwork.spec`.
    """

    kind: Kind
    target: str
    overrides: list[str]
    random_weights: bool
    threads: int | None
    compare: bool
    spec: dict[str, Any]


def benchmark_network(context: typer.Context, kind: Kind, **spec_options: Any) -> None:
    """Measures a network, or compares it with plain PyTorch, and shows and writes the result.

    Args:
        context: of a command with the options of `codetr bench infer`.
        kind: what the network does.
        spec_options: further arguments of `BenchmarkedNetwork.spec`.

    Raises:
        ConfigError: options that are wrong or exclude each other.
    """
    given = context.params
    console.set_mode(json=given["json_output"], quiet=given["quiet"])
    check_target(given["preset"], given["checkpoint"])
    size = parse_size(given["size"]) if given["size"] else None
    out: Path | None = given["out"]
    if given["slurm"]:
        invocation: Invocation = context.obj
        name = "infer" if kind == "inference" else "train"
        file = out or Path("bench") / f"{name}.json"
        submit_command(invocation.words, file, requested(context), name=f"bench-{name}")
        return
    from codetr_cli.distributed.topology import place
    from codetr_cli.distributed.worker_errors import BENCHMARK

    target = resolve_weights(given["checkpoint"]) or given["preset"] or DEFAULT_PRESET
    overrides = [*place_exported(context, target), *(given["overrides"] or [])]
    placement = place(requested(context), BENCHMARK)
    if given["compare"] and placement.world_size > 1:
        raise ConfigError("--compare measures one process: remove --compare, or --gpus, --procs and --nodes")
    runs = run_counts(placement.device.type, given["warmup"], given["iterations"])
    job = NetworkBenchmark(
        kind=kind,
        target=target,
        overrides=overrides,
        random_weights=given["checkpoint"] is None,
        threads=given["threads"],
        compare=given["compare"] is not None,
        spec={"size": size, "runs": runs, "precision": given["precision"] or "auto", **spec_options},
    )
    mode = (given["json_output"], given["quiet"])
    report: dict[str, Any] | None = run_placed(_measure_here, (job, placement.device, *mode), placement)
    if report is None:
        return
    (_tables.show_comparison if job.compare else _tables.show_timing)(kind, report[kind], report["machine"])
    finish_report(report, out, force=given["force"])


def _measure_here(job: NetworkBenchmark, device: torch.device, json_output: bool, quiet: bool) -> dict[str, Any] | None:
    """Measures in this process, alone or as one of several; None in processes other than that of rank 0."""
    import torch

    from codetr_cli.benchmark.network import BenchmarkedNetwork
    from codetr_cli.distributed import process_group
    from codetr_cli.distributed.worker_errors import BENCHMARK

    device = process_group.local_device(device)
    if job.threads:
        torch.set_num_threads(job.threads)
    with worker_output(json=json_output, quiet=quiet), process_group.joined(device, work=BENCHMARK):
        report = start_report(device, job.target)
        network = BenchmarkedNetwork(
            job.target, job.overrides, device, training=job.kind == "training", random_weights=job.random_weights
        )
        spec = network.spec(**job.spec)
        if process_group.world_size() > 1:
            title, ticks, measure = f"measuring {job.kind}", 2 * spec.ticks, network.scale
        elif job.compare:
            title, ticks, measure = f"comparing {job.kind} with plain PyTorch", spec.comparison_ticks, network.compare
        else:
            title, ticks, measure = f"measuring {job.kind}", spec.ticks, network.measure
        if not process_group.is_main():
            measure(spec)
            return None
        with console.progress(title, ticks) as advance:
            report[job.kind] = measure(spec, advance)
        return report


def start_report(device: torch.device, weights: str | None = None) -> dict[str, Any]:
    """The part of the report that a reader needs to repeat the measurement."""
    from codetr_cli.runtime.environment import benchmark_conditions

    return {
        "command": shlex.join(["codetr", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **({"weights": weights} if weights else {}),
        "machine": benchmark_conditions(device),
    }


def finish_report(report: Mapping[str, Any], out: Path | None, *, force: bool) -> None:
    """Prints where the numbers come from, and writes the report without folders of this machine."""
    from codetr_cli.result_files import free_file, write_result

    machine = report["machine"]
    runtime = next((part["runtime"] for part in report.values() if isinstance(part, dict) and "runtime" in part), None)
    if runtime is None:
        how = f"deformable attention by {machine['attention_note']}"
    else:
        how = f"{runtime['library']}, {runtime['provider']}, {runtime['precision']}"
    console.result(f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}; {how}")
    published = _tables.without_folders(report)
    console.result_json(published)  # first: the disk of the file may be full
    if out is not None:
        file = free_file(out, force=force)
        with write_result(file, by="bench", force=force, parents=True) as temporary:
            temporary.write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
        console.result(f"Written to {file}")
