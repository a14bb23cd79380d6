"""Measures training steps with whole and with sharded weights, recomputation and torch.compile, on one device.

    python benchmarks/training_gpu.py --precision bf16 --out benchmarks/results/training_gpu_bf16.json
    python benchmarks/training_gpu.py --preset co_dino_tiny --size 128x160 --batch 1 --device cpu --iterations 1

Every combination runs in a process of its own, with world size 1: DDP and FSDP2 do everything there except waiting for
other processes. Step times are medians; memory is the peak during the measured steps, of the GPU's allocator or else of
the process. For a combination that cannot run the result holds the reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from codetr_cli.benchmark.model import BenchmarkSpec, TrainingWorkload, measure
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import check_shardable, shard
from codetr_cli.errors import CodetrError
from codetr_cli.inference.loading import compile_for
from codetr_cli.models.build import build_model
from codetr_cli.runtime.devices import choose_device
from codetr_cli.runtime.environment import benchmark_conditions
from codetr_cli.training.optim import build_optimizer

SHARDING = {"ddp": False, "fsdp2": True}
PARTS = ("backbone.checkpointing", "decoder_checkpointing", "aux_checkpointing")  # beside the encoder's layers


def main() -> int:
    """Measures every combination and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="co_dino_r50")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--size", default="800x1333", help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--batch", type=int, default=2, help="images per step")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument(
        "--only", metavar="WRAP,RECOMPUTE,COMPILE", help="one combination, in this process, e.g. fsdp2,1,0"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        wrap, recompute, compiled = arguments.only.split(",")
        row = measure_one(arguments, sharded=SHARDING[wrap], recompute=recompute == "1", compiled=compiled == "1")
        print(json.dumps(row))  # noqa: T201 - read by the parent process
        return 0
    device = choose_device(arguments.device)
    rows = []
    for wrap, recompute, compiled in itertools.product(SHARDING, (False, True), (False, True)):
        named = {"wrap": wrap, "recompute": recompute, "compile": compiled}
        rows.append({**named, **in_own_process(f"{wrap},{int(recompute)},{int(compiled)}")})
        print(json.dumps(rows[-1]), file=sys.stderr)  # noqa: T201 - progress of a script
    result = {
        "command": "python benchmarks/training_gpu.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S +0000"),
        "machine": benchmark_conditions(device),
        "preset": arguments.preset,
        "size": arguments.size,
        "batch": arguments.batch,
        "rows": rows,
    }
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")  # noqa: T201
    return 0


def in_own_process(combination: str) -> dict[str, Any]:
    """The figures of a combination, or the reason why there are none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ran = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--only", combination],
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        return {"why_not": (ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"])[-1][:300]}
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def measure_one(arguments: argparse.Namespace, *, sharded: bool, recompute: bool, compiled: bool) -> dict[str, Any]:
    """The figures of a combination, in this process, whose world size is 1."""
    settings = load_preset(arguments.preset, [*arguments.overrides, *recomputation(recompute, arguments)])
    device = process_group.local_device(choose_device(arguments.device))
    height, width = (int(side) for side in arguments.size.split("x"))
    spec = BenchmarkSpec(
        size=(height, width),
        batch=arguments.batch,
        device=device,
        precision=arguments.precision,
        warmup=arguments.warmup,
        iterations=arguments.iterations,
        split_iterations=1,
    )
    try:
        if sharded:
            check_shardable(fp16=False, compiled=compiled)
        with process_group.process_group(device):
            workload = build_workload(settings, spec, sharded=sharded, compiled=compiled)
            timing = measure(workload)
            return {
                "precision": spec.resolved_precision(training=True),
                "step_ms": timing.latency_ms.p50,
                "stages_ms": timing.stages_ms,
                "peak_memory_bytes": timing.peak_memory_bytes,
                "memory_of": timing.memory_of,
                "last_loss": workload.result,
            }
    except CodetrError as error:
        return {"why_not": str(error)}


def build_workload(settings: Settings, spec: BenchmarkSpec, *, sharded: bool, compiled: bool) -> TrainingWorkload:
    """Training from random weights, the same in every combination, wrapped as in `codetr train`."""
    torch.manual_seed(0)
    model = build_model(settings.model).to(spec.device)
    if compiled:
        compile_for(model, spec.device, "compile")
    workload = TrainingWorkload(model, settings, spec)
    wrap = shard if sharded else process_group.wrap_ddp
    workload.objective = wrap(workload.objective, spec.device)
    workload.optimizer = build_optimizer(model, settings.train)
    torch.manual_seed(1)
    return workload


def recomputation(on: bool, arguments: argparse.Namespace) -> list[str]:
    """The settings that recompute as much as possible, or nothing."""
    layers = load_preset(arguments.preset, arguments.overrides).model.encoder_layers
    return [
        f"model.encoder_checkpointing={layers if on else 0}",
        *(f"model.{part}={str(on).lower()}" for part in PARTS),
    ]


if __name__ == "__main__":
    sys.exit(main())
