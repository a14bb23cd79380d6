"""What the run folder of a finished training holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics(run) if line["kind"] == "train"]


def assert_same_weights(ours: Path, theirs: Path) -> None:
    a, b = (load_file(run / "checkpoints/last/model.safetensors") for run in (ours, theirs))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
