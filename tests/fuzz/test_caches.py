"""Broken files in the cache and in run folders: never an error, little time and memory, and always found again."""

from __future__ import annotations

import hashlib
import json
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_cli.annotations.cache import SUMMARY, cache_entries, source_of
from codetr_cli.config.schema import Settings
from codetr_cli.formats.open import open_dataset
from codetr_cli.ops import deform_attn_triton_tuning as tuning
from codetr_cli.receipts import has_changed, receipt_path, write_receipt
from codetr_cli.runs.memory_record import MemoryRecord, read_record, with_fitted, write_record
from codetr_cli.weights import download
from codetr_cli.weights.cached_files import find_cached_files
from tests.data.fakes import write_voc, xml

pytestmark = pytest.mark.slow

SECONDS = 6.0  # for each parser
MAX_SECONDS = 1.0  # CPU time of one input
MAX_BYTES = 200 << 20  # a buffer as large as the limit of a file is reserved before it is read
ODD: list[Any] = [
    *(None, True, -1, 0, 1e300, 10**400, 0.5, "", "x", "\ud800", "\x00", "../../x", "a" * 10_000, [], {}, [[]], [None]),
    *({"": {}}, {"a": 1}, float("nan"), [1] * 1000, {str(number): number for number in range(1000)}),
]
FRAGMENTS = (
    *(
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 100_000,
        b"\xff\xfe",
        b"\x00",
        b"null",
        b"NaN",
        b"1e999999",
        b'"\\ud800"',
    ),
    *(b"{}", b"[]", b" " * 100_000, b'"' * 1001, b"\\u0000", b"-", b"}" * 100),
)


def broken(valid: bytes, seed: int) -> Iterator[bytes]:
    """Endless variants of a JSON file: changed as bytes, and as values."""
    chance = random.Random(seed)
    while True:
        data = bytearray(valid)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
            match chance.randrange(5):
                case 0:
                    data[at : at + 1] = bytes([chance.randrange(256)])
                case 1:
                    del data[at:]
                case 2:
                    del data[at:end]
                case 3:
                    data[at:at] = chance.choice(FRAGMENTS)
                case 4:
                    data[at:at] = data[at:end][:1000]
        yield bytes(data)
        yield json.dumps(odd_value(json.loads(valid), chance)).encode()


def odd_value(table: Any, chance: random.Random) -> Any:
    """The value with one of its parts replaced, removed or added."""
    if isinstance(table, dict) and table and chance.random() < 0.85:
        key = chance.choice(list(table))
        match chance.randrange(6):
            case 0:
                return {name: value for name, value in table.items() if name != key}
            case 1:
                return table | {chance.choice(("x", "", "\ud800")): chance.choice(ODD)}
        return table | {key: odd_value(table[key], chance)}
    if isinstance(table, list) and table and chance.random() < 0.8:
        at = chance.randrange(len(table))
        return [*table[:at], odd_value(table[at], chance), *table[at + 1 :]]
    return chance.choice(ODD)


def with_digest(data: bytes) -> bytes:
    """A summary with the right digest of itself, if it is a table at all."""
    try:
        table = json.loads(data)
        table.pop("digest", None)
        table["digest"] = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
        return json.dumps(table).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def fuzz(path: Path, use: Callable[[], object], seed: int, change: Callable[[bytes], bytes] = bytes) -> None:
    """Writes variants of a file and uses each: nothing may be raised, and time and memory are limited."""
    valid, end, count = path.read_bytes(), time.monotonic() + SECONDS, 0
    tracemalloc.start()
    try:
        for data in broken(valid, seed):
            data = change(data)
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before = time.process_time()
            use()
            assert time.process_time() - before < MAX_SECONDS, data[:300]
            assert tracemalloc.get_traced_memory()[1] < MAX_BYTES, data[:300]
            count += 1
            if time.monotonic() > end:
                break
    finally:
        tracemalloc.stop()
    assert count > 50


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("forged", [False, True])
def test_summaries_of_conversions(tmp_path: Path, forged: bool):
    write_voc(tmp_path / "voc", {"a": xml(("ant", 1, 1, 99, 9))}, {"train": "a", "val": "a"})
    converted = open_dataset(tmp_path / "voc")
    assert converted is not None
    path = converted.splits["train"].annotations_path

    def use() -> None:
        source_of(path)
        cache_entries()
        found = open_dataset(tmp_path / "voc")
        assert found is not None
        found.sentences(), found.warnings()

    fuzz(path.parent / SUMMARY, use, 1, with_digest if forged else bytes)


def test_receipts(tmp_path: Path):
    file = tmp_path / "cache" / "backbones" / "x.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\x80weights")
    write_receipt(file, url="https://host/x.pth", validator='"one"')

    def use() -> None:
        has_changed(file)
        find_cached_files()

    fuzz(receipt_path(file), use, 2)


def test_validators(tmp_path: Path):
    part, url = tmp_path / "x.pth.part", "https://host/x.pth"
    download._validator_path(part).write_text(
        json.dumps({"url_sha256": download._url_digest(url), "validator": '"one"'})
    )

    def use() -> None:
        validator = download._saved_validator(part, url)
        assert validator is None or (validator.isascii() and validator.isprintable())

    fuzz(download._validator_path(part), use, 3)


def test_measurements_of_kernels(monkeypatch: pytest.MonkeyPatch):
    description = {"gpu": "none", "triton": "3"}
    monkeypatch.setattr(tuning, "_description", lambda problem: description)
    constants = (("POINTS_PAD", 4), ("TERMS_PAD", 16), ("CHANNELS_PAD", 32))
    problem = tuning.Problem("forward", torch.device("cpu"), 1, False, (torch.float32,), constants)
    chosen = problem.candidates()[0]
    tuning._save(problem, chosen, {chosen: 1.0})
    assert tuning._load(problem) == chosen
    allowed = {None, *problem.candidates()}

    def use() -> None:
        assert tuning._load(problem) in allowed

    fuzz(tuning._path(problem), use, 4)


def test_memory_records(tmp_path: Path, tiny_settings: Settings):
    why = {"process": 0, "images": [1], "size": [64, 64], "named": "image 1"}
    write_record(tmp_path, MemoryRecord({"device": "cpu"}, {"train.micro_batch": [2, 1]}, 2, True, why))

    def use() -> None:
        record = read_record(tmp_path)
        assert type(record.parts) is int
        fitted = with_fitted(tiny_settings, tmp_path)
        assert fitted.train.micro_batch in (None, 1, 2)

    fuzz(tmp_path / "memory.json", use, 5)
