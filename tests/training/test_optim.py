from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from codetr_cli.config.train_settings import TrainConfig
from codetr_cli.errors import ConfigError
from codetr_cli.training.optim import (
    Schedule,
    base_learning_rate,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    set_learning_rate,
)
from tests.golden.case import Report, failing_lines
from tests.golden.optimizer_case import run_optimizer


def small_model() -> nn.Module:
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model.neck = nn.Linear(4, 2)
    model.backbone[1].requires_grad_(False)
    return model


def rates_of(groups: list[dict], model: nn.Module) -> dict[str, tuple[float, float]]:
    """Name -> (learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_groups_hold_each_trainable_parameter_once_and_decay_all_of_them():
    model = small_model()
    groups = parameter_groups(model, TrainConfig(lr=1.0, backbone_lr_scale=0.1, weight_decay=0.3))
    assert [(g["lr"], g["base_lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (0.1, 0.1, 0.3, 2),
        (1.0, 1.0, 0.3, 2),
    ]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for g in groups for p in g["params"]} == trained


def row_of_blocks() -> nn.Module:
    """The names of a ViT of three blocks and of what follows it."""
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
    model.backbone.patch_embed = nn.Conv2d(3, 2, 2)
    model.backbone.blocks = nn.ModuleList(nn.ModuleDict({"norm1": nn.LayerNorm(2)}) for _ in range(3))
    model.backbone.out_norm = nn.LayerNorm(2)
    model.encoder = nn.ModuleDict({"sampling_offsets": nn.Linear(2, 2)})
    model.scale = nn.Parameter(torch.tensor(1.0))
    return model


def test_rate_halves_from_block_to_block_and_vectors_are_not_decayed():
    model = row_of_blocks()
    config = TrainConfig(lr=1.0, weight_decay=0.3, backbone_lr_scale=1.0, layer_decay=0.5, decay_norms=False)
    rates = rates_of(parameter_groups(model, config), model)
    assert rates == {
        "backbone.pos_embed": (0.0625, 0.3),
        "backbone.patch_embed.weight": (0.0625, 0.3),
        "backbone.patch_embed.bias": (0.0625, 0.0),
        "backbone.blocks.0.norm1.weight": (0.125, 0.0),
        "backbone.blocks.0.norm1.bias": (0.125, 0.0),
        "backbone.blocks.1.norm1.weight": (0.25, 0.0),
        "backbone.blocks.1.norm1.bias": (0.25, 0.0),
        "backbone.blocks.2.norm1.weight": (0.5, 0.0),
        "backbone.blocks.2.norm1.bias": (0.5, 0.0),
        "backbone.out_norm.weight": (1.0, 0.0),
        "backbone.out_norm.bias": (1.0, 0.0),
        "encoder.sampling_offsets.weight": (1.0, 0.3),
        "encoder.sampling_offsets.bias": (1.0, 0.0),
        "scale": (1.0, 0.3),
    }


def test_sampling_offsets_have_their_own_rate_and_the_full_rate_is_last():
    model = row_of_blocks()
    config = TrainConfig(lr=1.0, weight_decay=0.3, backbone_lr_scale=3.0, offsets_lr_scale=0.1)
    groups = parameter_groups(model, config)
    rates = rates_of(groups, model)
    assert rates["encoder.sampling_offsets.bias"] == (0.1, 0.3)
    assert rates["scale"] == (1.0, 0.3)
    assert [group["lr"] for group in groups] == [0.1, 3.0, 1.0]


def test_layer_decay_needs_blocks():
    with pytest.raises(ConfigError, match=r"train.layer_decay 0.5 needs .*kind vit"):
        parameter_groups(small_model(), TrainConfig(layer_decay=0.5))


def test_a_model_without_trainable_parameters_is_refused():
    model = small_model().requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(model, TrainConfig())


def test_learning_rate_is_scaled_to_the_batch_only_when_asked():
    assert base_learning_rate(TrainConfig(lr=2e-4, batch_size=4)) == 2e-4
    assert base_learning_rate(TrainConfig(lr=2e-4, batch_size=4, scale_lr=True)) == pytest.approx(5e-5)


def test_step_schedule_is_that_of_torch():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.1)
    ours = Schedule(TrainConfig(lr_milestones=(2, 5)), total_steps=80)
    for epoch in range(8):
        assert ours.factor(step=epoch * 10, epoch=epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_cosine_schedule_falls_from_one_to_zero():
    schedule = Schedule(TrainConfig(lr_schedule="cosine"), total_steps=10)
    factors = [schedule.factor(step, epoch=0) for step in range(11)]
    assert factors[0] == 1.0
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.0)
    assert factors == sorted(factors, reverse=True)


def test_warmup_is_the_published_line():
    schedule = Schedule(TrainConfig(warmup_steps=500, warmup_start=0.01), total_steps=1000)
    for step in (0, 1, 250, 499):
        assert schedule.factor(step, epoch=0) == pytest.approx(1 - (1 - step / 500) * 0.99)
    assert schedule.factor(500, epoch=0) == 1.0


def test_setting_the_rate_keeps_the_ratio_of_the_groups():
    optimizer = build_optimizer(small_model(), TrainConfig(lr=2e-4, backbone_lr_scale=0.1))
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-6, 2e-5])


def test_gradients_are_clipped_together():
    a, b = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], 0.5) == pytest.approx(5.0)
    assert torch.cat([a.grad, b.grad]).norm() == pytest.approx(0.5, rel=1e-5)


def test_zero_clips_nothing_and_a_nan_shows_in_the_norm():
    a = torch.zeros(2, requires_grad=True)
    a.grad = torch.tensor([30.0, 40.0])
    assert clip_gradients([a], 0.0) == pytest.approx(50.0)
    assert a.grad.tolist() == [30.0, 40.0]
    a.grad = torch.tensor([math.nan, 1.0])
    assert not clip_gradients([a], 0.1).isfinite()


# ---------------------------------------------------------------------------------------------------- published groups


@pytest.mark.parity
@pytest.mark.parametrize(
    ("case", "stages"),
    [
        ("optimizer", {"groups/co_dino_5scale_r50_8xb2_1x_coco.py/lr", "preset/co_dino_r50/clip_norm"}),
        ("vit_l_optimizer", {"co_dino_vit_l/groups/lr", "co_dino_vit_l/lr_at/499", "ema/4/fc.bias"}),
    ],
)
def test_published_recipes(case: str, stages: set[str], shared_dir: Path):
    report = Report(case)
    run_optimizer(shared_dir / "golden/cases" / case, report)
    assert report.ok, failing_lines(report)
    assert stages <= {line.key for line in report.lines}
