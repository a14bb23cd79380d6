"""Run folders with small checkpoints, and a process that holds one."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_cli.config.schema import Settings
from codetr_cli.runs.folder import RunFolder, RunInputs

INPUTS = RunInputs(train_annotations="/data/train.json", val_annotations="/data/val.json")

HOLDER = """
import sys, time
from pathlib import Path
from codetr_cli.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
print("locked", flush=True)
time.sleep(20)
"""
"""A program that holds the lock of a file for a while, and prints a line once it does."""

NAMES, IDS = ["a", "b", "c"], [2, 3, 7]


def weights(step: int) -> dict[str, Tensor]:
    return {"layer.weight": torch.full((3, 2), float(step))}


def save(folder: RunFolder, settings: Settings, step: int) -> None:
    folder.save(
        weights(step),
        {"step": step, "optimizer": {"state": {}, "param_groups": [], "x": [1, 2.5]}},
        settings=settings,
        class_names=NAMES,
        category_ids=IDS,
    )
