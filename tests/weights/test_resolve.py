"""Presets, paths and URLs are resolved to checkpoints; published files are converted once and cached."""

from __future__ import annotations

import errno
import io
import os

import pytest
import safetensors.torch
import torch

from codetr_cli.config.overrides import parse_settings, to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.files import cache_dir
from codetr_cli.weights import resolve
from codetr_cli.weights.checkpoint import load_checkpoint, save_checkpoint
from codetr_cli.weights.published import published_weights
from codetr_cli.weights.resolve import open_weights, preset_weights, resolve_weights
from tests.weights.published_states import published_state, raw_state, small_settings
from tests.weights.server import serve

CLASSES = {"class_names": ["cat", "dog", "hen"], "category_ids": [1, 2, 3]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


def settings(name="small", **source):
    table = small_settings().model_dump(mode="json")
    return parse_settings({**table, "name": name, "source": source}, where="a test")


def published_file(path, state=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"state_dict": published_state() if state is None else state, "meta": {"CLASSES": CLASSES["class_names"]}}, path
    )
    return path


def published_bytes():
    buffer = io.BytesIO()
    torch.save({"state_dict": published_state()}, buffer)
    return buffer.getvalue()


def assert_small(checkpoint):
    assert all(torch.equal(checkpoint.state[name], value) for name, value in raw_state().items())


@pytest.fixture
def conversions(monkeypatch):
    """Counts how often a published file is converted."""
    done = []
    real = resolve.convert_file

    def convert(path, **options):
        done.append(path)
        return real(path, **options)

    monkeypatch.setattr(resolve, "convert_file", convert)
    return done


def test_open_takes_ours_and_published_files(tmp_path):
    ours = tmp_path / "ours.safetensors"
    save_checkpoint(ours, raw_state(), settings=settings(), **CLASSES)
    assert open_weights(ours).class_names == CLASSES["class_names"]
    published_file(tmp_path / "x.pth")
    safetensors.torch.save_file(dict(published_state()), tmp_path / "theirs.safetensors")
    for name in ("x.pth", "theirs.safetensors"):
        read = open_weights(tmp_path / name, prefer=settings())
        assert_small(read)
        assert read.settings.name == "small"
    with pytest.raises(CheckpointError, match="No such file"):
        open_weights(tmp_path / "none.pth")


def test_a_published_file_is_converted_once(tmp_path, conversions):
    path = published_file(tmp_path / "x.pth")
    for _ in range(3):
        read = open_weights(path, prefer=settings())
    assert len(conversions) == 1
    assert_small(read)
    assert read.class_names == CLASSES["class_names"]
    published_file(path, {name: value.double() for name, value in published_state().items()})
    assert open_weights(path, prefer=settings()).state["query_embed.weight"].dtype == torch.float64  # it was changed
    assert len(conversions) == 2


def test_a_damaged_conversion_is_made_again(tmp_path, conversions):
    path = published_file(tmp_path / "x.pth")
    open_weights(path, prefer=settings())
    (kept,) = (cache_dir() / "converted").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert_small(open_weights(path, prefer=settings()))
    assert len(conversions) == 2
    load_checkpoint(kept)


def test_no_space_for_the_conversion_is_logged(tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise ResourceError("no space left")

    monkeypatch.setattr(resolve, "save_checkpoint", full)
    caplog.set_level("INFO", "codetr_cli")
    assert_small(open_weights(published_file(tmp_path / "x.pth"), prefer=settings()))
    assert "the converted weights are not cached: no space left" in caplog.text
    assert not (cache_dir() / "converted").exists()


def test_a_preset_that_is_not_shipped_is_preferred(tmp_path):
    own = settings("my_own", config="projects/configs/mine.py")
    read = open_weights(published_file(tmp_path / "x.pth"), prefer=own)
    assert read.settings.name == "my_own"
    with pytest.raises(CheckpointError, match="another architecture"):
        open_weights(tmp_path / "x.pth")  # no shipped preset is that small


def test_the_place_of_a_preset():
    place = published_weights(load_preset("co_dino_vit_l"))
    assert place.known
    assert not place.ready
    assert place.file == cache_dir() / "presets" / "co_dino_vit_l" / "pytorch_model.pth"
    assert place.converted == cache_dir() / "presets" / "co_dino_vit_l" / "model.safetensors"
    assert place.remote.bytes == 2_934_763_233
    by_hand = published_weights(load_preset("co_deformable_swin_b_3x"))
    assert by_hand.known
    assert by_hand.remote is None
    assert by_hand.file.name == "co_deformable_detr_swin_base_3x_coco.pth"
    assert not published_weights(load_preset("co_dino_tiny")).known
    assert published_weights(load_preset("co_dino_r50")).remote.sha256 == "7481f903"  # from the name


def test_a_file_name_cannot_leave_the_cache():
    place = published_weights(settings(filename="../../../etc/x.pth"))
    assert place.file == cache_dir() / "presets" / "small" / "x.pth"


def test_a_preset_that_was_downloaded(tmp_path, conversions):
    preset = settings(filename="x.pth")
    with pytest.raises(CheckpointError, match="for the manual download, see `codetr download small`"):
        preset_weights(preset)
    with pytest.raises(CheckpointError, match="run `codetr download small`"):
        preset_weights(settings(url="https://nowhere/x.pth"))
    with pytest.raises(CheckpointError, match="no weights have been published for preset 'small'"):
        preset_weights(settings())
    published_file(published_weights(preset).file)
    for _ in range(2):
        path = preset_weights(preset)
    assert path == cache_dir() / "presets/small/model.safetensors"
    assert len(conversions) == 1
    assert_small(load_checkpoint(path))
    assert load_checkpoint(path).settings.source.filename == "x.pth"
    published_weights(preset).file.unlink()
    assert preset_weights(preset) == path  # the conversion is enough


def test_a_conversion_of_another_version_is_made_again(conversions, monkeypatch):
    preset = settings(filename="x.pth")
    published_file(published_weights(preset).file)
    preset_weights(preset)
    monkeypatch.setattr(resolve, "VERSION", "0.0.0.next")
    preset_weights(preset)
    assert len(conversions) == 2


def test_another_file_in_the_place_of_a_preset_is_refused():
    preset = settings(filename="x.pth")
    other = published_state(3, "mmdet3", "model.num_queries=20")
    published_file(published_weights(preset).file, other)
    with pytest.raises(CheckpointError, match="num_queries is 20 instead of 12"):
        preset_weights(preset)
    assert not published_weights(preset).converted.exists()


def test_names_of_presets_and_paths(tmp_path):
    with pytest.raises(CheckpointError, match="codetr download co_dino_swin_l_o365_coco"):
        resolve_weights("co_dino_swin_l_o365_coco")
    assert resolve_weights(tmp_path / "x.pth") == tmp_path / "x.pth"
    with pytest.raises(ConfigError, match="https://"):
        resolve_weights("ftp://host/x.pth")


def test_a_url_is_downloaded_and_converted_once(conversions):
    with serve(published_bytes()) as served:
        reports = []
        for _ in range(2):
            path = resolve_weights(served.url, progress=lambda done, total: reports.append(done))
            assert_small(open_weights(path, prefer=settings()))
        assert served.requests == [None]
    assert path.name == "weights.pth"
    assert reports[-1] == path.stat().st_size
    assert len(conversions) == 1


@pytest.mark.parametrize("damage", ["cut", "zip", "text", "empty"])
def test_files_that_are_not_checkpoints(tmp_path, damage):
    path = published_file(tmp_path / "x.pth")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "zip":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    else:
        path.write_bytes(b"<html>" if damage == "text" else b"")
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        open_weights(path, prefer=settings())
    assert not (cache_dir() / "converted").exists()


def test_a_key_set_that_is_almost_right(tmp_path):
    state = published_state()
    state["query_head.cls_branches.0.wieght"] = state.pop("query_head.cls_branches.0.weight")
    with pytest.raises(CheckpointError, match=r"1 entries.*cls_branches\.0\.wieght"):
        open_weights(published_file(tmp_path / "x.pth", state), prefer=settings())


def test_a_full_disk_leaves_nothing_half_converted(monkeypatch):
    preset = settings(filename="x.pth")
    place = published_weights(preset)
    published_file(place.file)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left"):
        preset_weights(preset)
    assert [path.name for path in place.file.parent.iterdir()] == ["x.pth"]


def test_settings_travel_as_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(settings(url="https://host/x.pth")))
    assert published_weights(load_preset(str(path))).remote.url == "https://host/x.pth"
