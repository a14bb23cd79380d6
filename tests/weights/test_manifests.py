"""The complete published entry lists map one to one onto the models of the presets, under both publishers' names."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch

from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.models.build import build_model
from codetr_cli.weights.architecture import describe, differences
from codetr_cli.weights.convert import convert_file
from codetr_cli.weights.names import REASON_BATCH_COUNTER, REASON_ROTARY_TABLE, REASON_WINDOW_INDEX, find_naming
from codetr_cli.weights.tensor_layout import to_our_state
from tests.conftest import REPOSITORY

SHARED = Path(os.environ.get("CODETR_SHARED") or REPOSITORY.parent / "shared")
CASES = sorted(path.parent.name for path in (SHARED / "golden" / "cases").glob("*/manifest.json"))
RECOMPUTABLE = {REASON_BATCH_COUNTER, REASON_ROTARY_TABLE, REASON_WINDOW_INDEX}
# MMDetection 3 calls its configurations otherwise.
MMDET3_CONFIGS = {
    "co_dino_5scale_r50_8xb2_1x_coco": "co_dino_r50",
    "co_dino_5scale_swin_l_16xb1_1x_coco": "co_dino_swin_l",
}


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES or [pytest.param("", marks=pytest.mark.skip("no recorded cases here"))])


@cache
def read(case):
    folder = SHARED / "golden" / "cases" / case
    manifest = json.loads((folder / "manifest.json").read_text())
    assert max(Counter(name for name, _, _ in manifest).values()) == 1
    return json.loads((folder / "case.json").read_text()), manifest


def preset_of(config):
    if config in MMDET3_CONFIGS:
        return load_preset(MMDET3_CONFIGS[config])
    (found,) = [
        settings
        for settings in map(load_preset, preset_names())
        if settings.source.config and Path(settings.source.config).stem == config
    ]
    return found


def entries_of(manifest):
    """The published entries without numbers."""
    return {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, shape, dtype in manifest}


@cache
def model_shapes(preset):
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_model(load_preset(preset).model).state_dict().items()}


def other_spelling(case, entries):
    """The same entries as the other publisher names them, by the recorded rules; None where a family has one naming."""
    differing = json.loads((SHARED / "golden" / "key_differences.json").read_text())
    if "vit" in case or case.startswith(("co_deformable_r50", "co_deformable_mask_r50")):
        return None
    rules = differing["co_dino_swin_l" if "swin" in case else "co_dino_r50"]
    if "only_sensex" in rules:
        (sensex,), (mmdet3,) = rules["only_sensex"], rules["only_mmdet3"]
        pairs = [(sensex, mmdet3)]
    else:
        pairs = rules["rules_sensex_to_mmdet3"]
    back = find_naming(entries) == "mmdet3"

    def respell(name):
        for sensex, mmdet3 in pairs:
            source, target = (mmdet3, sensex) if back else (sensex, mmdet3)
            # Swin's parts have names that the transformer has too.
            if source in name and (not source.startswith(".") or name.startswith("backbone.")):
                name = name.replace(source, target)
        return name

    return {respell(name): value for name, value in entries.items()}


def assert_bijection(entries, shapes):
    renamed = to_our_state(entries)
    assert set(renamed.dropped) <= RECOMPUTABLE
    dropped = [name for names in renamed.dropped.values() for name in names]
    assert len(renamed.state) + len(dropped) == len(entries)
    assert {name: tuple(value.shape) for name, value in renamed.state.items()} == shapes
    return renamed


def test_every_entry_has_its_place_in_the_presets_model(case):
    facts, manifest = read(case)
    assert_bijection(entries_of(manifest), model_shapes(preset_of(facts["config"]).name))


def test_the_other_publisher_spells_the_same_model(case):
    facts, manifest = read(case)
    entries = entries_of(manifest)
    others = other_spelling(case, entries)
    if others is None:
        pytest.skip("one publisher only")
    assert others.keys() != entries.keys()
    assert find_naming(others) != find_naming(entries)
    assert_bijection(others, model_shapes(preset_of(facts["config"]).name))


def test_shapes_determine_the_preset(case):
    facts, manifest = read(case)
    entries = entries_of(manifest)
    found = describe(to_our_state(entries).state, entries)
    model = preset_of(facts["config"]).model
    # Two recordings were made on a smaller canvas, which their fixed rotary tables show.
    smaller = "img_size and canvas 512 instead of 1536" in facts["config_changes"]
    assert differences(model, found) == ({"model.backbone.fixed_size": (1536, 512)} if smaller else {})
    assert found["family"] == model.family


@pytest.mark.parametrize("case_name", ["co_deformable_swin_t_eval", "co_dino_r50_9enc_eval"])
def test_convert_finds_the_preset_by_itself(tmp_path, case_name):
    if case_name not in CASES:
        pytest.skip("no recorded cases here")
    facts, manifest = read(case_name)
    state = {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in manifest}
    path = tmp_path / f"{facts['config']}.pth"
    torch.save({"state_dict": state}, path)
    conversion = convert_file(path, expected_shapes=lambda settings: model_shapes(settings.name))
    assert conversion.preset == preset_of(facts["config"]).name
