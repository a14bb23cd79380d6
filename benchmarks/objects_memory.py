"""Measures the peak memory of a training step as the number of objects and classes grows.

    python benchmarks/objects_memory.py --out benchmarks/results/objects_memory.json

The network is narrow, so that the losses dominate; anchors, tokens, queries, layers and classes are those of the
published Co-DINO R50. Every figure comes from a process of its own on one thread: the peak of its resident size in
forward and backward pass above its size before. `--before FILE` adds an earlier result to the new one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from codetr_cli.config.presets import load_preset
from codetr_cli.data.batch import normalize
from codetr_cli.losses.build import build_objective
from codetr_cli.models.build import build_model
from codetr_cli.runtime.devices import cpu_name
from codetr_cli.runtime.malloc import return_large_blocks
from codetr_cli.runtime.synthetic import synthetic_batch
from codetr_cli.runtime.timing import memory_in_use, peak_memory, reset_peak_memory

NARROW = [
    "model.backbone.block=basic",
    "model.backbone.layers=[1,1,1,1]",
    "model.backbone.base_channels=8",
    "model.backbone.norm=group",
    "model.backbone.frozen_stages=0",
    "model.embed_dim=32",
    "model.norm_groups=8",
    "model.ffn_dim=64",
    "model.encoder_layers=1",
    "model.encoder_checkpointing=0",
    "model.roi.fc_dim=32",
]
DOES_NOT_FIT = 5


def main() -> int:
    """Measures every combination, each in a process of its own, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="co_dino_r50", help="of the losses; the network is made narrow")
    parser.add_argument("--objects", type=int, nargs="+", default=[0, 10, 100, 300, 1000], help="in the image")
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 1203])
    parser.add_argument("--size", default="800x1344", help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--limit-gb", type=float, default=12.0, help="a step that needs more is aborted")
    parser.add_argument("--before", type=Path, help="an earlier result, copied into this one")
    parser.add_argument("--out", type=Path, help="write the result to this file instead of printing it")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return measure(arguments)
    result = describe(arguments) | {
        "rows": [row(arguments, classes, count) for classes in arguments.classes for count in arguments.objects]
    }
    if arguments.before:
        before = json.loads(arguments.before.read_text(encoding="utf-8"))
        result["before"] = {key: before[key] for key in ("command", "date", "rows")}
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command, machine and versions."""
    options = [f"--preset {arguments.preset} --size {arguments.size} --limit-gb {arguments.limit_gb:g}"]
    options += [f"--set {text}" for text in arguments.overrides]
    return {
        "command": "python benchmarks/objects_memory.py " + " ".join(options),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"device": cpu_name(), "system": platform.platform(), "cpus": os.cpu_count(), "threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "note": "peak_bytes: resident size of forward and backward pass above weights and image; null: over the limit",
    }


def row(arguments: argparse.Namespace, classes: int, objects: int) -> dict[str, Any]:
    """One combination, measured in a new process."""
    command = [sys.executable, __file__, "--one", "--preset", arguments.preset, "--size", arguments.size]
    command += ["--classes", str(classes), "--objects", str(objects), "--limit-gb", str(arguments.limit_gb)]
    command += [part for text in arguments.overrides for part in ("--set", text)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    figures = {"peak_bytes": None}
    if done.returncode != DOES_NOT_FIT:
        done.check_returncode()
        figures = json.loads(done.stdout)
    sys.stderr.write(f"{classes} classes, {objects} objects: {figures}\n")
    return {"classes": classes, "objects": objects, **figures}


def measure(arguments: argparse.Namespace) -> int:
    """Measures the one combination that the arguments name and prints its figures."""
    torch.set_num_threads(1)
    return_large_blocks()
    settings = load_preset(
        arguments.preset, [*NARROW, f"model.num_classes={arguments.classes[0]}", *arguments.overrides]
    )
    torch.manual_seed(0)
    objective = build_objective(build_model(settings.model), settings.train.loss).train()

    def step(size: tuple[int, int], objects: int) -> int:
        batch = synthetic_batch(
            size, 1, objects=objects, num_classes=settings.model.num_classes, masks=settings.learns_masks
        )
        images = normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)
        cpu = torch.device("cpu")
        if not reset_peak_memory(cpu):
            raise SystemExit("the peak memory of a process can be reset on Linux only")
        before = memory_in_use(cpu) or 0
        torch.stack(list(objective(images, batch.padding_mask, batch.targets).values())).sum().backward()
        return (peak_memory(cpu) or 0) - before

    step((128, 160), 2)  # loads libraries
    limit = math.ceil(arguments.limit_gb * 1e9) + (memory_in_use(torch.device("cpu")) or 0)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    height, width = (int(side) for side in arguments.size.split("x"))
    try:
        peak = step((height, width), arguments.objects[0])
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return DOES_NOT_FIT
    sys.stdout.write(json.dumps({"peak_bytes": peak}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
