"""What the commands of `codetr bench` share: the measurement of a network, and the report."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codetr_cli import console
from codetr_cli.commands._outputs import free_file
from codetr_cli.commands._weights import resolve_weights
from codetr_cli.commands.bench import _tables
from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch

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
    """The device that is asked for, with the number of CPU threads set."""
    import torch

    from codetr_cli.runtime.devices import choose_device

    chosen = choose_device(device)
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


def benchmark_network(
    kind: Literal["inference", "training"],
    *,
    preset: str | None,
    checkpoint: str | None,
    overrides: list[str] | None,
    size: str | None,
    device: str,
    threads: int | None,
    warmup: int | None,
    iterations: int | None,
    compare: bool,
    out: Path | None,
    force: bool,
    **spec_options: Any,
) -> None:
    """Measures a network, or compares it with plain PyTorch, and shows and writes the result.

    `kind` is what the network does, and the result's key in the report; `spec_options` are further arguments of
    `BenchmarkedNetwork.spec`. All others are the values of the command's options.

    Raises:
        ConfigError: options that are wrong or exclude each other.
    """
    check_target(preset, checkpoint)
    input_size = parse_size(size) if size else None
    chosen = prepare_device(device, threads)
    runs = run_counts(chosen.type, warmup, iterations)
    from codetr_cli.benchmark.network import BenchmarkedNetwork

    target = resolve_weights(checkpoint) or preset or DEFAULT_PRESET
    report = start_report(chosen, target)
    network = BenchmarkedNetwork(
        target, overrides or [], chosen, training=kind == "training", random_weights=checkpoint is None
    )
    spec = network.spec(size=input_size, runs=runs, **spec_options)
    title = f"comparing {kind} with plain PyTorch" if compare else f"measuring {kind}"
    with console.progress(title, spec.comparison_ticks if compare else spec.ticks) as advance:
        report[kind] = (network.compare if compare else network.measure)(spec, advance)
    (_tables.show_comparison if compare else _tables.show_timing)(kind, report[kind], report["machine"])
    finish_report(report, out, force=force)


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
    from codetr_cli.files import write_text

    machine = report["machine"]
    console.result(
        f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}; "
        f"deformable attention by {machine['attention_note']}"
    )
    published = _tables.without_folders(report)
    if out is not None:
        file = free_file(out, force=force)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(published, indent=2) + "\n")
        console.result(f"Written to {file}")
    console.result_json(published)
