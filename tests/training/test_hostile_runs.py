"""Run folders that somebody has broken or forged: a training that is to continue them ends with an error of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from codetr_cli.config.schema import Settings
from codetr_cli.runs.folder import RunFolder, read_state
from tests.faults import run_with_fault
from tests.training.killed_writes import Command, command_of

Break = Callable[[RunFolder], object]
VALUES: tuple[Any, ...] = (None, "x", -1, 1.5, float("nan"), 10**400, [], {}, [[]], {"x": None})


def files() -> Iterator[tuple[str, Break]]:
    """Files that are no files, or hold anything."""
    contents = (b"", b"\x00\xff", b"null", b"[]", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"a.b = 1")
    for name in ("settings.toml", "origin.json", "metrics.jsonl", "memory.json", "checkpoints/last/sums.json"):
        for content in contents:
            yield (
                f"{name} {content[:9]!r}",
                lambda run, name=name, content=content: (run.path / name).write_bytes(content),
            )
    for name in ("settings.toml", "metrics.jsonl", "memory.json", "events.log", ".lock", "checkpoints", "plots",
                 "checkpoints/last/state.pt", "checkpoints/last/model.safetensors", "checkpoints/last/sums.json",
                 "checkpoints/last"):  # fmt: skip
        yield f"{name} is a pipe", lambda run, name=name: _replaced(run.path / name, os.mkfifo)
        yield (
            f"{name} is a folder or a file",
            lambda run, name=name: _replaced(run.path / name, Path.touch if (run.path / name).is_dir() else Path.mkdir),
        )
        yield (
            f"{name} is a link to itself",
            lambda run, name=name: _replaced(run.path / name, lambda path: path.symlink_to(path)),
        )


def lines() -> Iterator[tuple[str, Break]]:
    """Lines of metrics with values of other types."""
    for kind, keys in {
        "train": ("step", "epoch", "loss", "eta_s", "images_per_s", "groups", "lr"),
        "eval": ("step", "metrics", "best"),
        "rollback": ("step", "best", "epoch", "batch"),
        "end": ("step", "early", "epoch"),
    }.items():
        for key in keys:
            for value in VALUES:
                line = {
                    "kind": kind,
                    "step": 2,
                    "epoch": 0,
                    "batch": 1,
                    "best": 0.1,
                    "metrics": {"AP": 0.1},
                    key: value,
                }
                yield f"{kind}.{key} {str(value)[:9]}", lambda run, line=line: run.log(line)


def records() -> Iterator[tuple[str, Break]]:
    """Values of memory.json and origin.json of other types."""
    for name, keys in {
        "memory.json": ("checked", "fitted", "parts", "recompute", "why", "more"),
        "origin.json": ("train_annotations", "train_digest", "val_annotations", "weights"),
    }.items():
        for key in keys:
            for value in (
                *VALUES,
                {"train.lr": 3},
                {"train.lr": [2e-4, "x"]},
                {"nothing": [1, 2]},
                {"train": [1, 2, 3]},
            ):
                table = {"train_annotations": "/data/here/train.json"} if name == "origin.json" else {}
                text = json.dumps({**table, key: value})
                yield f"{name} {key} {str(value)[:20]}", lambda run, n=name, text=text: (run.path / n).write_text(text)


def checkpoints() -> Iterator[tuple[str, Break]]:
    """States and checksums that somebody made."""
    for key in (
        "step",
        "position",
        "world_size",
        "micro_batch",
        "optimizer",
        "scaler",
        "randomness",
        "weights",
        "parts",
    ):
        for value in (None, "x", [], {}, 3, torch.zeros(2)):
            yield f"state.{key} {str(value)[:9]}", lambda run, key=key, value=value: _change_state(run, {key: value})
        yield f"state without {key}", lambda run, key=key: _change_state(run, {}, without=key)
    yield "other weights", lambda run: _change_weights(run)
    for name in ("../../settings.toml", "/etc/passwd", "./state.pt", "a/../state.pt", "nothing", "", "\x00"):
        sums = {"sha256": {name: "0" * 64}}
        yield f"sums of {name!r}", lambda run, sums=sums: (run.last / "sums.json").write_text(json.dumps(sums))


def _replaced(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    make(path)


def _change_state(run: RunFolder, changes: dict[str, Any], without: str | None = None) -> None:
    state = read_state(run.last / "state.pt") | changes
    torch.save({key: value for key, value in state.items() if key != without}, run.last / "state.pt")
    (run.last / "sums.json").unlink()


def _change_weights(run: RunFolder) -> None:
    save_file({"a": torch.zeros(2)}, run.last / "model.safetensors", {"step": "2"})
    (run.last / "sums.json").unlink()


BREAKS = {**dict(files()), **dict(lines()), **dict(records()), **dict(checkpoints())}
ALLOWED = (0, 2, 4, 5)  # the disk does not work where a folder or a file is something else


@pytest.fixture
def begun(tmp_path: Path, tiny_settings: Settings) -> Path:
    """A run of two steps that is to have four."""
    root = tmp_path / "begun"
    root.mkdir()
    assert run_with_fault(command_of(root, tiny_settings, Command(steps=2)), root).code == 0
    return root


def check(begun: Path, settings: Settings, name: str) -> None:
    root = begun.with_name("broken")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(begun, root)
    BREAKS[name](RunFolder(root / "run"))
    ended = run_with_fault(command_of(root, settings, Command(steps=4)), root)
    assert ended.code in ALLOWED, f"{name}: {ended.code} {ended.err[-1500:]}"
    assert "Traceback" not in ended.err, name
    assert ended.code == 0 or str(root) in ended.err, f"{name}: {ended.err}"


def test_some_broken_runs_end_with_an_error_of_their_own(begun: Path, tiny_settings: Settings):
    for name in list(BREAKS)[::40]:
        check(begun, tiny_settings, name)


def test_a_run_without_checkpoints_starts_again_but_not_from_files_that_it_names(begun: Path, tiny_settings: Settings):
    run = RunFolder(begun / "run")
    shutil.rmtree(run.checkpoints_dir)
    inputs = run.inputs_path.read_text()
    run.inputs_path.write_text(json.dumps({**json.loads(inputs), "weights": "/w.safetensors"}))
    command = command_of(begun, tiny_settings, Command(steps=4))
    for _ in range(2):  # the name stays on record
        ended = run_with_fault(command, begun)
        assert ended.code == 2
        assert "give --weights /w.safetensors again" in ended.err
    run.inputs_path.write_text(inputs)
    assert run_with_fault(command, begun).code == 0
    assert "2 logged steps are dropped, because no checkpoint exists" in run.events_path.read_text()
    assert [line["step"] for line in run.lines("train") if line["kind"] == "train"] == [1, 2, 3, 4]


def test_a_run_continues_from_its_best_checkpoint_where_it_has_no_other(begun: Path, tiny_settings: Settings):
    run = RunFolder(begun / "run")
    shutil.rmtree(run.last)
    shutil.rmtree(run.previous)
    assert run_with_fault(command_of(begun, tiny_settings, Command(steps=4)), begun).code == 0
    events = run.events_path.read_text()
    assert "checkpoint last cannot be used" in events
    assert "resumed after step" in events


@pytest.mark.slow
def test_broken_runs_end_with_an_error_of_their_own(begun: Path, tiny_settings: Settings):
    for name in BREAKS:
        check(begun, tiny_settings, name)
