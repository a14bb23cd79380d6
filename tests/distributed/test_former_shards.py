"""Sharded states of earlier versions: read as they were written, and by nothing that a file could lead astray."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo  # noqa: TID251
from torch.distributed.checkpoint.metadata import (  # noqa: TID251
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save  # noqa: TID251

from codetr_cli.distributed import former_shards
from codetr_cli.distributed.former_shards import read_index
from codetr_cli.distributed.sharded_state import optimizer_skeleton, read_shards
from codetr_cli.errors import CheckpointError
from codetr_cli.weights.unpickler import Budget

WHOLE = torch.arange(14.0).reshape(7, 2)
SGD = torch.optim.SGD([torch.zeros(1)])  # without a state


def whole(folder: Path, name: str) -> Tensor:
    stored = read_index(folder, (name,))[name]
    found = torch.zeros(stored.shape, dtype=stored.dtype)
    stored.copy_into(found, 0)
    return found


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_the_package_writes_is_read(tmp_path: Path):
    values = {"weights.a": WHOLE, "weights.half": torch.ones(3, 3).half(), "scalar": torch.tensor(5)}
    save(dict(values), storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    for name, value in values.items():
        assert torch.equal(whole(tmp_path, name), value.view(whole(tmp_path, name).shape))


def write(folder: Path, *, starts: tuple[int, ...] = (0, 2, 6), protocol: int = 4, **changed: Any) -> Metadata:
    """A folder with one tensor, (7, 2), in parts that start at given rows."""
    metadata, content = Metadata({}, storage_data={}, storage_meta=StorageMeta(checkpoint_id=folder)), b""
    chunks = []
    for start, end in zip(starts, (*starts[1:], 7), strict=True):
        file = io.BytesIO()
        torch.save(WHOLE[start:end].clone(), file)
        offset = torch.Size([start, 0])
        index = MetadataIndex("weights.a", offset, len(chunks))
        metadata.storage_data[index] = _StorageInfo("__0_0.distcp", len(content), file.tell())
        chunks.append(ChunkStorageMetadata(offset, torch.Size([end - start, 2])))
        content += file.getvalue()
    properties = TensorProperties(torch.float32)
    metadata.state_dict_metadata["weights.a"] = TensorStorageMetadata(properties, torch.Size([7, 2]), chunks)
    for key, value in changed.items():
        setattr(metadata, key, value)
    (folder / "__0_0.distcp").write_bytes(content)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol))
    return metadata


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_parts_of_several_processes_are_joined(tmp_path: Path, protocol: int):
    write(tmp_path, protocol=protocol)
    assert torch.equal(whole(tmp_path, "weights.a"), WHOLE)
    rows = torch.zeros(3, 2)
    read_index(tmp_path, ("weights.a",))["weights.a"].copy_into(rows, 1)  # of a process that has rows 1 to 3
    assert torch.equal(rows, WHOLE[1:4])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_an_optimizer_continues_from_a_former_state(tmp_path: Path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moments = {
        f"optimizer.{name}.{key}": optimizer.state[parameter][key].clone()
        for name, parameter in model.named_parameters()
        for key in ("exp_avg", "exp_avg_sq")
    }
    save(dict(moments), storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    skeleton = optimizer_skeleton(optimizer)
    for values in skeleton["state"].values():
        values.update(exp_avg=None, exp_avg_sq=None)
    for values in optimizer.state.values():
        values["exp_avg"].zero_()
    read_shards(tmp_path, model, optimizer, skeleton, weights=False)
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[f"optimizer.{name}.exp_avg"])
    with pytest.raises(CheckpointError, match=r"lacks weights\.weight") as caught:
        read_shards(tmp_path, model, optimizer, skeleton, weights=True)
    assert caught.value.exit_code == 4


# -------------------------------------------------------------------------------------------------- what is refused


def shape_of(metadata: Metadata, *size: int) -> None:
    metadata.state_dict_metadata["weights.a"].size = torch.Size(size)  # type: ignore[union-attr]


def place(metadata: Metadata, **values: Any) -> None:
    vars(next(iter(metadata.storage_data.values()))).update(values)


def chunk(metadata: Metadata, number: int, **values: Any) -> None:
    vars(metadata.state_dict_metadata["weights.a"].chunks[number]).update(values)  # type: ignore[union-attr]


REFUSED: dict[str, Callable[[Metadata], Any]] = {
    "a path out of the folder": lambda m: place(m, relative_path="../__0_0.distcp"),
    "an absolute path": lambda m: place(m, relative_path="/etc/passwd"),
    "a path of another kind": lambda m: place(m, relative_path=".metadata"),
    "a path that is no text": lambda m: place(m, relative_path=7),
    "a file that is missing": lambda m: place(m, relative_path="__9_0.distcp"),
    "a part behind its file": lambda m: place(m, offset=1 << 40),
    "a part larger than its file": lambda m: place(m, length=1 << 40),
    "a part of negative size": lambda m: place(m, length=-1),
    "parts that overlap": lambda m: place(m, length=3000),
    "a transformed part": lambda m: place(m, transform_descriptors=["zstd"]),
    "more rows than there are": lambda m: shape_of(m, 1 << 40, 2),
    "fewer rows": lambda m: shape_of(m, 6, 2),
    "a negative number of rows": lambda m: shape_of(m, -7, 2),
    "another dimension": lambda m: shape_of(m, 7, 2, 1),
    "rows that are there twice": lambda m: chunk(m, 1, sizes=torch.Size([5, 2])),
    "rows of another length": lambda m: chunk(m, 1, sizes=torch.Size([4, 1])),
    "rows at a column": lambda m: chunk(m, 1, offsets=torch.Size([2, 1])),
    "rows that are nowhere": lambda m: m.storage_data.popitem(),
    "a chunk of another class": lambda m: m.state_dict_metadata["weights.a"].chunks.append(MetadataIndex("a")),  # type: ignore[union-attr]
    "no chunks": lambda m: m.state_dict_metadata["weights.a"].chunks.clear(),  # type: ignore[union-attr]
    "properties that are none": lambda m: vars(m.state_dict_metadata["weights.a"]).update(properties=None),
    "no places": lambda m: setattr(m, "storage_data", None),
    "no tensors": lambda m: setattr(m, "state_dict_metadata", []),
    "the same place under two numbers": lambda m: m.storage_data.update(
        {MetadataIndex("weights.a", torch.Size([2, 0]), 9): _StorageInfo("__0_0.distcp", 0, 10)}
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_metadata_that_does_not_fit_the_files_is_a_bad_checkpoint(tmp_path: Path, name: str):
    metadata = write(tmp_path)
    model = nn.Linear(2, 7, bias=False)
    model.a = nn.Parameter(torch.zeros(7, 2))
    del model.weight
    read_shards(tmp_path, model, torch.optim.SGD(model.parameters()), optimizer_skeleton(SGD), weights=True)
    assert torch.equal(model.a, WHOLE)
    REFUSED[name](metadata)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="cannot read the training state"):
        read_shards(tmp_path, model, torch.optim.SGD(model.parameters()), optimizer_skeleton(SGD), weights=True)


def test_a_part_that_holds_something_else_is_refused(tmp_path: Path):
    metadata = write(tmp_path, starts=(0,))
    for value in (WHOLE.double(), WHOLE[:, :1].clone(), {"a": WHOLE}, WHOLE[:1].expand(1 << 20, 2)):
        file = io.BytesIO()
        torch.save(value, file)
        (tmp_path / "__0_0.distcp").write_bytes(file.getvalue())
        place(metadata, length=file.tell())
        (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises((CheckpointError, pickle.UnpicklingError)):
            whole(tmp_path, "weights.a")


CHECKPOINT = "torch.distributed.checkpoint"
NAMES = {
    "a module of the user's folder": b"\x80\x02chostile_module\nx\n.",
    "a module of Python": b"\x80\x02cthis\ns\n.",
    "a call": b"cos\nsystem\n(S'true'\ntR.",
    "a call, protocol 4": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "a class found in the package": f"\x80\x02c{CHECKPOINT}.filesystem\nFileSystem\n)\x81.".encode("latin1"),
    "a class imported by the package": f"\x80\x02c{CHECKPOINT}.filesystem\nPath\nX\x01\x00\x00\x00x\x85R.".encode(
        "latin1"
    ),
    "a class of another module of it": f"\x80\x02c{CHECKPOINT}.logger\nx\n.".encode("latin1"),
    "an attribute of a class": f"\x80\x04\x8c\x26{CHECKPOINT}.metadata\x8c\x11Metadata.__init__\x93.".encode("latin1"),
    "a call of a class": f"\x80\x02c{CHECKPOINT}.metadata\nMetadata\n(}}}}tR.".encode("latin1"),
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\no.",
    "an extension": b"\x82\x01.",
    "no metadata": b"\x80\x02N.",
    "nothing": b"",
    "text": b"{}",
    "deep": b"\x80\x02N" + b"\x85" * 100_000 + b".",
    "doubling": b"\x80\x02]q\x000" + b"](h\x00h\x00eq\x000" * 80 + b"h\x00.",
    "lists": b"\x80\x02(" + b"]" * 1_000_000 + b"t.",
}


@pytest.mark.parametrize("name", NAMES)
def test_metadata_imports_and_builds_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path)
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / ".metadata").write_bytes(NAMES[name])
    before = set(sys.modules)
    with pytest.raises(CheckpointError, match="cannot read the training state"):
        read_shards(tmp_path, nn.Linear(1, 1), SGD, optimizer_skeleton(SGD), weights=False)
    assert set(sys.modules) == before
    assert not (tmp_path / "sentinel").exists()


def test_large_metadata_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"(" * (2 << 20))  # of parts with three thousand bytes
    with pytest.raises(OSError, match="more than 1,04"):
        read_index(tmp_path, ())
    monkeypatch.setattr(former_shards, "MAX_METADATA_BYTES", 100)
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_index(tmp_path, ())


def test_the_metadata_of_many_processes_has_the_memory_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its share alone: without what any pickle may need."""
    metadata, chunks = write(tmp_path), []
    metadata.storage_data.clear()
    for row in range(300):
        size = torch.Size([1, 1024])
        chunks.append(ChunkStorageMetadata(torch.Size([row, 0]), size))
        index = MetadataIndex("optimizer.backbone.blocks.0.mlp.w1.weight.exp_avg", torch.Size([row, 0]), row)
        metadata.storage_data[index] = _StorageInfo(f"__{row}_0.distcp", 0, 5_000)
        with (tmp_path / f"__{row}_0.distcp").open("wb") as file:
            file.truncate(5_000)
    properties = TensorProperties(torch.float32)
    metadata.state_dict_metadata = {index.fqn: TensorStorageMetadata(properties, torch.Size([300, 1024]), chunks)}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    monkeypatch.setattr(former_shards, "Budget", lambda size: Budget(size, base=0))
    assert read_index(tmp_path, (index.fqn,))[index.fqn].shape == (300, 1024)
