"""Random damage to checkpoints: to the bytes of the header, to its JSON, and to sealed metadata."""

from __future__ import annotations

import copy
import json
import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.errors import CheckpointError
from codetr_cli.weights.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from tests.weights.broken_checkpoints import reseal
from tests.weights.published_states import raw_state, small_settings

pytestmark = pytest.mark.slow

INPUTS = 300
LONGEST_S, MOST_MB = 5.0, 400
TOKENS = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\ud800", b"null", b"NaN", b"1e999", b"-", b"9" * 5000,
          b"[" * 5000, b"\0", b"\xff", b"F32", b'"shape":', b'"__metadata__":{}', b" " * 10_000]  # fmt: skip
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        2**31,
        2**63,
        2**64,
        10**300,
        "",
        "a",
        "\x1b[2J",
    ),
    *(
        "\ud800",
        "a" * 100_000,
        [],
        {},
        [[]],
        [0] * 10_000,
        {"a": 1},
        "resnet",
        "F64",
        "../../x",
        "/dev/zero",
        -(2**63) - 1,
    ),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "x.safetensors"
    save_checkpoint(path, raw_state(), settings=small_settings(), class_names=["a", "b", "c"], category_ids=[1, 2, 3])
    load_checkpoint(path)
    return path


def fuzz(make: Callable[[random.Random], Path], read: Callable[[Path], object]) -> None:
    """Reads seeded variants; each may only be refused or read, in little time and memory."""
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for seed in range(INPUTS):
        path = make(random.Random(seed))
        started = time.process_time()
        try:
            read(path)
        except CheckpointError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        assert time.process_time() - started < LONGEST_S, f"seed {seed}"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MB
    assert refused > INPUTS / 2


def split(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def with_other_node(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value in which one node has another value, is missing, or is there twice."""
    value = copy.deepcopy(value)
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return rng.choice(VALUES)
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        action = rng.random()
        if action < 0.15:
            del node[key]
        elif action < 0.3 and isinstance(node, list):
            node.append(node[key])
        else:
            node[key] = rng.choice([*VALUES, node[rng.choice(keys)]])
        return value


def test_bytes_of_the_header(good, tmp_path):
    header, tensors = split(good.read_bytes())
    path = tmp_path / "x.safetensors"

    def make(rng: random.Random) -> Path:
        data = bytearray(header)
        for _ in range(rng.choice([1, 1, 2, 8])):
            place, length = rng.randrange(len(data) + 1), rng.choice([0, 1, 1, 8, 1000])
            data[place : place + length] = rng.choice([*TOKENS, b"", rng.randbytes(length), bytes(data[: 10 * length])])
        length = (
            len(data) if rng.random() < 0.8 else rng.choice([0, 1, 2**16, 2**31, 2**63, len(data) + 8, len(header)])
        )
        path.write_bytes(struct.pack("<Q", length) + bytes(data) + tensors[: rng.choice([None, None, 0, 100])])
        return path

    fuzz(make, load_checkpoint)


def test_json_of_the_header(good, tmp_path):
    header, tensors = split(good.read_bytes())
    path = tmp_path / "x.safetensors"

    def make(rng: random.Random) -> Path:
        text = json.dumps(with_other_node(json.loads(header), rng)).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)
        return path

    fuzz(make, load_checkpoint)


def test_sealed_metadata(good, tmp_path):
    """With a right hash, so that everything behind it is reached."""
    texts = read_metadata(good)

    def make(rng: random.Random) -> Path:
        key = rng.choice(["settings", "settings", "settings", "class_names", "category_ids", "extra"])
        text = json.dumps(with_other_node(json.loads(texts[key]), rng))
        if rng.random() < 0.2:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice(TOKENS).decode("latin-1") + text[place + rng.choice([0, 1]) :]
        return reseal(good, tmp_path / "x.safetensors", metadata=lambda metadata: metadata.update({key: text}))

    fuzz(make, load_checkpoint)
