"""The licence of weights, as their file says it: known, unknown, stated."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.errors import ConfigError
from codetr_cli.weights import licence as module
from codetr_cli.weights.licence import UNKNOWN, Licence, recorded_licence, stated_licence
from tests.inference.hub.records import KNOWN, write_weights


@pytest.mark.parametrize("name", ["Apache-2.0", " MIT ", "CC-BY-NC-4.0", "Our own licence"])
def test_a_licence_that_the_user_names(name: str):
    assert stated_licence(name) == Licence(name.strip(), "named by those who published it")


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "MIT\x1b[2J"])
def test_what_is_no_name(name: str):
    with pytest.raises(ConfigError, match="SPDX"):
        stated_licence(name)


def test_published_weights_have_the_licence_of_their_publisher(tmp_path: Path, tiny_settings):
    assert len(KNOWN) == 8  # the digits in the name of the file
    path = write_weights(
        tmp_path / "a.safetensors", tiny_settings, source_sha256=KNOWN + "0" * 56, source_file="any.pth"
    )
    found = recorded_licence(path)
    assert found.name == "MIT"
    assert found.reason == "the published weights of co_dino_r50 (the repository's)"


def test_a_converted_file_that_nobody_published(tmp_path: Path, tiny_settings):
    """The architecture of a preset is no proof: people train it themselves."""
    settings = tiny_settings.model_copy(update={"name": "co_dino_r50", "source": load_preset("co_dino_r50").source})
    path = write_weights(tmp_path / "a.safetensors", settings, source_sha256="0" * 64, source_file="my.pth")
    assert recorded_licence(path).name is None
    assert "my.pth, which is no published file" in recorded_licence(path).reason


def test_a_published_file_before_its_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "renamed.pth"
    path.write_bytes(b"weights")
    assert recorded_licence(path).name is None
    preset = load_preset("co_dino_r50")
    source = preset.source.model_copy(update={"sha256": hashlib.sha256(b"weights").hexdigest()})
    monkeypatch.setattr(module, "preset_names", lambda: ["co_dino_r50"])
    monkeypatch.setattr(module, "load_preset", lambda name: preset.model_copy(update={"source": source}))
    assert recorded_licence(path).name == "MIT"


def test_a_training_from_nothing_is_unknown(tmp_path: Path, tiny_settings):
    path = write_weights(tmp_path / "a.safetensors", tiny_settings, step="7")
    assert recorded_licence(path) == Licence(None, UNKNOWN)


def test_the_licence_that_a_checkpoint_records(tmp_path: Path, tiny_settings):
    path = write_weights(tmp_path / "a.safetensors", tiny_settings, **stated_licence("CC-BY-4.0").as_extra)
    assert recorded_licence(path) == stated_licence("CC-BY-4.0")
    assert Licence(None, "unknown").as_extra == {}


LICENSED = [name for name in preset_names() if load_preset(name).source.licence]


@pytest.mark.parametrize("preset", LICENSED)
def test_the_licences_of_all_presets_are_read(preset: str):
    source = load_preset(preset).source
    found = module._licence_of_source(source, preset)
    assert found.name in ("MIT", "Apache-2.0")
