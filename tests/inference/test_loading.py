from __future__ import annotations

import os

import pytest
import torch

from codetr_cli.config.checkpoint_settings import settings_of_checkpoint
from codetr_cli.config.presets import load_preset
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.inference.loading import Classes, find_checkpoint, load_detector, newest_checkpoint
from codetr_cli.models.build import build_model
from codetr_cli.weights.checkpoint import load_checkpoint, save_checkpoint
from codetr_cli.weights.published import published_weights
from tests.inference.fakes import CATEGORY_IDS, CLASS_NAMES, write_checkpoint, write_run
from tests.weights.server import serve

CPU = torch.device("cpu")


def test_a_checkpoint_brings_its_settings_classes_and_weights(tmp_path, tiny_settings, caplog):
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    loaded = load_detector(path, CPU)
    assert loaded.class_names == CLASS_NAMES
    assert loaded.category_ids == CATEGORY_IDS
    assert loaded.settings == settings_of_checkpoint(tiny_settings, source="x")
    assert (loaded.settings.model, loaded.settings.test) == (tiny_settings.model, tiny_settings.test)
    assert loaded.path == path
    assert caplog.messages == []
    assert not loaded.model.training
    assert loaded.model.aux_heads is None
    stored = load_checkpoint(path).state
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, stored[name]), name


def test_overrides_reach_settings_and_postprocess(tmp_path, tiny_settings):
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    loaded = load_detector(path, CPU, ['test.nms="none"', "test.short_side=64"])
    assert loaded.postprocess.nms == "none"
    assert loaded.settings.test.short_side == 64


@pytest.mark.parametrize("head", ["roi", "atss"])
def test_auxiliary_heads_are_built_when_they_are_asked_for(tmp_path, tiny_settings, head):
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    loaded = load_detector(path, CPU, [f"test.head={head}"])
    assert loaded.model.aux_heads is not None
    assert loaded.postprocess.head == head
    assert load_detector(path, CPU, training=True).model.aux_heads is not None


def test_another_architecture_is_refused(tmp_path, tiny_settings):
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    with pytest.raises(CheckpointError, match="another architecture") as caught:
        load_detector(path, CPU, ["model.ffn_dim=128"])
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_wrong_override_suggests_the_right_one(tmp_path, tiny_settings):
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    with pytest.raises(ConfigError, match=r"test\.nms_iou"):
        load_detector(path, CPU, ["test.nms_iuo=0.5"])


def test_a_preset_has_random_weights(caplog):
    small = ["model.embed_dim=32", "model.ffn_dim=32", "model.backbone.base_channels=8", "model.norm_groups=8"]
    few = [*small, "model.encoder_layers=1", "model.decoder_layers=1"]
    loaded = load_detector("co_dino_r50", CPU, few, random_weights=True)
    assert loaded.path is None
    assert caplog.messages == []  # they were requested
    assert (loaded.class_names[0], loaded.category_ids[-1], len(loaded.class_names)) == ("person", 90, 80)
    loaded = load_detector("co_dino_r50", CPU, small, classes=Classes(["a", "b"], [4, 9]), random_weights=True)
    assert loaded.model.num_classes == 2
    assert loaded.settings.model.num_classes == 2
    assert (loaded.class_names, loaded.category_ids) == (["a", "b"], [4, 9])


def test_random_weights_of_a_preset_that_were_not_requested_are_warned_of(caplog):
    assert load_detector("co_dino_tiny", CPU).path is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "co_dino_tiny is a preset: its weights are random" in record.getMessage()


def test_a_run_folder_stands_for_its_best_checkpoint(tmp_path, tiny_settings):
    (last,) = write_run(tmp_path / "1", tiny_settings, "last")
    assert find_checkpoint(tmp_path / "1") == last
    (best,) = write_run(tmp_path / "1", tiny_settings, "best")
    assert find_checkpoint(tmp_path / "1") == best
    assert find_checkpoint(tmp_path / "1/checkpoints") == best
    assert find_checkpoint(tmp_path / "1/checkpoints/last") == last


def test_the_newest_run_is_found(tmp_path, tiny_settings):
    old = write_run(tmp_path / "runs/p/1", tiny_settings, "last")[0]
    new_last, new_best = write_run(tmp_path / "runs/p/2", tiny_settings, "last", "best")
    os.utime(old, (1, 1))
    os.utime(new_best, (2, 2))
    os.utime(new_last, (3, 3))
    assert newest_checkpoint(tmp_path / "runs") == new_best
    os.utime(old, (4, 4))
    assert newest_checkpoint(tmp_path / "runs") == old
    assert newest_checkpoint(tmp_path / "none") is None


def test_a_missing_file_suggests_the_newest_nearby(tmp_path, tiny_settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_run(tmp_path / "runs/p/1", tiny_settings, "last")[0]
    names = (
        "runs/p/1/checkpoints/last/modle.safetensors",
        "runs/p/7",
        "nowhere/at/all.pth",
        "model.safetensors",
        "/no.pth",
    )
    for wrong in names:
        with pytest.raises(CheckpointError, match="there is no checkpoint") as caught:
            find_checkpoint(wrong)
        assert wrong in str(caught.value)
        assert str(path.relative_to(tmp_path)) in str(caught.value)


def test_a_folder_without_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"contains no checkpoint.*codetr train"):
        find_checkpoint(tmp_path)


def test_a_mistyped_preset_suggests_the_right_one():
    with pytest.raises(ConfigError, match="co_dino_r50"):
        find_checkpoint("co_dino_r05")
    assert find_checkpoint("co_dino_tiny") is None  # no weights are published for it


def test_a_preset_stands_for_its_published_weights():
    with pytest.raises(CheckpointError, match="run `codetr download co_dino_r50`"):
        find_checkpoint("co_dino_r50")
    with pytest.raises(CheckpointError, match="see `codetr download co_deformable_r50`"):
        load_detector("co_deformable_r50", CPU)
    assert find_checkpoint("co_dino_r50", random_weights=True) is None


def test_a_downloaded_preset_is_loaded_by_its_name(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path))
    settings = load_preset("co_dino_tiny", ["model.num_classes=3"])
    place = published_weights(settings)
    state = build_model(settings.model).state_dict()
    save_checkpoint(place.converted, state, settings=settings, class_names=["a", "b", "c"], category_ids=[4, 5, 6])
    loaded = load_detector("co_dino_tiny", CPU)
    assert loaded.path == place.converted
    assert loaded.class_names == ["a", "b", "c"]
    assert caplog.messages == []
    assert load_detector("co_dino_tiny", CPU, random_weights=True).path is None


def test_an_address_is_loaded(tmp_path, tiny_settings, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    path = write_checkpoint(tmp_path / "m.safetensors", tiny_settings)
    with serve(path.read_bytes()) as served:
        for _ in range(2):
            loaded = load_detector(served.url, CPU)
        assert len(served.requests) == 1
    assert loaded.settings.model == tiny_settings.model


def test_an_unsafe_pickle_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"x": Bomb()}}, path)
    with pytest.raises(CheckpointError):
        load_detector(path, CPU)
    assert not (tmp_path / "exploded").exists()


def test_detectors_are_optimized_by_default(tiny_settings, tmp_path):
    path = write_checkpoint(tmp_path / "model.safetensors", tiny_settings)
    image = torch.rand(1, 3, 64, 96)
    optimized, plain = load_detector(path, CPU).model, load_detector(path, CPU, optimize=False).model
    assert optimized.optimized_for_inference
    assert not plain.optimized_for_inference
    assert not load_detector(path, CPU, training=True).model.optimized_for_inference
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    with torch.no_grad():
        torch.testing.assert_close(optimized(image, None), plain(image, None), rtol=1e-4, atol=1e-4)
