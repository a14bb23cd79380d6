"""A network is compared with its weights, or with the memory, before anything is allocated for it."""

from __future__ import annotations

import time

import pytest
import torch

from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.inference import loading, model_size
from codetr_cli.inference.model_size import check_size
from codetr_cli.models.build import build_model
from codetr_cli.training.initial_weights import build_trainable_model
from tests.inference.fakes import write_checkpoint
from tests.weights.broken_checkpoints import reseal, set_settings

LARGEST = {
    "embed_dim": 2**16,
    "num_heads": 1,
    "norm_groups": 1,
    "ffn_dim": 2**16,
    "encoder_layers": 64,
    "decoder_layers": 64,
    "num_queries": 10**4,
    "num_classes": 10**5,
}


def test_a_network_that_fits_is_accepted(tiny_settings):
    for aux_heads in (True, False):
        check_size(tiny_settings, build_model(tiny_settings.model).state_dict(), aux_heads=aux_heads)
    check_size(tiny_settings)


def test_the_outline_leaves_random_numbers_alone(tiny_settings):
    before = torch.get_rng_state()
    check_size(tiny_settings)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backbone", ["resnet", "swin", "vit"])
def test_the_largest_settings_cost_seconds_and_no_memory(backbone, monkeypatch):
    deep = {
        "resnet": {"kind": "resnet", "layers": [64] * 4, "base_channels": 2**14},
        "swin": {"kind": "swin", "layers": [64] * 4, "embed_dim": 2**12, "num_heads": [1] * 4, "window_size": 7},
        "vit": {"kind": "vit", "depth": 64, "embed_dim": 2**16, "num_heads": 1, "global_blocks": []},
    }[backbone]
    settings = Settings.model_validate({"name": "x", "model": {**LARGEST, "backbone": deep}})
    monkeypatch.setattr(loading, "build_model", lambda *args, **kwargs: pytest.fail("it was built"))
    started = time.process_time()
    with pytest.raises(CheckpointError, match="another architecture"):
        check_size(settings, {"encoder.level_embed": torch.zeros(1)})
    assert time.process_time() - started < 10


def test_large_tables_are_refused(monkeypatch):
    monkeypatch.setattr(model_size, "MAX_TABLE_BYTES", 1 << 20)
    model = {"backbone": {"kind": "swin", "window_size": 32}}
    settings = Settings.model_validate({"name": "x", "model": model})
    with pytest.raises(ConfigError, match="attention windows of these sizes need tables"):
        check_size(settings)
    with pytest.raises(CheckpointError, match="need tables"):
        check_size(settings, {})


def test_settings_that_do_not_fit_together_are_an_error_of_the_settings(tiny_settings, monkeypatch):
    def build(*args, **kwargs):
        raise RuntimeError("a size is negative")

    monkeypatch.setattr("codetr_cli.models.build.build_model", build)
    with pytest.raises(ConfigError, match="the model settings do not fit together: a size is negative"):
        check_size(tiny_settings)
    with pytest.raises(CheckpointError, match=r"x has no settings of a network: .* a size is negative"):
        check_size(tiny_settings, {}, source="x")


def test_a_preset_that_is_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(model_size, "main_memory_left", lambda: 1 << 20)
    with pytest.raises(ResourceError, match=r"preset 'co_dino_tiny' has 0\.\d+ GiB of weights"):
        build_trainable_model(load_preset("co_dino_tiny"))


def test_a_checkpoint_allocates_nothing_before_it_was_compared(tmp_path, tiny_settings, monkeypatch):
    good = write_checkpoint(tmp_path / "good.safetensors", tiny_settings)
    change = set_settings(model__ffn_dim=2**16, model__encoder_layers=60)
    bad = reseal(good, tmp_path / "bad.safetensors", metadata=change)
    monkeypatch.setattr(loading, "build_model", lambda *args, **kwargs: pytest.fail("it was built"))
    with pytest.raises(CheckpointError, match="another architecture"):
        loading.load_detector(bad, torch.device("cpu"))
