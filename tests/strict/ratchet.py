"""Limits of kernels and waits that only go down: `tests/strict_counts.json`.

Kernels have a limit for each stage, waits one for each stage and file. The kernels of each file are stored too, so that
the file's history shows where they went. `python -m tests.strict_counts update` lowers the limits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from codetr_cli.config.presets import load_preset
from tests.strict.workloads import Work, evaluated_batch, predicted_image, random_network, training_step
from tests.strict_device import strict_device

LIMITS = Path(__file__).resolve().parent.parent / "strict_counts.json"
GPU = torch.device("cuda", 0)
DEFORMABLE = ("model.family=co_deformable", "model.finest_stride=8", "model.num_levels=4")
SMALL, LARGE = (64, 96), (192, 256)

Counts = dict[str, dict[str, int]]
"""Stage -> file, or "backward", or "all" -> number."""

# Name -> what runs, preset, changed settings, batch. The last image of a training batch is padded.
WORK: dict[str, tuple[str, str, tuple[str, ...], Work]] = {
    "train co_dino_tiny": ("train", "co_dino_tiny", (), Work(size=SMALL, padded=True)),
    "train co_deformable tiny": ("train", "co_dino_tiny", DEFORMABLE, Work(size=SMALL, padded=True)),
    "train co_dino_r50": ("train", "co_dino_r50", (), Work(size=LARGE, padded=True)),
    "eval co_dino_tiny": ("eval", "co_dino_tiny", (), Work(size=SMALL, images=1)),
    "eval co_dino_r50": ("eval", "co_dino_r50", (), Work(size=LARGE, images=1)),
    "predict co_dino_tiny": ("predict", "co_dino_tiny", (), Work(size=SMALL)),
    "predict co_dino_r50": ("predict", "co_dino_r50", (), Work(size=LARGE)),
}
FAST = [name for name in WORK if name.endswith("tiny")]


def count(name: str) -> dict[str, Counts]:
    """Kernels and waits of one work."""
    what, preset, overrides, work = WORK[name]
    settings = load_preset(preset, list(overrides))
    model = random_network(settings)
    with strict_device() as gpu:
        model = model.to(GPU)
        if what == "train":
            _, counts = training_step(model, settings, work, GPU, warm=True)
            kernels, waits = counts.kernel_lines, counts.wait_lines
        else:
            run = evaluated_batch if what == "eval" else predicted_image
            run(model, settings, work, GPU)
            kernels, waits = {"detection": gpu.kernels}, {"detection": gpu.waits}
        return {
            kind: {stage: by_file(lines) for stage, lines in stages.items()}
            for kind, stages in (("kernels", kernels), ("waits", waits))
        }


def by_file(lines: Counter) -> dict[str, int]:
    """Numbers by file, most first, after their sum; kernels of backward passes have no file."""
    files: Counter = Counter()
    for line, number in lines.items():
        files["backward" if line.startswith("backward") else line.split(":")[0].split(" ")[0]] += number
    return {"all": sum(lines.values()), **dict(files.most_common())}


def exceeded(counted: dict[str, Counts], limits: dict[str, Counts]) -> list[str]:
    """Which counts are above their limits, one line each."""
    found = []
    for kind, stages in counted.items():
        for stage, numbers in stages.items():
            allowed = limits[kind].get(stage, {})
            strict = numbers if kind == "waits" else ["all"]
            above = [file for file in strict if numbers[file] > allowed.get(file, 0)]
            if above and kind == "kernels":  # where they come from
                above += [file for file in numbers if file != "all" and numbers[file] > allowed.get(file, 0)]
            found += [f"{kind} of {stage}, {file}: {numbers[file]}, limit {allowed.get(file, 0)}" for file in above]
    return found


def lowered(counted: dict[str, Counts], limits: dict[str, Counts] | None) -> dict[str, Counts]:
    """The new limits: what was counted where the sum of a stage is not higher, else the old ones."""
    if limits is None:
        return counted
    return {
        kind: {
            stage: numbers if numbers["all"] <= limits[kind].get(stage, numbers)["all"] else limits[kind][stage]
            for stage, numbers in stages.items()
        }
        for kind, stages in counted.items()
    }


def read_limits() -> dict[str, dict[str, Counts]]:
    """Name -> limits."""
    return json.loads(LIMITS.read_text(encoding="utf-8")) if LIMITS.exists() else {}


def update(names: Iterable[str] = tuple(WORK), *, write: bool = True) -> list[str]:
    """Counts, lowers the limits, and returns what was counted and what is above its limit."""
    limits: dict[str, Any] = read_limits()
    lines = []
    for name in names:
        counted = count(name)
        for kind, stages in counted.items():
            old = {stage: numbers["all"] for stage, numbers in limits.get(name, {}).get(kind, {}).items()}
            now = {stage: numbers["all"] for stage, numbers in stages.items()}
            lines.append(f"{name}: {kind} {now}, limits {old}")
        lines += [f"  above: {line}" for line in exceeded(counted, limits[name])] if name in limits else []
        limits[name] = lowered(counted, limits.get(name))
    if write:
        text = json.dumps({name: limits[name] for name in WORK if name in limits}, indent=1)
        LIMITS.write_text(text + "\n", encoding="utf-8")
    return lines
