"""Every preset that ships: valid, complete about its source, buildable; and the verb that lists them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import torch

from codetr_cli.config import Settings, load_preset, preset_names, presets_dir, to_toml


@pytest.mark.parametrize("name", preset_names())
class TestPreset:
    def test_holds_only_what_differs_from_the_defaults(self, name: str):
        table = tomllib.loads((presets_dir() / f"{name}.toml").read_text(encoding="utf-8"))
        defaults = Settings(name=name).model_dump(mode="json")
        assert list(_same(table, defaults)) == []

    def test_says_what_it_is(self, name: str):
        settings = load_preset(name)
        assert settings.summary
        assert f"codetr train --preset {name}" in (presets_dir() / f"{name}.toml").read_text(encoding="utf-8")

    def test_published_numbers_come_with_their_protocol(self, name: str):
        source = load_preset(name).source
        if source.box_ap is not None:
            assert source.protocol
            assert source.config
            assert source.licence
        if source.sha256 is not None:
            assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)

    def test_builds(self, name: str):
        from codetr_cli.models.build import build_model, build_postprocess

        settings = load_preset(name)
        with torch.device("meta"):
            model = build_model(settings.model)
        assert sum(parameter.numel() for parameter in model.parameters()) > 0
        build_postprocess(settings.test)

    def test_is_listed(self, name: str, codetr):
        listed = {row["name"]: row for row in codetr("presets", "--json").json["presets"]}
        assert listed[name]["box_ap"] == load_preset(name).source.box_ap

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


def test_table_has_ap_and_protocol(codetr):
    text = codetr("presets").out
    row = next(line for line in text.splitlines() if "co_dino_r50 " in line)
    assert "52.1" in row
    assert "AP at 100 detections" in row


def test_override_shows(codetr):
    ran = codetr("presets", "co_dino_r50", "--set", "train.lr=0.5", "--json")
    assert ran.json["train"]["lr"] == 0.5


def test_override_without_a_preset(codetr):
    assert codetr("presets", "--set", "train.lr=0.5").code == 2
