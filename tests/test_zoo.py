"""Every row of the published zoo has a preset that says what its row says; the table in docs/zoo.md and its ticks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.config.model_settings import ModelConfig
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.models.build import FINEST_SCALE_CELLS, build_model
from codetr_cli.weights.names import Naming, to_ours, to_published
from codetr_cli.weights.tensor_layout import to_our_state
from tests.golden.case import Case
from tests.golden.network_inputs import settings_of
from tests.golden.shared_cases import QUICK_CASES, SLOW_CASES
from tests.golden.zoo import FIGURES, read_zoo
from tests.zoo_table import CASES, network_of, page_parts, zoo_table

PRE_TRAINING = {"co_dino_swin_l_o365", "co_dino_vit_l_o365"}
"""Published as weights only, for fine-tuning: no configuration, no row."""
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
def test_preset_has_the_values_of_its_row(config: str):
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


# ---------------------------------------------------------------------------------------------------- docs/zoo.md


def test_the_page_has_the_table():
    assert page_parts()[1] == zoo_table(), "run: make pages"


def test_rows_of_the_table():
    rows = {line.split("`")[1]: line for line in zoo_table().splitlines() if "`" in line}
    assert rows.keys() == set(preset_names())
    assert (
        rows["co_dino_vit_l"] == "| `co_dino_vit_l` | Co-DINO ViT-L | COCO | 12 | 65.4 (65.9 TTA) | - | ✓ | ✓ "
        "| 7,554 | 347 M |"
    )
    assert "| names | - |" in rows["co_dino_vit_l_o365"]


def test_cases_behind_the_ticks_are_run():
    assert set(CASES.values()) <= {*QUICK_CASES, *SLOW_CASES}


@cache
def shapes_of(config: ModelConfig) -> dict[str, torch.Size]:
    """Our name -> shape of every entry of a network."""
    with torch.device("meta"):
        return {name: value.shape for name, value in build_model(config).state_dict().items()}


@pytest.mark.parity
@pytest.mark.parametrize("preset", sorted(CASES))
def test_ticks_are_earned(preset: str, shared_dir: Path):
    """The recorded network is the preset's, and its published entries are the model's, one to one."""
    case = Case.load(shared_dir / "golden/cases" / CASES[preset])
    recorded, ours = settings_of(case, case.shapes).model, load_preset(preset).model
    assert network_of(recorded) == network_of(ours)
    sizes = {"num_classes": recorded.num_classes, "num_queries": recorded.num_queries}
    with torch.device("meta"):
        entries = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in case.manifest}
    shapes = {name: value.shape for name, value in to_our_state(entries).state.items()}
    assert shapes == shapes_of(ours.model_copy(update=sizes))


@pytest.mark.parametrize("naming", ["sensex", "mmdet3"])
@pytest.mark.parametrize("preset", sorted(set(preset_names()) - {"co_dino_tiny"}))
def test_every_entry_has_one_published_name(preset: str, naming: Naming):
    settings = load_preset(preset)
    if naming == "mmdet3" and settings.model.backbone.kind == "vit":
        pytest.skip("published by Sense-X only")
    names = list(shapes_of(settings.model))
    published = {name: to_published(name, naming, settings.model.family) for name in names}
    assert [name for name, theirs in published.items() if theirs is None or to_ours(theirs, naming) != name] == []
    assert len(set(published.values())) == len(names)
