"""Files that say something of a checkpoint: evaluations, logs of a training, metadata of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.weights.checkpoint import save_checkpoint
from codetr_cli.weights.published import published_weights

CONTENT = "c" * 64


def write_metrics(folder: Path, **values: Any) -> Path:
    """The metrics.json of `codetr eval`, as far as it is read."""
    table = {
        "AP": 0.5,
        "AP50": 0.75,
        "mask_AP": 0.25,
        "APl": -1,
        "AR100": 0.6,
        "checkpoint": "elsewhere",
        "weights": CONTENT,
        "annotations": "/home/me/data/annotations/instances_val.json",
        "images": 60,
        "protocol": "single scale 96x160",
        "published": {"box_ap": 52.1, "mask_ap": None, "differences": [], "comparable": True},
        "per_class": [{"name": "disc", "category_id": 1, "objects": 3, "AP": 0.5, "AP50": 0.75}, {"odd": 1}],
        **values,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(table))
    return folder / "metrics.json"


def write_training(run: Path, *steps: int) -> Path:
    """The log files of a run with an evaluation after each of some steps."""
    run.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "eval", "step": step, "metrics": {"AP": step / 100, "AP50": 0.9}} for step in steps]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (run / "events.log").write_text("2026-01-01  evaluation protocol: one\n2026-01-02  evaluation protocol: two; val\n")
    return run


CLASSES = {"class_names": ["a", "b", "c"], "category_ids": [1, 2, 3]}
KNOWN = published_weights(load_preset("co_dino_r50")).remote.sha256
"""First digits of the hash of a published file."""


def write_weights(path: Path, settings: Settings, **extra: str) -> Path:
    """A checkpoint without weights."""
    save_checkpoint(path, {}, settings=settings, extra=extra, **CLASSES)
    return path
