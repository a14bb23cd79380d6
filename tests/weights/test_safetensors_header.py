"""Headers of safetensors files: every wrong one is refused before the library opens the file."""

from __future__ import annotations

import json
import os

import pytest
import safetensors.torch
import torch

from codetr_cli.errors import CheckpointError
from codetr_cli.weights import checkpoint
from codetr_cli.weights.checkpoint import file_sha256, is_safetensors, load_checkpoint, read_metadata, read_safetensors
from codetr_cli.weights.safetensors_header import check_header
from tests.weights.broken_checkpoints import broken_headers, raw


def test_what_the_library_writes_is_accepted(tmp_path):
    path = tmp_path / "x.safetensors"
    dtypes = (
        torch.float32,
        torch.bfloat16,
        torch.bool,
        torch.int64,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.uint16,
    )
    state = {str(dtype): torch.zeros(3, 2).to(dtype) for dtype in dtypes}
    safetensors.torch.save_file({**state, "scalar": torch.tensor(1.0), "none": torch.zeros(0, 4)}, path, {"a": "b"})
    assert check_header(path).st_size == path.stat().st_size
    assert len(read_safetensors(path)[0]) == len(dtypes) + 2


def test_wrong_headers_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    opened = []
    monkeypatch.setattr(checkpoint, "safe_open", lambda *args, **kwargs: opened.append(args))
    wrong = []
    for number, (what, data) in enumerate(broken_headers()):
        path.write_bytes(data)
        try:
            (read_safetensors, read_metadata, load_checkpoint)[number % 3](path)
        except CheckpointError as error:
            if "x.safetensors cannot be read as a safetensors file" in str(error) and len(str(error)) < 600:
                continue
        except AttributeError:  # the stand-in of the library
            pass
        wrong.append(what)
    assert wrong == []
    assert opened == []


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    for read in (
        read_safetensors,
        load_checkpoint,
        file_sha256,
        lambda path: is_safetensors(path.rename(tmp_path / "x")),
    ):
        with pytest.raises(CheckpointError, match="named pipe"):
            read(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="device"):
        load_checkpoint("/dev/zero")


def test_a_file_that_changes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)))
    read_safetensors(path)
    real = checkpoint.check_header

    def check(file):
        checked = real(file)
        file.write_bytes(file.read_bytes() + b" ")
        return checked

    monkeypatch.setattr(checkpoint, "check_header", check)
    monkeypatch.setattr(checkpoint, "safe_open", lambda *args, **kwargs: open(path))  # noqa: PTH123, SIM115
    with pytest.raises(CheckpointError, match="it changed while it was read"):
        read_safetensors(path)


def test_the_limit_is_far_above_honest_files(tmp_path):
    entry = {"dtype": "F32", "shape": [1024, 1024], "data_offsets": [0, 0]}
    header = {f"backbone.blocks.{number}.attn.relative_position_bias_table": entry for number in range(3000)}
    names = {"class_names": json.dumps(["a long name of a class, number"] * 20_000)}
    assert len(json.dumps({**header, "__metadata__": names})) < 8 << 18
