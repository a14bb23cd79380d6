"""Every row of the published zoo has a preset, and each preset says what its row says, figure by figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.config import Settings, load_preset, preset_names
from codetr_cli.models.build import FINEST_SCALE_CELLS
from tests.golden.zoo import FIGURES, read_zoo

PRE_TRAINING = {"co_dino_swin_l_o365", "co_dino_vit_l_o365"}
"""Published as weights alone, to start from: no configuration, no row."""
OWN = {"co_dino_tiny"}

PUBLISHED: dict[str, dict[str, Any]] = json.loads(FIGURES.read_text(encoding="utf-8"))


def presets_by_config() -> dict[str, Settings]:
    settings = [load_preset(name) for name in preset_names()]
    return {preset.source.config: preset for preset in settings if preset.source.config}


@pytest.mark.parity
def test_kept_figures_are_those_of_the_zoo(shared_dir: Path):
    assert read_zoo(shared_dir / "golden/zoo.json") == PUBLISHED


def test_every_row_has_one_preset_and_every_preset_a_row():
    configs = [load_preset(name).source.config for name in preset_names() if name not in PRE_TRAINING | OWN]
    assert sorted(configs, key=str) == sorted(PUBLISHED)


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda config: Path(config).stem)
def test_preset_says_what_its_row_says(config: str):
    settings = presets_by_config()[config]
    table = settings.model_dump(mode="json")
    table["model"]["roi"]["finest_scale"] = (
        settings.model.roi.finest_scale or FINEST_SCALE_CELLS * settings.model.finest_stride
    )
    wanted = PUBLISHED[config]
    assert {name: figure(table, name) for name in wanted} == wanted


def figure(table: dict[str, Any], name: str) -> Any:
    value: Any = table
    for part in name.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("name", sorted(PRE_TRAINING))
def test_pre_training_is_reasoned_and_fits_what_starts_from_it(name: str):
    settings = load_preset(name)
    assert settings.source.recipe == "reasoned"
    assert settings.model.num_classes == 365
    tuned = load_preset(name.removesuffix("_o365") if "vit" in name else f"{name}_coco")
    assert settings.model.model_copy(update={"num_classes": 80}) == tuned.model
    assert settings.train.loss == tuned.train.loss


def test_figures_with_and_without_augmentation_are_not_mixed_up():
    vit, instance = load_preset("co_dino_vit_l").source, load_preset("co_dino_vit_l_inst").source
    assert (vit.box_ap, vit.box_ap_tta) == (65.4, 65.9)
    assert (instance.box_ap, instance.box_ap_tta) == (65.3, 65.8)
    assert (instance.mask_ap, instance.mask_ap_tta) == (56.2, 56.6)
