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
from codetr_cli.receipts import receipt_path
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
    (kept,) = (cache_dir() / "converted").glob("*.safetensors")
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


def cached_download():
    (path,) = (path for path in (cache_dir() / "urls").glob("*/*") if path.name[0] != ".")
    return path


@pytest.mark.parametrize("damage", ["cut", "changed", "text", "empty", "pipe"])
def test_a_download_that_was_damaged_is_fetched_again_and_named_once(damage, caplog):
    with serve(published_bytes()) as served:
        path = resolve_weights(served.url)
        before, status = path.read_bytes(), path.stat()
        if damage == "pipe":
            path.unlink()
            os.mkfifo(path)
        else:
            middle = len(before) // 2
            changed = before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :]
            path.write_bytes({"cut": before[:-5], "changed": changed, "text": b"<html>", "empty": b""}[damage])
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        for _ in range(2):
            assert resolve_weights(served.url).read_bytes() == before
        assert len(served.requests) == 2
    named = [text for text in caplog.messages if f"{path} has changed since it was downloaded" in text]
    assert len(named) == (damage != "pipe")


@pytest.mark.parametrize("content", [b"{}", b"<html>", b"PK\3\4 and no end \x80", b""])
def test_a_wrong_file_of_an_earlier_version_is_fetched_again(content, caplog):
    with serve(published_bytes()) as served:
        path = resolve_weights(served.url)
        path.write_bytes(content)
        receipt_path(path).unlink()
        assert resolve_weights(served.url).read_bytes() == published_bytes()
    assert len([text for text in caplog.messages if f"{path} is " in text]) == 1


def test_a_download_that_cannot_be_used_is_compared_with_the_server_the_next_time(caplog):
    with serve(b"\x80 no weights") as served:
        with pytest.raises(CheckpointError, match="the next time, codetr asks the server"):
            open_weights(resolve_weights(served.url))
        resolve_weights(served.url)  # it has not changed there
        assert len(served.requests) == 2
        resolve_weights(served.url)
        assert len(served.requests) == 2
        with pytest.raises(CheckpointError):
            open_weights(cached_download())
        served.data, served.etag = published_bytes(), '"two"'
        assert_small(open_weights(resolve_weights(served.url), prefer=settings()))
        assert caplog.text.count("the server may have another one now: it is downloaded again") == 1
        served.data = b""
        resolve_weights(served.url)
    assert_small(open_weights(resolve_weights(served.url), prefer=settings()))  # without the server


def test_a_conversion_that_was_replaced_by_another_is_not_used(tmp_path, conversions, caplog):
    path = published_file(tmp_path / "x.pth")
    open_weights(path, prefer=settings())
    (kept,) = (cache_dir() / "converted").glob("*.safetensors")
    zeros = {name: torch.zeros_like(value) for name, value in raw_state().items()}
    save_checkpoint(kept, zeros, settings=settings(), **CLASSES)
    for _ in range(2):
        assert_small(open_weights(path, prefer=settings()))
    assert len(conversions) == 2
    assert len([text for text in caplog.messages if f"{kept} in the cache are damaged" in text]) == 1


def test_damaged_weights_of_a_preset_are_made_again(conversions, caplog):
    preset = settings(filename="x.pth")
    place = published_weights(preset)
    published_file(place.file)
    preset_weights(preset)
    receipt_path(place.converted).unlink()  # of an earlier version
    preset_weights(preset)
    assert len(conversions) == 1
    place.converted.write_bytes(place.converted.read_bytes()[:-9])
    assert_small(load_checkpoint(preset_weights(preset)))
    assert len(conversions) == 2
    assert f"{place.converted} in the cache are damaged" in caplog.text
    place.converted.write_bytes(b"")
    place.file.unlink()
    with pytest.raises(CheckpointError, match="codetr download small"):
        preset_weights(preset)


def test_names_of_files_in_the_cache_are_harmless(tmp_path):
    folder = cache_dir() / "presets"
    assert published_weights(settings(name="..x..", filename="../.bashrc")).file == folder / "x" / "bashrc"
    place = published_weights(settings(url="https://host/model.safetensors"))
    assert place.file.name == "published_model.safetensors"  # not the name of the conversion
    long = published_file(tmp_path / ("y" * 240 + ".pth"))
    assert_small(open_weights(long, prefer=settings()))
    assert len(list((cache_dir() / "converted").glob("*.safetensors"))) == 1


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
