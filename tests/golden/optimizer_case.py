"""Runs our parameter groups, schedules, averaging and recipes on the recorded optimizer cases of both publishers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import nn

from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.config.train_settings import TrainConfig
from codetr_cli.models.build import build_model
from codetr_cli.training.ema import ModelEma, step_momentum
from codetr_cli.training.optim import Schedule, base_learning_rate, build_optimizer, set_learning_rate
from codetr_cli.weights.names import Naming, to_published
from tests.golden import synth
from tests.golden.case import UnsupportedCaseError

MMDET_PRESETS = {
    "co_dino_5scale_r50_8xb2_1x_coco.py": "co_dino_r50",
    "co_dino_5scale_r50_lsj_8xb2_1x_coco.py": "co_dino_r50_lsj",
    "co_dino_5scale_r50_lsj_8xb2_3x_coco.py": "co_dino_r50_lsj_3x",
    "co_dino_5scale_swin_l_16xb1_1x_coco.py": "co_dino_swin_l",
    "co_dino_5scale_swin_l_16xb1_3x_coco.py": "co_dino_swin_l_3x",
    "co_dino_5scale_swin_l_16xb1_16e_o365tococo.py": "co_dino_swin_l_o365_coco",
    "co_dino_5scale_swin_l_lsj_16xb1_1x_coco.py": "co_dino_swin_l_lsj",
    "co_dino_5scale_swin_l_lsj_16xb1_3x_coco.py": "co_dino_swin_l_lsj_3x",
}
"""MMDetection's configuration -> the preset that stands for it. Sense-X's are named in the presets themselves."""

EPOCH_STEPS = 1200  # of the recorded schedules by epoch


class Compare(Protocol):
    """Takes a stage's name, our value, the recorded one and the largest relative error."""

    def __call__(self, key: str, ours: Any, recorded: Any, tolerance: float = ..., exact: bool = ...) -> None: ...


def run_optimizer(case_dir: Path, report: Compare) -> None:
    """Compares every recorded configuration's schedule, groups and recipe with its preset's; and the averaging.

    Raises:
        UnsupportedCaseError: a configuration that no preset stands for.
    """
    description = json.loads((case_dir / "case.json").read_text(encoding="utf-8"))
    facts = description["facts"]
    if description.get("published_by") == "sensex":
        for config, recorded in facts["configs"].items():
            _compare_sensex(config, recorded, report)
    else:
        for config, recorded in facts["configs"].items():
            _compare_schedule(config, recorded, report)
            _compare_recipe(MMDET_PRESETS[config], recorded, report)
        for config, recorded in facts["groups"].items():
            _compare_groups(config, recorded, report)
    if "ema" in facts:
        _compare_averages(case_dir, facts["ema"], report)


# -------------------------------------------------------------------------------------------------------- MMDetection 3


def _compare_schedule(config: str, recorded: dict[str, Any], report: Compare) -> None:
    """The learning rate of every epoch, against PyTorch's scheduler with the recorded milestones."""
    rule = recorded["param_scheduler"][0]
    lr = recorded["optim_wrapper"]["optimizer"]["lr"]
    # Some recorded configurations override the rule with a dict of milestones alone; the end is their epochs.
    gamma, epochs = rule.get("gamma", 0.1), int(recorded["train_cfg"]["max_epochs"])
    theirs = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(theirs, rule["milestones"], gamma=gamma)
    train = TrainConfig(lr=lr, lr_milestones=tuple(rule["milestones"]), lr_gamma=gamma, epochs=epochs)
    schedule = Schedule(train, total_steps=epochs)
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
    report(f"preset/{preset}/gamma", train.lr_gamma, recorded["param_scheduler"][0].get("gamma", 0.1))
    report(f"preset/{preset}/batch_size", train.batch_size, recorded["auto_scale_lr"]["base_batch_size"], exact=True)
    report(f"preset/{preset}/micro_batch", train.micro_batch, recorded["train_batch_size_per_gpu"], exact=True)
    report(f"preset/{preset}/eval_every", train.eval_every, recorded["train_cfg"]["val_interval"], exact=True)


def _compare_groups(config: str, recorded: dict[str, Any], report: Compare) -> None:
    """Learning rate and weight decay of every parameter by its published name, at the start and after the milestone."""
    settings = load_preset(MMDET_PRESETS[config])
    optimizer, published = _optimizer_of(settings, "mmdet3")
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


# -------------------------------------------------------------------------------------------------------------- Sense-X


@cache
def sensex_presets() -> dict[str, str]:
    """Sense-X's configuration, as a path below projects/configs -> the preset that stands for it."""
    sources = {name: load_preset(name).source.config for name in preset_names()}
    return {config.removeprefix("projects/configs/"): name for name, config in sources.items() if config}


def _compare_sensex(config: str, recorded: dict[str, Any], report: Compare) -> None:
    if config not in sensex_presets():
        raise UnsupportedCaseError(f"no preset stands for the configuration {config}")
    preset = sensex_presets()[config]
    settings = load_preset(preset)
    train = settings.train
    clip = recorded["grad_clip"] or {"grad_clip": {"max_norm": 0.0}}
    report(f"{preset}/lr", train.lr, recorded["optimizer"]["lr"])
    report(f"{preset}/clip_norm", train.clip_norm, clip["grad_clip"]["max_norm"])
    report(f"{preset}/epochs", train.epochs, recorded["runner"]["max_epochs"], exact=True)
    momenta = [hook["momentum"] for hook in recorded["custom_hooks"] if "EMA" in hook["type"]]
    report(f"{preset}/ema_momentum", train.ema_momentum, momenta[0] if momenta else 0.0)

    optimizer, published = _optimizer_of(settings, "sensex")
    groups = {published[id(p)]: group for p, group in _parameters(optimizer)}
    wanted = {name: recorded["groups"][index] for name, index in recorded["params"].items()}
    report(f"{preset}/trained", len(groups.keys() ^ wanted.keys()), 0, exact=True)
    report(f"{preset}/groups", len(optimizer.param_groups), len(recorded["groups"]), exact=True)
    for key in ("lr", "weight_decay"):
        ours = [groups[name][key] if name in groups else float("nan") for name in wanted]
        report(f"{preset}/groups/{key}", ours, [group[key] for group in wanted.values()], 1e-12)
    for key in ("betas", "eps"):
        report(f"{preset}/{key}", optimizer.defaults[key], recorded["adamw"][key], 1e-12)

    schedule = Schedule(train, total_steps=train.epochs * EPOCH_STEPS)
    rates = recorded["schedule"]
    for step, lrs in rates["lr_at_iteration"].items():
        factor = schedule.factor(int(step), epoch=0)
        report(f"{preset}/lr_at/{step}", [lr * factor for lr in rates["regular_lrs"]], lrs, 1e-12)
    for epoch, lrs in rates["lr_in_epoch"].items():
        factor = schedule.factor((int(epoch) + 1) * EPOCH_STEPS - 1, epoch=int(epoch))
        report(f"{preset}/lr_in_epoch/{epoch}", [lr * factor for lr in rates["regular_lrs"]], lrs, 1e-12)


def _compare_averages(case_dir: Path, facts: dict[str, Any], report: Compare) -> None:
    """The moving average of a small model after each of the recorded changes of its weights."""
    recorded = load_file(case_dir / "tensors.safetensors")
    model = nn.Module()
    model.register_buffer("table", torch.zeros(2, 3))
    model.conv, model.bn, model.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)
    model.double()

    def fill(salt: str, count: int) -> None:
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(synth.parameter(name, tuple(value.shape), salt)))
            else:
                value.fill_(count)

    fill("ema/init/", 0)
    average = ModelEma(model, facts["momentum"])
    for step, momentum in enumerate(facts["momenta"]):
        report(f"ema/{step}/momentum", step_momentum(step, facts["momentum"]), momentum, 1e-12)
        fill(f"ema/{step}/", step + 1)
        average.update(model, step)
        for name, value in average.state.items():
            report(f"ema/{step}/{name}", value, recorded[f"ema/{step}/{name.replace('.', '/')}"], 1e-12)
    for step, momentum in facts["momentum_at_iter"].items():
        report(f"ema/momentum_at/{step}", step_momentum(int(step), facts["momentum"]), momentum, 1e-12)


# -------------------------------------------------------------------------------------------------------------- shared


def _optimizer_of(settings: Settings, naming: Naming) -> tuple[torch.optim.Optimizer, dict[int, str | None]]:
    """A preset's optimizer on a network without storage, and its parameters' published names by identity."""
    with torch.device("meta"):
        model = build_model(settings.model)
    family = settings.model.family
    published = {id(p): to_published(name, naming, family) for name, p in model.named_parameters()}
    return build_optimizer(model, settings.train), published


def _parameters(optimizer: torch.optim.Optimizer) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    return [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]


def _numbers(text: str) -> float | list[float]:
    values = [float(part) for part in text.strip("()").split(",")]
    return values if len(values) > 1 else values[0]
