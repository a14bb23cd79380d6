"""`codetr convert`: files, exit codes, output."""

from __future__ import annotations

import errno
import json
import os
import pickle

import pytest
import torch
from PIL import Image

from codetr_cli.cli import main
from codetr_cli.weights.checkpoint import load_checkpoint
from codetr_cli.weights.load_state import load_exact
from tests.weights.published_states import published_state, raw_state, save_mmengine, small_model, small_preset


class Trap:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def preset(tmp_path):
    return small_preset(tmp_path)


@pytest.fixture
def source(tmp_path):
    return save_mmengine(tmp_path / "published.pth", published_state())


def run(*words):
    return main(["convert", *map(str, words)])


def test_writes_a_checkpoint_and_accounts_for_every_entry(tmp_path, capsys, source, preset):
    target = tmp_path / "out" / "x.safetensors"
    assert run(source, target, "--preset", preset) == 0
    said = capsys.readouterr().out
    for words in ("MMDetection 3", "preset small", "batch counters", "training log", "[optimizer]", str(target)):
        assert words in said
    read = load_checkpoint(target)
    assert read.class_names == ["cat", "dog", "hen"]
    assert all(torch.equal(read.state[name], value) for name, value in raw_state().items())
    load_exact(small_model(), read.state)


def test_json_is_one_object_and_nothing_else(tmp_path, capsys, source, preset):
    target = tmp_path / "x.safetensors"
    assert run(source, target, "--preset", preset, "--json") == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["naming"] == "mmdet3"
    assert facts["preset"] == "small"
    assert facts["entries"] == len(raw_state())
    assert facts["output"] == str(target)
    assert sum(len(group["names"]) for group in facts["dropped"]) > 4
    assert "wrote" in said.err


def test_nothing_is_overwritten_without_force(tmp_path, capsys, source, preset):
    target = tmp_path / "x.safetensors"
    target.write_text("precious")
    for force in ((), ("--force",)):
        assert run(source, target, "--preset", preset, *force) == 2
        assert "not as codetr has written it, and is never replaced" in capsys.readouterr().err
        assert target.read_text() == "precious"
    target.unlink()
    assert run(source, target, "--preset", preset) == 0
    assert run(source, target, "--preset", preset) == 2
    assert "replace it with --force" in capsys.readouterr().err
    assert run(source, target, "--preset", preset, "--force") == 0
    assert load_checkpoint(target).class_names == ["cat", "dog", "hen"]


def test_a_folder_takes_the_name_of_the_source(tmp_path, source, preset):
    (tmp_path / "out").mkdir()
    assert run(source, tmp_path / "out", "--preset", preset) == 0
    assert (tmp_path / "out" / "published.safetensors").is_file()


def test_places_that_make_no_sense(tmp_path, capsys, source, preset):
    assert run(source, tmp_path / "x.pth", "--preset", preset) == 2
    assert "x.safetensors" in capsys.readouterr().err
    same = tmp_path / "same.safetensors"
    same.write_bytes(source.read_bytes())
    assert run(same, same, "--preset", preset, "--force") == 2
    assert "same file" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="the trap is a shell command")
@pytest.mark.parametrize("as_json", [True, False])
def test_malicious_pickle(tmp_path, capsys, as_json):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"w": Trap(f"touch {sentinel}")}}, path)
    pickle.loads(pickle.dumps(Trap(f"touch {sentinel}.armed")))  # noqa: TID251
    assert (tmp_path / "sentinel.armed").exists()
    assert run(path, tmp_path / "x.safetensors", *(["--json"] if as_json else [])) == 4
    said = capsys.readouterr()
    assert "posix.system" in said.err
    assert "evil.pth" in said.err
    assert "Traceback" not in said.err
    assert not as_json or json.loads(said.out)["exit_code"] == 4
    assert not sentinel.exists()
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.skipif(os.name != "posix", reason="the trap is a shell command")
def test_malicious_pickle_given_to_eval(tmp_path, capsys):
    sentinel, path, data = tmp_path / "sentinel", tmp_path / "evil.pth", tmp_path / "data"
    torch.save({"state_dict": {"w": Trap(f"touch {sentinel}")}}, path)
    (data / "val2017").mkdir(parents=True)
    (data / "annotations").mkdir()
    Image.new("RGB", (48, 40)).save(data / "val2017" / "a.png")
    annotations = {
        "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 40}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}],
    }
    (data / "annotations" / "instances_val2017.json").write_text(json.dumps(annotations))
    assert main(["eval", str(path), "--data", str(data), "--device", "cpu"]) == 4
    said = capsys.readouterr().err
    assert "posix.system" in said
    assert "Traceback" not in said
    assert not sentinel.exists()


def test_another_architecture(tmp_path, capsys, preset):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"conv1.weight": torch.ones(3), "fc.bias": torch.ones(1)}}, path)
    assert run(path, tmp_path / "x.safetensors") == 4
    assert "conv1.weight, fc.bias" in capsys.readouterr().err
    torch.save({"state_dict": published_state(3, "sensex", "model.decoder_layers=3")}, path)
    assert run(path, tmp_path / "x.safetensors", "--preset", preset) == 4
    assert "--set model.decoder_layers=3" in capsys.readouterr().err
    assert run(path, tmp_path / "x.safetensors", "--preset", preset, "--set", "model.decoder_layers=3") == 0


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_damaged_and_missing_sources(tmp_path, capsys, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    assert run(path, tmp_path / "x.safetensors") == 4
    assert run(tmp_path / "missing.pth", tmp_path / "x.safetensors") == 4
    said = capsys.readouterr().err
    assert "broken.pth" in said
    assert "missing.pth" in said
    assert "Traceback" not in said


def test_full_disk(tmp_path, capsys, monkeypatch, source, preset):
    def full(tensors, path, metadata):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("codetr_cli.weights.checkpoint.save_file", full)
    assert run(source, tmp_path / "x.safetensors", "--preset", preset) == 5
    assert "no space left on the disk" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_unknown_preset_suggests(tmp_path, capsys, source):
    assert run(source, tmp_path / "x.safetensors", "--preset", "co_dino_r5") == 2
    assert "co_dino_r50" in capsys.readouterr().err
