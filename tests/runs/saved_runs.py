"""Run folders with small checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_cli.config.schema import Settings
from codetr_cli.runs.folder import RunFolder, RunInputs

INPUTS = RunInputs(train_annotations="/data/train.json", val_annotations="/data/val.json")


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
