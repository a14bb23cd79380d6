"""What is said of a model: the licence of its weights, which is not that of the preset they were trained by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("starlette", reason="the extra serve is not installed")

from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.export.job import describe
from codetr_cli.export.options import ExportOptions
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.loading import LoadedModel, load_detector
from codetr_cli.serving.model_info import describe_model
from codetr_cli.serving.options import ServeOptions
from codetr_cli.weights.checkpoint import load_checkpoint, save_checkpoint
from codetr_cli.weights.licence import stated_licence
from tests.inference.exported.fake_engine import FakeEngine
from tests.inference.fakes import write_checkpoint
from tests.serving.fakes import FakeDetector


def loaded_from(path: Path, settings: Settings, **extra: str) -> LoadedModel:
    """A network of a preset whose publisher names a licence."""
    write_checkpoint(path, settings.model_copy(update={"source": load_preset("co_dino_r50").source}))
    save_checkpoint(path, **{**vars(load_checkpoint(path)), "extra": extra})
    return load_detector(path, torch.device("cpu"))


def licences(loaded: LoadedModel) -> list[str | None]:
    """As a server says it, as an exported file records it, and as a server says it of that file."""
    metadata = describe(loaded, ExportOptions(format="onnx", size=(96, 160)))
    exported = ExportedNetwork(FakeEngine(loaded, metadata))
    found = []
    for model in (loaded.model, exported):
        detector = FakeDetector(loaded.settings)
        detector.loaded.path, detector.loaded.model = loaded.path, model
        found.append(describe_model(detector, ServeOptions())["weights"]["licence"])
    return [found[0], metadata.weights.licence, found[1]]


def test_the_licence_of_a_preset_is_not_that_of_own_weights(tmp_path: Path, tiny_settings: Settings):
    assert load_preset("co_dino_r50").source.licence
    assert licences(loaded_from(tmp_path / "a.safetensors", tiny_settings)) == [None, None, None]


def test_the_licence_of_weights_comes_with_them(tmp_path: Path, tiny_settings: Settings):
    extra = stated_licence("CC-BY-4.0").as_extra
    assert licences(loaded_from(tmp_path / "a.safetensors", tiny_settings, **extra)) == ["CC-BY-4.0"] * 3


def test_random_weights_have_none():
    loaded = load_detector("co_dino_tiny", torch.device("cpu"), random_weights=True)
    assert licences(loaded) == [None, None, None]
