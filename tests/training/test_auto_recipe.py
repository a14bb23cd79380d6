"""The recipe that fits the size of the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.config.overrides import replace_settings, user_set
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from codetr_cli.models.build import build_model
from codetr_cli.runs.folder import RunFolder
from codetr_cli.runs.resume import choose_run
from codetr_cli.training.auto_recipe import MAX_EPOCHS, fit_recipe
from codetr_cli.training.plan import TrainJob, plan_job


def fitted(preset: str, images: int, *, weights: bool, by_hand: tuple[str, ...] = ()) -> tuple[Settings, str]:
    settings = load_preset(preset, list(by_hand))
    recipe = fit_recipe(settings, images=images, from_weights=weights, chosen=user_set(settings))
    return replace_settings(settings, recipe.changes), " ".join(recipe.sentences)


def test_published_data_are_trained_on_as_published():
    settings, text = fitted("co_dino_r50", 118_287, weights=False)
    assert settings == load_preset("co_dino_r50")
    assert text == ""


def test_a_detector_is_tuned_gently_to_few_images():
    settings, text = fitted("co_dino_r50", 205, weights=True)
    train = settings.train
    assert train.freeze_backbone
    assert train.lr == 1e-4
    assert train.epochs == 154  # 13 steps of 16 images each: 2,002
    assert train.lr_milestones == (141,)
    assert train.eval_every == 16
    assert train.warmup_steps == 100
    for said in (
        "205 images",
        "backbone is frozen",
        "0.0001",
        "154 epochs",
        "after 141",
        "every 16",
        "100 steps",
        "--set",
    ):
        assert said in text


def test_more_images_need_fewer_changes():
    settings, text = fitted("co_dino_r50", 5_000, weights=True)
    assert not settings.train.freeze_backbone
    assert (settings.train.lr, settings.train.epochs, settings.train.lr_milestones) == (1e-4, 12, (11,))
    assert "epochs" not in text
    settings, text = fitted("co_dino_r50", 30_000, weights=True)
    assert settings == load_preset("co_dino_r50")
    assert text == ""


def test_random_weights_need_more_steps():
    settings, _ = fitted("co_dino_r50", 5_000, weights=False)
    assert (settings.train.epochs, settings.train.lr) == (64, 2e-4)  # 313 steps each
    settings, _ = fitted("co_dino_r50", 20, weights=False)
    assert settings.train.epochs == MAX_EPOCHS
    settings, _ = fitted("co_dino_tiny", 205, weights=False)
    assert (settings.train.epochs, settings.train.eval_every) == (39, 4)


def test_a_learning_rate_made_for_fine_tuning_stays():
    assert fitted("co_dino_vit_l", 1_000, weights=True)[0].train.lr == load_preset("co_dino_vit_l").train.lr


def test_what_a_person_chose_stays():
    by_hand = ("train.epochs=3", "train.lr=3e-4", "train.freeze_backbone=false", "train.warmup_steps=0")
    settings, text = fitted("co_dino_r50", 205, weights=True, by_hand=by_hand)
    assert settings == load_preset("co_dino_r50", list(by_hand))
    assert text == ""
    settings, text = fitted("co_dino_r50", 205, weights=True, by_hand=("train.auto_recipe=false",))
    assert settings.train.epochs == 12
    assert text == ""


def test_a_preset_file_of_ones_own_is_a_choice(tmp_path: Path):
    own = tmp_path / "mine.toml"
    own.write_text("[train]\nepochs = 5\n[train.loss]\nclass_weight = 2.0\n", encoding="utf-8")
    assert user_set(load_preset(str(own), ["train.lr=1e-3"])) == {"train.epochs", "train.loss.class_weight", "train.lr"}
    assert fitted(str(own), 205, weights=True)[0].train.epochs == 5


def test_the_length_of_max_steps_stays():
    settings, _ = fitted("co_dino_tiny", 205, weights=False, by_hand=("train.max_steps=7",))
    assert (settings.train.max_steps, settings.train.epochs) == (7, 10)


@pytest.mark.parametrize("preset", ["co_dino_tiny", "co_dino_vit_l"])
def test_a_frozen_backbone_leaves_the_optimizer_the_rest(preset: str):
    import torch

    from codetr_cli.training.optim import build_optimizer

    settings = load_preset(preset, ["train.freeze_backbone=true"])
    with torch.device("meta"):
        model = build_model(settings.model)
    model.backbone.requires_grad_(False)
    trained = {id(p) for group in build_optimizer(model, settings.train).param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if not name.startswith("backbone.")}


def test_a_run_with_a_recipe_is_prolonged_with_its_own_settings(tmp_path: Path, tiny_coco: Path):
    """A length by hand switches off what the recipe had made of the milestones; the message says how it works."""

    def job(preset: str, *overrides: str) -> TrainJob:
        settings = load_preset(preset, list(overrides))
        return plan_job(settings, data=str(tiny_coco), evaluate=False, chosen=user_set(settings))

    run, begun = RunFolder(tmp_path / "run"), job("co_dino_r50")
    run.open(begun.settings, begun.inputs)
    run.log({"kind": "end", "step": 300})
    with pytest.raises(
        ConfigError, match=r"is finished; .*--preset .*run/settings\.toml and a larger --set train\.epochs"
    ):
        choose_run(begun.settings, begun.inputs, run=run.path)
    longer = job("co_dino_r50", "train.epochs=400")
    with pytest.raises(ConfigError, match=r"lr_milestones.* its settings with --preset .*run/settings\.toml"):
        choose_run(longer.settings, longer.inputs, run=run.path)
    longer = job(str(run.settings_path), "train.epochs=400")
    assert choose_run(longer.settings, longer.inputs, run=run.path).resume
    assert longer.settings.train.lr_milestones == begun.settings.train.lr_milestones
