"""Checkpoints on disk: complete or not there, verified to the bit, clear about what is wrong with them."""

from __future__ import annotations

import errno
import json
import os
import struct
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from codetr_cli import __version__
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.weights import checkpoint as module
from codetr_cli.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.weights.broken_checkpoints import reseal
from tests.weights.published_states import small_settings

CLASSES = {"class_names": ["cat", "dog", "größter hen"], "category_ids": [3, 7, 90]}


def tensors():
    return {
        "weight": torch.arange(12.0).reshape(3, 4),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(2.5),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "count": torch.tensor([1 << 40]),
    }


def save(path, state=None, **changes):
    save_checkpoint(path, state or tensors(), settings=small_settings(), **{**CLASSES, **changes})
    return path


def changed_settings(folder, change):
    """A checkpoint with changed settings."""

    def metadata(texts):
        settings = json.loads(texts["settings"])
        change(settings)
        texts["settings"] = json.dumps(settings)

    return reseal(save(folder / "before.safetensors"), folder / "x.safetensors", metadata=metadata)


def rewrite_header(path, change):
    """Changes a file's JSON header and leaves its tensors alone."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_everything_comes_back(tmp_path):
    path = save(tmp_path / "new" / "folder" / "x.safetensors", extra={"source": "here"})
    read = load_checkpoint(path)
    assert read.settings == small_settings()
    assert (read.class_names, read.category_ids) == (CLASSES["class_names"], CLASSES["category_ids"])
    assert read.extra == {"source": "here"}
    assert read.state.keys() == tensors().keys()
    for name, value in tensors().items():
        assert read.state[name].dtype == value.dtype
        assert torch.equal(read.state[name], value)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.safetensors"]


def test_is_a_plain_safetensors_file_with_text_metadata(tmp_path):
    path = save(tmp_path / "x.safetensors")
    assert torch.equal(safetensors.torch.load_file(path)["weight"], tensors()["weight"])
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["codetr_version"] == __version__
    assert json.loads(metadata["settings"])["model"]["num_classes"] == 3
    assert json.loads(metadata["category_ids"]) == [3, 7, 90]


def test_tensors_that_share_memory_are_written(tmp_path):
    whole = torch.arange(10.0)
    path = save(tmp_path / "x.safetensors", {"a": whole, "b": whole, "c": whole[2:5], "d": torch.ones(1).expand(4)})
    read = load_checkpoint(path).state
    assert torch.equal(read["a"], read["b"])
    assert read["c"].tolist() == [2, 3, 4]
    assert read["d"].tolist() == [1, 1, 1, 1]


def test_parameters_with_gradients_are_written(tmp_path):
    read = load_checkpoint(save(tmp_path / "x.safetensors", {"w": torch.nn.Parameter(torch.ones(2))}))
    assert not read.state["w"].requires_grad


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_others_may_read_the_file_as_the_user_wishes(tmp_path):
    (tmp_path / "plain").touch()
    path = save(tmp_path / "x.safetensors")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_class_lists_must_fit_the_settings(tmp_path):
    with pytest.raises(ValueError, match="2 class names and 3 category ids for 3 classes"):
        save(tmp_path / "x.safetensors", class_names=["a", "b"])


@pytest.mark.parametrize("place", ["first tensor byte", "last byte"])
def test_one_flipped_bit_is_found(tmp_path, place):
    path = save(tmp_path / "x.safetensors")
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    data[8 + length if place == "first tensor byte" else -1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        load_checkpoint(path)


def test_changed_names_and_metadata_are_found(tmp_path):
    def swap_classes(header):
        header["__metadata__"]["class_names"] = '["dog", "cat", "hen"]'

    def rename(header):
        header["weights"] = header.pop("weight")

    for change in (swap_classes, rename):
        path = save(tmp_path / "x.safetensors")
        rewrite_header(path, change)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.9, 0.999])
def test_cut_files_are_refused(tmp_path, share):
    path = save(tmp_path / "x.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read as a safetensors file") as caught:
        load_checkpoint(path)
    assert caught.value.exit_code == 4


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for data in (b"hello, this is text and no checkpoint", bytes(range(200)), struct.pack("<Q", 1 << 60) + b"{"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_weights_of_another_program_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"w": torch.ones(1)}, path, metadata)
        with pytest.raises(CheckpointError, match=r"not written by codetr.*codetr convert"):
            load_checkpoint(path)


def test_newer_formats_and_unknown_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", "codetr-99")
    path = save(tmp_path / "x.safetensors")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"codetr-99.*newer"):
        load_checkpoint(path)
    real_dump = type(small_settings()).model_dump_json
    monkeypatch.setattr(
        type(small_settings()), "model_dump_json", lambda self: real_dump(self).replace('"lr"', '"learning"')
    )
    path = save(tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match=r"has settings that codetr .* cannot read: .*train\.learning"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("setting", "default"),
    [
        ({"train": {"seed": -(2**70)}}, ("train", "seed")),
        ({"data": {"workers": 2000}}, ("data", "workers")),
        ({"data": {"extra_roots": ["x"] * 1001}}, ("data", "extra_roots")),
        ({"data": {"short_sides": [-1] * 300_000}}, ("data", "short_sides")),
        ({"source": {"bytes": -1}}, ("source", "bytes")),
        ({"data": {"more": 7}}, ("data", "extra_roots")),
    ],
)
def test_settings_that_do_not_count_are_no_reason_to_refuse(setting, default, tmp_path, caplog):
    caplog.set_level("INFO")
    ((table, values),) = setting.items()
    path = changed_settings(tmp_path, lambda settings: settings[table].update(values))
    settings, (table, key) = load_checkpoint(path).settings, default
    assert getattr(getattr(settings, table), key) == getattr(getattr(Settings(name="x"), table), key)
    assert settings.model == small_settings().model
    assert "does not decide them" in caplog.text


def test_settings_of_earlier_versions_are_read_exactly(tmp_path):
    def change(settings):
        settings["train"].update(seed=-1, clip_norm=None, lr=0.5)

    train = load_checkpoint(changed_settings(tmp_path, change)).settings.train
    assert (train.seed, train.clip_norm, train.lr) == (-1, 0.0, 0.5)


@pytest.mark.parametrize("model", [{"num_queries": -1}, {"num_queries": [1] * 10**6}, {"name": "x" * 10**6}])
def test_settings_that_count_are(model, tmp_path):
    path = changed_settings(tmp_path, lambda settings: settings["model"].update(model))
    started = time.process_time()
    with pytest.raises(CheckpointError, match=rf"has settings that codetr {__version__} cannot read: "):
        load_checkpoint(path)
    assert time.process_time() - started < 2


class KilledError(Exception):
    pass


def full_disk_in_safetensors(*args, **kwargs):
    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_disk_half_way(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def full_disk_at_sync(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("codetr_cli.weights.checkpoint.save_file", full_disk_in_safetensors),
        ("codetr_cli.weights.checkpoint.save_file", full_disk_half_way),
        ("os.fsync", full_disk_at_sync),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, target, fault, before):
    path = tmp_path / "x.safetensors"
    if before:
        save(path, {"w": torch.ones(3)})
    old = path.read_bytes() if before else None
    monkeypatch.setattr(target, fault)
    with pytest.raises(ResourceError, match=r"no space left on the disk while writing .*x\.safetensors") as caught:
        save(path)
    assert caught.value.exit_code == 5
    assert (path.read_bytes() if path.exists() else None) == old
    assert [entry.name for entry in tmp_path.iterdir()] == (["x.safetensors"] if before else [])


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    """An exception that no code handles simulates a kill."""
    path = save(tmp_path / "x.safetensors", {"w": torch.ones(3)})

    def killed(tensors, temporary, metadata):
        Path(temporary).write_bytes(b"half")
        raise KilledError

    monkeypatch.setattr("codetr_cli.weights.checkpoint.save_file", killed)
    with pytest.raises(KilledError):
        save(path)
    assert torch.equal(load_checkpoint(path).state["w"], torch.ones(3))


def test_content_is_on_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    real_replace, real_sync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), real_sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), real_replace(self, to))[1])
    save(tmp_path / "x.safetensors")
    assert events == ["sync", "rename", "sync"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        save(tmp_path / "file" / "x.safetensors")
