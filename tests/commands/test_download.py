"""`codetr download`: files, exit codes, output."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import namedtuple

import pytest
import torch

from codetr_cli.cli import main
from codetr_cli.config.overrides import parse_settings, to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.errors import CheckpointError
from codetr_cli.files import cache_dir
from codetr_cli.weights import download
from codetr_cli.weights import published as published_weights
from codetr_cli.weights.checkpoint import load_checkpoint
from codetr_cli.weights.pretrained import find_backbone
from tests.weights.published_states import published_state, raw_state, small_settings
from tests.weights.server import serve

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def published():
    buffer = io.BytesIO()
    torch.save({"state_dict": published_state(), "meta": {"CLASSES": ("cat", "dog", "hen")}}, buffer)
    return buffer.getvalue()


def preset(folder, **source):
    table = {**small_settings().model_dump(mode="json"), "name": "small", "source": {"licence": "MIT", **source}}
    path = folder / "small.toml"
    path.write_text(to_toml(parse_settings(table, where="a test")))
    return path


def run(*words):
    return main(["download", *map(str, words)])


def files():
    """Paths in the cache, without hidden files, which are receipts."""
    found = (path for path in cache_dir().rglob("*") if path.is_file() and path.name[0] != ".")
    return sorted(str(path.relative_to(cache_dir())) for path in found)


def test_downloads_verifies_converts_and_prints_the_url(tmp_path, capsys, published):
    with serve(published) as served:
        assert run(preset(tmp_path, url=served.url, bytes=len(published))) == 0
        said = capsys.readouterr().out
        for words in (f"from {served.url}", "licence: MIT", "presets/small/weights.pth", "codetr eval small"):
            assert words in said
        read = load_checkpoint(cache_dir() / "presets/small/model.safetensors")
        assert read.class_names == ["cat", "dog", "hen"]
        assert all(torch.equal(read.state[name], value) for name, value in raw_state().items())
        assert run(tmp_path / "small.toml") == 0
        assert "is already downloaded" in capsys.readouterr().out
        assert len(served.requests) == 1
        assert run(tmp_path / "small.toml", "--force") == 0
        assert len(served.requests) == 2
    assert files() == ["presets/small/model.safetensors", "presets/small/weights.pth"]


def test_json_is_one_object(tmp_path, capsys, published):
    with serve(published) as served:
        path = preset(tmp_path, url=served.url)
        assert run(path, "--json", "--dry-run") == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["there"], facts["downloaded"], facts["url"]) == (False, False, served.url)
        assert served.requests == []
        assert files() == []
        assert run(path, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["downloaded"], facts["converted"], facts["bytes"]) == (True, True, len(published))
        assert facts["licence"] == "MIT"
        assert facts["sha256"] == hashlib.sha256(published).hexdigest()
        assert run(path, "--json") == 0
        again = json.loads(capsys.readouterr().out)
        assert (again["downloaded"], again["sha256"]) == (False, facts["sha256"])


def test_a_break_and_the_way_on(tmp_path, capsys, published):
    with serve(published, cut_at=[50_000, 0]) as served:
        path = preset(tmp_path, url=served.url)
        assert run(path) == 5
        said = capsys.readouterr().err
        assert "run the same command again" in said
        assert str(cache_dir() / "presets/small/weights.pth") in said
        assert files() == ["presets/small/weights.pth.part", "presets/small/weights.pth.part.json"]
        assert run(path) == 0
        assert served.requests[-1] == "bytes=50000-"
    assert files() == ["presets/small/model.safetensors", "presets/small/weights.pth"]


@pytest.mark.parametrize(
    ("source", "served_as", "code", "said"),
    [
        ({"bytes": 17}, {}, 4, "the published file has 17"),
        ({"sha256": "0" * 64}, {}, 4, "SHA-256"),
        ({}, {"status": 404}, 5, "404"),
        ({}, {"content_type": "text/html"}, 4, "web page"),
    ],
)
def test_what_goes_wrong_leaves_nothing_behind(tmp_path, capsys, published, source, served_as, code, said):
    with serve(published, **served_as) as served:
        assert run(preset(tmp_path, url=served.url, **source)) == code
    assert said in capsys.readouterr().err
    assert files() == []


def test_a_file_that_is_no_checkpoint_is_not_converted(tmp_path, capsys):
    with serve(b"no checkpoint at all, but text") as served:
        assert run(preset(tmp_path, url=served.url)) == 4
    assert "is a text and not a file of weights, it starts with 'no checkpoint at all" in capsys.readouterr().err
    assert files() == []
    with serve(b"no checkpoint at all, but bytes\x80") as served:
        assert run(preset(tmp_path, url=served.url)) == 4
    said = capsys.readouterr().err
    assert "weights.pth cannot be read as a checkpoint" in said
    assert "the next time, codetr asks the server" in said
    assert files() == ["presets/small/weights.pth"]


def test_no_space(tmp_path, capsys, monkeypatch, published):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 1))
    with serve(published) as served:
        assert run(preset(tmp_path, url=served.url)) == 5
    assert "CODETR_CACHE" in capsys.readouterr().err
    assert files() == []


def test_ctrl_c(tmp_path, capsys, monkeypatch, published):
    def stop(response, watch):
        yield published[:1000]
        raise KeyboardInterrupt

    with serve(published) as served:
        path = preset(tmp_path, url=served.url)
        with monkeypatch.context() as patch:
            patch.setattr(download, "_chunks", stop)
            assert run(path) == 130
        assert "Run the same command again to continue" in capsys.readouterr().err
        assert run(path) == 0
        assert served.requests == [None, "bytes=1000-"]


def test_by_hand(tmp_path, capsys, published):
    path = preset(tmp_path, page="https://drive.google.com/x", config="configs/co_small.py")
    assert run(path) == 4
    said = capsys.readouterr().err
    place = cache_dir() / "presets/small/co_small.pth"
    for words in (
        "Download co_small.pth by hand from https://drive.google.com/x",
        f"put it at {place}",
        "codetr download small",
    ):
        assert words in said
    place.parent.mkdir(parents=True)
    place.write_bytes(published)
    assert run(path) == 0
    assert files() == ["presets/small/co_small.pth", "presets/small/model.safetensors"]


def test_by_hand_is_compared_too(tmp_path, capsys, published):
    path = preset(tmp_path, url="https://127.0.0.1:9/x.pth", sha256="0" * 64)
    place = cache_dir() / "presets/small/x.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(published)
    assert run(path) == 5  # it is fetched again, and there is no server
    assert f"warning: {place} has the SHA-256" in capsys.readouterr().err
    assert place.read_bytes() == published


def test_another_address(tmp_path, capsys, published):
    path = preset(tmp_path)
    assert run(path) == 4
    assert "no weights are published for preset 'small'" in capsys.readouterr().err
    with serve(published) as served:
        assert run(path, "--url", served.url) == 0
    assert files() == ["presets/small/model.safetensors", "presets/small/weights.pth"]
    assert run(path, "--url", "ftp://x/y.pth") == 2


def test_backbones(capsys, monkeypatch):
    data = b"\x80" * 1000
    with serve(data) as served:
        backbone = published_weights.PretrainedBackbone("resnet50", "A backbone", served.url, "BSD", bytes=1000)
        monkeypatch.setitem(published_weights.BACKBONES, "resnet50", backbone)
        assert run("resnet50", "--dry-run", "--json") == 0
        assert json.loads(capsys.readouterr().out)["there"] is False
        assert run("resnet50") == 0
        assert "licence: BSD" in capsys.readouterr().out
        assert run("resnet50", "--json") == 0
        assert json.loads(capsys.readouterr().out)["downloaded"] is False
        assert len(served.requests) == 1
        backbone.file.write_bytes(b"\x81" * 1000)
        with pytest.raises(
            CheckpointError, match="has changed since it was downloaded: run `codetr download resnet50`"
        ):
            find_backbone(load_preset("co_dino_r50"))
        capsys.readouterr()
        assert run("resnet50") == 0
        assert capsys.readouterr().err.count(f"{backbone.file} has changed since it was downloaded") == 1
        assert find_backbone(load_preset("co_dino_r50")).read_bytes() == data
    assert files() == ["backbones/weights.pth"]


def test_damaged_weights_of_a_preset_are_made_or_downloaded_again(tmp_path, capsys, published):
    with serve(published) as served:
        path = preset(tmp_path, url=served.url)
        assert run(path) == 0
        place = cache_dir() / "presets/small"
        (place / "model.safetensors").write_bytes(b"")
        assert run(path) == 0
        assert len(served.requests) == 1
        for name in ("model.safetensors", "weights.pth"):
            (place / name).write_bytes(b"\x80")
        assert run(path) == 0
        assert len(served.requests) == 2
    assert load_checkpoint(place / "model.safetensors").class_names == ["cat", "dog", "hen"]


def test_a_mistyped_name(capsys):
    assert run("co_dino_r05") == 2
    assert "co_dino_r50" in capsys.readouterr().err
    assert run("resnet5") == 2
    assert "resnet50" in capsys.readouterr().err


def test_every_shipped_preset_says_where_its_weights_are(capsys):
    from codetr_cli.config.presets import load_preset, preset_names

    for name in preset_names():
        settings = load_preset(name)
        known = published_weights.published_weights(settings).known
        assert known or settings.source.box_ap is None, name
        assert run(name, "--dry-run") == (0 if known else 4)
        capsys.readouterr()
