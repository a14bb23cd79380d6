"""Runs our parameter groups, schedule and recipe on the recorded optimizer case."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from codetr_cli.config import TrainConfig, load_preset
from codetr_cli.engine.optim import base_learning_rate, build_optimizer, build_schedule, set_learning_rate
from codetr_cli.models.build import build_model
from codetr_cli.weights.names import to_published

PRESETS = {"co_dino_5scale_r50_8xb2_1x_coco.py": "co_dino_r50"}
"""Recorded configuration -> the preset that stands for it."""


class Compare(Protocol):
    """Takes a stage's name, our value, the recorded one and the largest relative error."""

    def __call__(self, key: str, ours: Any, recorded: Any, tolerance: float = ..., exact: bool = ...) -> None: ...


def run_optimizer(case_dir: Path, report: Compare) -> None:
    """Compares every recorded configuration's schedule, and recipe and groups of those that are presets here."""
    facts = json.loads((case_dir / "case.json").read_text(encoding="utf-8"))["facts"]
    for config, recorded in facts["configs"].items():
        _compare_schedule(config, recorded, report)
        if config in PRESETS:
            _compare_recipe(PRESETS[config], recorded, report)
    for config, recorded in facts["groups"].items():
        if config in PRESETS:
            _compare_groups(config, recorded, report)


def _compare_schedule(config: str, recorded: dict[str, Any], report: Compare) -> None:
    """The learning rate of every epoch, against PyTorch's scheduler with the recorded milestones."""
    rule = recorded["param_scheduler"][0]
    lr = recorded["optim_wrapper"]["optimizer"]["lr"]
    # Some recorded configurations override the rule with a dict of milestones alone; the end is their epochs.
    gamma, epochs = rule.get("gamma", 0.1), int(recorded["train_cfg"]["max_epochs"])
    theirs = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(theirs, rule["milestones"], gamma=gamma)
    train = TrainConfig(lr=lr, lr_milestones=tuple(rule["milestones"]), lr_gamma=gamma, epochs=epochs)
    schedule = build_schedule(train, total_steps=epochs)
    ours, wanted = [], []
    for epoch in range(epochs):
        ours.append(base_learning_rate(train) * schedule.factor(epoch, epoch))
        wanted.append(theirs.param_groups[0]["lr"])
        theirs.step()
        scheduler.step()
    report(f"schedule/{config}", ours, wanted, 1e-12)


def _compare_recipe(preset: str, recorded: dict[str, Any], report: Compare) -> None:
    train = load_preset(preset).train
    wrapper = recorded["optim_wrapper"]
    report(f"preset/{preset}/lr", train.lr, wrapper["optimizer"]["lr"])
    report(f"preset/{preset}/weight_decay", train.weight_decay, wrapper["optimizer"]["weight_decay"])
    report(f"preset/{preset}/clip_norm", train.clip_norm, wrapper["clip_grad"]["max_norm"])
    report(f"preset/{preset}/epochs", train.epochs, int(recorded["train_cfg"]["max_epochs"]), exact=True)
    report(f"preset/{preset}/milestones", train.lr_milestones, recorded["param_scheduler"][0]["milestones"], exact=True)
    report(f"preset/{preset}/gamma", train.lr_gamma, recorded["param_scheduler"][0]["gamma"])
    report(f"preset/{preset}/batch_size", train.batch_size, recorded["auto_scale_lr"]["base_batch_size"], exact=True)
    report(f"preset/{preset}/micro_batch", train.micro_batch, recorded["train_batch_size_per_gpu"], exact=True)
    report(f"preset/{preset}/eval_every", train.eval_every, recorded["train_cfg"]["val_interval"], exact=True)


def _compare_groups(config: str, recorded: dict[str, Any], report: Compare) -> None:
    """Learning rate and weight decay of every parameter by its published name, at the start and after the milestone."""
    settings = load_preset(PRESETS[config])
    model = build_model(settings.model)
    optimizer = build_optimizer(model, settings.train)
    published = {id(p): to_published(name, "mmdet3") for name, p in model.named_parameters()}
    wanted = dict(_recorded_parameters(recorded["by_lr_wd"]))
    report(f"groups/{config}/parameters", len(_parameters(optimizer)), len(wanted), exact=True)
    names = sorted(wanted)
    for key, lowered in (("lr", 1.0), ("lr_after_milestone", settings.train.lr_gamma)):
        set_learning_rate(optimizer, lowered)
        rates = {published[id(p)]: group["lr"] for p, group in _parameters(optimizer)}
        report(
            f"groups/{config}/{key}",
            [rates.get(name, float("nan")) for name in names],
            [wanted[name][0] * lowered for name in names],
            1e-12,
        )
    decays = {published[id(p)]: group["weight_decay"] for p, group in _parameters(optimizer)}
    report(
        f"groups/{config}/weight_decay",
        [decays.get(name, float("nan")) for name in names],
        [wanted[name][1] for name in names],
        1e-12,
    )
    defaults = recorded["defaults"]
    for key in ("lr", "betas", "eps", "weight_decay"):
        report(f"groups/{config}/defaults/{key}", optimizer.defaults[key], _numbers(defaults[key]), 1e-12)


def _recorded_parameters(groups: dict[str, list[str]]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Published name -> (lr, weight decay) of every parameter that is trained."""
    for title, names in groups.items():
        match = re.fullmatch(r"lr=(\S+) weight_decay=(\S+) trainable=(True|False)", title)
        if match is None:
            raise ValueError(f"unknown title of a group: {title!r}")
        if match[3] == "True":
            for name in names:
                yield name, (float(match[1]), float(match[2]))


def _parameters(optimizer: torch.optim.Optimizer) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    return [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]


def _numbers(text: str) -> float | list[float]:
    values = [float(part) for part in text.strip("()").split(",")]
    return values if len(values) > 1 else values[0]
