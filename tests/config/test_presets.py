"""Every preset that ships: valid, complete about its source, buildable; and the verb that lists them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import torch

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.presets import load_preset, preset_figures, preset_names, presets_dir
from codetr_cli.config.schema import Settings
from codetr_cli.models.build import build_model, build_postprocess

RECOUNTED = ("co_dino_tiny", "co_deformable_mask_r50", "co_dino_vit_l_inst")


@pytest.mark.parametrize("name", preset_names())
class TestPreset:
    def test_holds_only_what_differs_from_the_defaults(self, name: str):
        table = tomllib.loads((presets_dir() / f"{name}.toml").read_text(encoding="utf-8"))
        kind = table.get("model", {}).get("backbone", {}).pop("kind", "resnet")
        plain = Settings.model_validate({"name": name, "model": {"backbone": {"kind": kind}}})
        assert list(_same(table, plain.model_dump(mode="json"))) == []

    def test_says_what_it_is(self, name: str):
        settings = load_preset(name)
        assert settings.summary
        assert f"codetr train --preset {name}" in (presets_dir() / f"{name}.toml").read_text(encoding="utf-8")

    def test_published_numbers_come_with_their_protocol(self, name: str):
        source = load_preset(name).source
        assert source.protocol
        if source.box_ap is not None:
            assert source.config
            assert source.licence
        if source.sha256 is not None:
            assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)

    def test_builds(self, name: str):
        settings = load_preset(name)
        with torch.device("meta"):
            model = build_model(settings.model)
        assert sum(parameter.numel() for parameter in model.parameters()) > 0
        build_postprocess(settings.test)

    def test_is_listed(self, name: str, codetr):
        listed = {row["name"]: row for row in codetr("presets", "--json").json["presets"]}
        settings = load_preset(name)
        assert listed[name]["box_ap"] == settings.source.box_ap
        assert listed[name]["queries"] == settings.model.num_queries
        assert listed[name]["parameters"] == preset_figures()[name]["parameters"]

    def test_is_printed_in_full(self, name: str, codetr):
        assert tomllib.loads(codetr("presets", name).out) == tomllib.loads(to_toml(load_preset(name)))


def _same(table: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of values that repeat the default."""
    repeated = []
    for key, value in table.items():
        if isinstance(value, dict):
            repeated += _same(value, defaults[key], f"{prefix}{key}.")
        elif value == defaults.get(key):
            repeated.append(prefix + key)
    return repeated


def test_reasoned_recipes_say_why():
    for name in preset_names():
        if load_preset(name).source.recipe == "reasoned":
            comments = (presets_dir() / f"{name}.toml").read_text(encoding="utf-8").partition("summary =")[0]
            assert re.search(r"test configuration|Only weights are published", comments), name


def test_figures_are_of_the_shipped_presets():
    assert sorted(preset_figures()) == preset_names()


@pytest.mark.parametrize("name", RECOUNTED)
def test_figures_are_those_of_the_networks(name: str):
    from benchmarks.count_presets import figures_of

    assert figures_of(name) == preset_figures()[name]


DEFORMABLE = ["model.family=co_deformable", "model.finest_stride=8"]
SWIN = ["model.backbone.kind=swin", "model.backbone.embed_dim=16", "model.backbone.num_heads=[1, 2, 2, 4]"]
VIT = [
    *("model.backbone.kind=vit", "model.backbone.embed_dim=32", "model.backbone.depth=2", "model.backbone.num_heads=2"),
    *("model.backbone.hidden_dim=48", "model.backbone.global_blocks=[1]", "model.backbone.window_size=4"),
]


@pytest.mark.parametrize(
    ("network", "levels"),
    [([], 4), ([], 6), (SWIN, 5), (DEFORMABLE, 4), (DEFORMABLE, 5), ([*DEFORMABLE, *SWIN], 4), (VIT, 5)],
    ids=["dino", "dino-6-levels", "dino-swin", "deformable", "deformable-5-levels", "deformable-swin", "dino-vit"],
)
def test_sizes_are_data(network: list[str], levels: int):
    """Numbers of queries, levels, layers and classes are settings of every family."""
    sizes = {"num_queries": 17, "num_levels": levels, "encoder_layers": 2, "decoder_layers": 1, "num_classes": 5}
    overrides = [f"model.{name}={value}" for name, value in sizes.items()]
    model = build_model(load_preset("co_dino_tiny", network + overrides).model).eval()
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 96, 128), torch.zeros(1, 96, 128, dtype=torch.bool))
    assert outputs["pred_logits"].shape == (1, 17, 5)
    assert outputs["pred_boxes"].shape == (1, 17, 4)
    assert len(model.encoder.layers) == 2
    assert len(model.decoder.layers) == 1
    assert len(model.class_heads) == 2
    assert model.encoder.level_embed.shape[0] == levels
