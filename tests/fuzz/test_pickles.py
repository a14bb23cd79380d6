"""Random damage to files of `torch.save`, training states and sharded states of both forms."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import resource
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codetr_cli.distributed.shard_files import Shard, write_shards
from codetr_cli.distributed.sharded_state import optimizer_skeleton, read_shards
from codetr_cli.errors import CheckpointError
from codetr_cli.runs.folder import read_state
from codetr_cli.weights.pickles import read_pickle
from tests.distributed import test_former_shards
from tests.runs import test_stored_state

pytestmark = pytest.mark.slow

INPUTS = 1_000
LONGEST_S, MOST_MB = 5.0, 500
OPERATIONS = [operation.code.encode("latin1") for operation in pickletools.opcodes]
PIECES = [
    *OPERATIONS, b"\x00", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00" * 8, b"cos\nsystem\n", b"ctorch\nload\n", b"h\x00",
    b"q\x00", b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"../", b"9" * 500, b"]" * 500, b"(" * 500, b"\x85" * 500,
]  # fmt: skip
SGD = torch.optim.SGD([torch.zeros(1)])


class Whole(nn.Module):
    """A network with the tensor of the sharded states."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(7, 2))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a few changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data))
        action = rng.randrange(5)
        if action == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            data[at:at] = rng.choice(PIECES)
        elif action == 2:
            del data[at : at + rng.randrange(1, 9)]
        elif action == 3:
            data[at : at + 1] = rng.choice(OPERATIONS)
        else:
            start = rng.randrange(len(data))
            data[at:at] = data[start : start + rng.randrange(1, 200)]
        data = data or bytearray(b"\x80")
    return bytes(data)


def fuzz(make: Callable[[random.Random], bytes], read: Callable[[bytes], object]) -> None:
    """Reads seeded variants; each is read or a bad checkpoint, imports nothing, and needs little time and memory."""
    read(make(random.Random(-1)))
    before, modules, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, set(sys.modules), 0
    for seed in range(INPUTS):
        content = damaged(make(random.Random(seed)), random.Random(seed))
        started = time.process_time()
        try:
            read(content)
        except CheckpointError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        assert time.process_time() - started < LONGEST_S, f"seed {seed}"
    imported = {name for name in set(sys.modules) - modules if not name.startswith("encodings.")}
    assert imported == set()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MB
    assert refused > INPUTS / 4


def saved(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


CONTENT = {
    "state_dict": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2).half()},
    "meta": {"epoch": 3, "CLASSES": ("cat", "dog"), 5: [1.5, None, {1, 2}, b"x", 2**70]},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle in a zip"])
def test_files_of_torch(tmp_path: Path, form: str, protocol: int):
    path = tmp_path / "x.pth"
    whole = saved(CONTENT, _use_new_zipfile_serialization=form != "legacy", pickle_protocol=protocol)
    members = {}
    if form == "pickle in a zip":
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        (name,) = (name for name in members if name.endswith("data.pkl"))
        whole = members.pop(name)

    def read(content: bytes) -> None:
        if members:
            with zipfile.ZipFile(path, "w") as archive:
                for other, data in {name: content, **members}.items():
                    archive.writestr(other, data)
        else:
            path.write_bytes(content)
        read_pickle(path)

    fuzz(lambda rng: whole, read)


def test_training_states(tmp_path: Path):
    path = tmp_path / "state.pt"
    whole = saved(test_stored_state.state(), _use_new_zipfile_serialization=False)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_state(path)

    fuzz(lambda rng: whole, read)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "00000-of-00001.safetensors"])
def test_sharded_states(tmp_path: Path, name: str):
    if name.endswith("safetensors"):
        rows: Tensor = test_former_shards.WHOLE
        write_shards(tmp_path, {"weights.a": Shard(rows, 0, 7)}, 0, 1)
    else:
        test_former_shards.write(tmp_path)
    whole = (tmp_path / name).read_bytes()
    assert name != ".metadata" or whole[:2] == pickle.PROTO + b"\x04"

    def read(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        read_shards(tmp_path, Whole(), SGD, optimizer_skeleton(SGD), weights=True)

    fuzz(lambda rng: whole, read)
