"""The files of a sharded state: what several processes wrote is read by any number, and checked."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from codetr_cli.distributed import shard_files
from codetr_cli.distributed.shard_files import Shard, read_index, write_shards
from codetr_cli.errors import CheckpointError

WHOLE = torch.arange(14.0).reshape(7, 2)


def write(folder: Path, *starts: int) -> None:
    for number, start in enumerate(starts):
        end = (*starts, 7)[number + 1]
        shards = {"a": Shard(WHOLE[start:end], start, 7)}
        if number == 0:
            shards["b"] = Shard(torch.ones(1, dtype=torch.bfloat16), 0, 1)
        write_shards(folder, shards, number, len(starts))


@pytest.mark.parametrize("starts", [(0,), (0, 4), (0, 2, 4, 6), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_rows_of_all_processes_make_a_tensor(tmp_path: Path, starts: tuple[int, ...]):
    write(tmp_path, *starts)
    stored = read_index(tmp_path, ("a", "b"))
    assert stored["b"].dtype == torch.bfloat16
    assert stored["a"].shape == (7, 2)
    for first in range(7):
        rows = torch.zeros(7 - first, 2)
        stored["a"].copy_into(rows, first)
        assert torch.equal(rows, WHOLE[first:])


def rewrite(folder: Path, rows: Any, name: str = "00000-of-00002.safetensors", **tensors: torch.Tensor) -> None:
    text = rows if isinstance(rows, str) else json.dumps(rows)
    save_file(tensors or {"a": WHOLE[:4].clone()}, folder / name, {"rows": text})


@pytest.mark.parametrize(
    "rows",
    [
        {"a": [0, 6]}, {"a": [0, 8]}, {"a": [1, 7]}, {"a": [-1, 7]}, {"a": [0, 3]}, {"a": [4, 7]}, {"a": [0, 10**30]},
        {"a": [0.0, 7]}, {"a": [True, 7]}, {"a": ["0", "7"]}, {"a": 7}, {"a": [0]}, {"a": None}, {},
        {"a": [0, 7], "b": [0, 1]}, None, [], "text", "[" * 100_000, "9" * 10_000,
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, rows: Any):
    write(tmp_path, 0, 4)
    rewrite(tmp_path, {"a": [0, 7]})
    read_index(tmp_path, ("a", "b"))
    rewrite(tmp_path, rows)
    with pytest.raises((CheckpointError, ValueError)):
        read_index(tmp_path, ("a", "b"))


def test_other_shapes_types_and_files_are_refused(tmp_path: Path):
    write(tmp_path, 0, 4)
    for value in (WHOLE[:4].double(), WHOLE[:4, :1].clone(), torch.tensor(1.0)):
        rewrite(tmp_path, {"a": [0, 7]}, a=value)
        with pytest.raises(CheckpointError):
            read_index(tmp_path, ("a", "b"))
    write(tmp_path, 0, 4)
    (tmp_path / "00001-of-00002.safetensors").rename(tmp_path / "00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="should have the files"):
        read_index(tmp_path, ("a", "b"))


def test_a_header_that_is_too_large_is_not_read(tmp_path: Path):
    write(tmp_path, 0)
    path = tmp_path / "00000-of-00001.safetensors"
    path.write_bytes((1 << 25).to_bytes(8, "little") + b"{" + b" " * (1 << 25))
    with pytest.raises(CheckpointError, match="its header has"):
        read_index(tmp_path, ("a", "b"))


def test_empty_tensors_are_not_described_in_thousands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = [f"e{number}" for number in range(30_000)]
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    def put(count: int) -> None:
        rows = json.dumps({name: [0, 0] for name in names[:count]})
        header = json.dumps({**dict.fromkeys(names[:count], entry), "__metadata__": {"rows": rows}}).encode()
        (tmp_path / "00000-of-00001.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    put(30_000)
    with pytest.raises(CheckpointError, match="it has 30,000 entries"):
        read_index(tmp_path, names)
    put(100)
    assert len(read_index(tmp_path, names)) == 100
    monkeypatch.setattr(shard_files, "_described", lambda *_: pytest.fail("a tensor of no network was described"))
    assert read_index(tmp_path, ("a",)) == {}
