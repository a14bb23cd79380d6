"""Reading .pth files: weights are read, and no code in a file is ever executed."""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import decimal
import os
import pickle
import subprocess
import sys
import types
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from codetr_cli.errors import CheckpointError
from codetr_cli.weights import torch_files, unpickler
from codetr_cli.weights.pickles import forbidden_globals, read_pickle
from tests.weights.published_states import fake_mmengine, save_mmengine


class Trap:
    """Pickles as a call; reading it with plain pickle runs the call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def write(path, content, form, protocol=2):
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_plain_checkpoints_are_read(tmp_path, form):
    state = collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor(3), c=torch.ones(2).half())
    state._metadata = {"": {"version": 1}}
    content = {"state_dict": state, "meta": {"epoch": 3, "CLASSES": ("cat", "dog")}}
    read = read_pickle(write(tmp_path / "x.pth", content, form))
    assert read["meta"] == content["meta"]
    assert list(read["state_dict"]) == ["a", "b", "c"]
    for name, value in state.items():
        assert torch.equal(read["state_dict"][name], value)


TRAPS = {
    "posix.system": lambda touch: Trap(os.system, f"touch {touch}"),
    "builtins.eval": lambda touch: Trap(eval, f"open({str(touch)!r}, 'w')"),
    "builtins.exec": lambda touch: Trap(exec, f"open({str(touch)!r}, 'w')"),
    "io.open": lambda touch: Trap(open, str(touch), "w"),
    "subprocess.Popen": lambda touch: Trap(subprocess.Popen, ["touch", str(touch)]),
    "torch.hub.load": lambda touch: Trap(torch.hub.load, "x", "y"),
    "numpy.load": lambda touch: Trap(np.load, str(touch)),
    "builtins.__import__": lambda touch: Trap(builtins.__import__, "antigravity"),
}


@pytest.mark.skipif(os.name != "posix", reason="the trap is a shell command")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", TRAPS)
def test_traps_are_refused_by_name_and_not_executed(tmp_path, name, form, protocol):
    sentinel = tmp_path / "sentinel"
    content = {"state_dict": {"a": torch.zeros(2), "b": TRAPS[name](sentinel)}}
    path = write(tmp_path / "x.pth", content, form, protocol)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        read_pickle(path)
    assert caught.value.exit_code == 4
    assert "weights_only" not in str(caught.value)  # never advises to read it unsafely
    assert not sentinel.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.skipif(os.name != "posix", reason="the trap is a shell command")
def test_the_traps_work_with_plain_pickle(tmp_path):
    """The test above would pass with traps that do not work."""
    sentinel = tmp_path / "sentinel"
    pickle.loads(pickle.dumps(TRAPS["posix.system"](sentinel)))  # noqa: TID251
    assert sentinel.exists()


def test_getattr_is_limited_to_stubs(tmp_path):
    for owner in (torch.Tensor, collections.OrderedDict, {}, "text"):
        path = write(tmp_path / "x.pth", {"a": Trap(getattr, owner, "__class__")}, "zip")
        with pytest.raises(CheckpointError, match=r"builtins\.getattr"):
            read_pickle(path)


def test_traps_hidden_behind_stubs_are_refused(tmp_path):
    """Arguments of a stub are checked, and the result of a stub cannot be called."""
    path = write(tmp_path / "x.pth", {"a": Trap(np.dtype, "f4"), "b": Trap(os.system, "true")}, "zip")
    with pytest.raises(CheckpointError, match="system"):
        read_pickle(path)
    with fake_mmengine() as (HistoryBuffer, _):
        method = Trap(getattr, HistoryBuffer, "mean")
        write(path, {"a": Trap(Trap, method)}, "zip")
    with pytest.raises(CheckpointError):
        read_pickle(path)


def test_mmengine_checkpoint_reads_without_mmengine(tmp_path):
    path = save_mmengine(tmp_path / "x.pth", {"w": torch.ones(2)})
    with zipfile.ZipFile(path) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    for name in (b"mmengine.logging.history_buffer", b"ConfigDict", b"multiarray", b"getattr", b"scalar"):
        assert name in data, "the fixture lacks what real files have"
    read = read_pickle(path)
    assert torch.equal(read["state_dict"]["w"], torch.ones(2))
    assert read["meta"]["dataset_meta"]["classes"] == ("cat", "dog", "hen")
    assert read["meta"]["hook"] == {"type": "X"}
    assert set(read["message_hub"]) == {"log_scalars", "runtime_info", "resumed_keys"}
    assert "mmengine" not in sys.modules


def test_harmless_things_of_other_programs_are_read(tmp_path):
    content = {
        "args": argparse.Namespace(lr=1e-4),
        "work_dir": Path("runs/x"),
        "numpy": [np.float64(0.5), np.arange(3), np.dtype("int8")],
        "groups": collections.defaultdict(list, {"a": [1]}),
        "state_dict": {"w": torch.ones(1)},
    }
    for form in ("zip", "legacy"):
        read = read_pickle(write(tmp_path / "x.pth", content, form))
        assert read["groups"] == {"a": [1]}
        assert torch.equal(read["state_dict"]["w"], torch.ones(1))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_metadata_of_any_protocol_is_read(tmp_path, protocol):
    now = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    content = {
        "times": [now, now.date(), now.time()],
        "numbers": [decimal.Decimal("1.5"), uuid.UUID(int=3), np.arange(3.0), np.asfortranarray(np.ones((3, 2)))],
        "containers": [range(3), frozenset([1]), types.SimpleNamespace(a=1)],
        "types": [int, str, bool, float, b""],
        "queue": collections.deque([1, 2], maxlen=5),
        "bytes": bytearray(b"abc"),
        "state_dict": {"w": torch.ones(1)},
    }
    for form in ("zip", "legacy"):
        read = read_pickle(write(tmp_path / "x.pth", content, form, protocol))
        assert read["queue"] == [1, 2]
        assert read["bytes"] == b"abc"
        assert torch.equal(read["state_dict"]["w"], torch.ones(1))


def test_log_histories_need_memory_in_proportion_to_their_size(tmp_path, monkeypatch):
    """The share of each byte is enough for numpy's arrays, as those of an mmengine run with many steps."""
    history = {f"train/loss{number}": np.random.default_rng(number).random(5_000) for number in range(20)}
    path = write(tmp_path / "x.pth", {"state_dict": {"w": torch.ones(1)}, "message_hub": history}, "zip")
    monkeypatch.setattr(torch_files, "Budget", lambda size, base: unpickler.Budget(size, base=0))
    assert torch.equal(read_pickle(path)["state_dict"]["w"], torch.ones(1))
    assert torch_files.MAX_PICKLE_BYTES > 100 * 2 * 8 * 200_000  # of as many steps of 100 losses, with their counts


def test_compressed_archives_give_the_right_numbers(tmp_path):
    path = write(tmp_path / "x.pth", {"w": torch.arange(1000.0)}, "zip")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert torch.equal(read_pickle(packed)["w"], torch.arange(1000.0))


def test_one_flipped_bit_in_a_zip_checkpoint_is_found(tmp_path):
    path = write(tmp_path / "x.pth", {"w": torch.zeros(4000)}, "zip")
    data = bytearray(path.read_bytes())
    data[data.index(bytes(8000)) + 4000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        read_pickle(path)


def test_zip_checkpoints_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path / "x.pth", {"w": torch.ones(4000)}, "zip")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_pickle(path)["w"], torch.ones(4000))


def test_an_escape_that_python_warns_of_is_no_exception(tmp_path):
    """Arbitrary bytes may look like any escape sequence; the tests turn warnings into errors."""
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\x02S'\\}'\ncos\nsystem\n.")
    assert forbidden_globals(path) == ["os.system"]
    with pytest.raises(CheckpointError, match=r"os\.system"):
        read_pickle(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_cut_files_are_refused(tmp_path, form, share):
    path = write(tmp_path / "x.pth", {"state_dict": {"w": torch.arange(4000.0)}}, form)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"x\.pth.*(again|text)"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "text"),
        (b"version https://git-lfs.github.com/spec/v1", "text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged"),
        (bytes(range(256)) * 4, "damaged"),
        (b"\x80\x02(((((((((", "damaged"),
        (b"\x80\x02c", "damaged"),
        (b"PK\x03\x04" + bytes(300), "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_pickle(path)
    assert forbidden_globals(path) == []


def test_a_pretended_size_does_not_end_in_a_memory_error(tmp_path, monkeypatch):
    def greedy(*args, **kwargs):
        raise MemoryError

    path = write(tmp_path / "x.pth", {"w": torch.ones(2)}, "zip")
    monkeypatch.setattr(torch_files, "load", greedy)
    with pytest.raises(CheckpointError, match="more memory than this machine has"):
        read_pickle(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_pickle(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_pickle(tmp_path)


@pytest.mark.parametrize(("graph", "weights"), [("a.xml", "a.bin"), ("a.onnx", "a.onnx.data")])
def test_the_weights_of_an_exported_file_name_it(tmp_path, graph, weights):
    (tmp_path / weights).write_bytes(bytes(range(200)) * 10)
    with pytest.raises(CheckpointError, match="cut short"):
        read_pickle(tmp_path / weights)
    (tmp_path / graph).touch()
    with pytest.raises(CheckpointError, match=rf"weights of the exported file .*{graph}\. Give that one"):
        read_pickle(tmp_path / weights)
