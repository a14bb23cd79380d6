"""A training state that was changed: a bad checkpoint, never a bug, and never a training with other numbers."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, StoppedError
from codetr_cli.runs.folder import read_state
from codetr_cli.runs.stored_state import check_state
from codetr_cli.runtime.rng import random_states, restore_random_states
from tests.training.fakes import FakeRun, begin, train

CPU = torch.device("cpu")
VALUES = (
    None, True, -1, 0, 10**30, 1.5, float("nan"), "text", "9" * 5_000, [], {}, [None], {"a": 1}, (1, 2), torch.ones(3),
    torch.full((3,), torch.nan), torch.ones(2, 2).long(),
)  # fmt: skip
REMOVED = object()


def state() -> dict[str, Any]:
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2), "exp_avg_sq": None}
    return {
        "step": 3,
        "position": {
            "step": 3,
            "epoch": 1,
            "batch": 2,
            "segments": [(1, 2, 3, None)],
            "best": 0.1,
            "other_order": (0, 1),
        },
        "world_size": 2,
        "micro_batch": 1,
        "optimizer": {"state": {0: moments}, "param_groups": [{"params": [0], "lr": 1e-4}]},
        "scaler": {"scale": 1.0, "_growth_tracker": 0},
        "randomness": [random_states(CPU)] * 2,
        "weights": None,
        "parts": {"weights": True},
    }


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a path of keys."""
    if not path:
        return new
    value = copy.copy(value)
    if new is REMOVED and len(path) == 1:
        del value[path[0]]
    else:
        value[path[0]] = changed(value[path[0]] if path[1:] else None, path[1:], new)
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("optimizer", "param_groups", 0, "params"), ["a"] * 10**6),
        (("optimizer", "state"), dict.fromkeys(range(10**6), 1)),
        (("scaler",), dict.fromkeys(map(str, range(10**6)), "a")),
        (("position", "segments"), [[["a"] * 1000] * 1000] * 1000),
        (("randomness",), [1] * 10**6),
        (("unknown",), "a" * 10**6),
    ],
)
def test_floods_of_wrong_values_are_counted_first(path: tuple[Any, ...], value: Any):
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"not what a training writes: it has .* and the limit is"):
        check_state(changed(state(), path, value))
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("step",), 10**30),
        (("step",), True),
        (("step",), 4),
        (("position", "step"), 4),
        (("position", "epoch"), -1),
        (("position", "batch"), 1.5),
        (("position", "best"), float("nan")),
        (("position", "parts"), 0),
        (("position", "segments"), [(1, 2)]),
        (("position", "segments"), [(1 << 40, 1, 1, None)]),
        (("position", "other_order"), (1, 2, 3)),
        (("position", "unknown"), 1),
        (("world_size",), 0),
        (("world_size",), torch.ones(1)),
        (("micro_batch",), "2"),
        (("optimizer", "state"), {"0": {}}),
        (("optimizer", "state", 0, "exp_avg"), "text"),
        (("optimizer", "param_groups"), {}),
        (("optimizer", "param_groups", 0, "params"), [torch.ones(1)]),
        (("scaler",), {"scale": "text"}),
        (("randomness",), {}),
        (("randomness", 0), {}),
        (("randomness", 0, "numpy"), []),
        (("weights",), {"a": [1.0]}),
        (("weights",), {1: torch.ones(1)}),
        (("parts",), {"weights": 1}),
        (("parts",), {}),
    ],
)
def test_values_that_no_training_writes_are_refused(path: tuple[Any, ...], value: Any):
    assert check_state(state())["step"] == 3
    with pytest.raises(CheckpointError, match=r"not what a training writes|another one than step"):
        check_state(changed(state(), path, value))


@pytest.mark.parametrize(
    ("key", "index", "value"),
    [
        ("numpy", 2, 625),  # numpy itself would read outside of its memory
        ("numpy", 2, -1),
        ("numpy", 2, torch.ones(2)),
        ("numpy", 1, torch.zeros(3, dtype=torch.int64)),
        ("numpy", 0, "PCG64"),
        ("python", 1, [0] * 3),
        ("python", 1, [0] * 624 + [10**6]),
        ("python", 0, 9),
    ],
)
def test_states_of_generators_are_checked(key: str, index: int, value: Any):
    states = random_states(CPU)
    restore_random_states(states, CPU)
    with pytest.raises((ValueError, TypeError)):
        restore_random_states(changed(states, (key, index), value), CPU)
    with pytest.raises(ValueError, match="PyTorch"):
        restore_random_states({**states, "torch": torch.zeros(9, dtype=torch.uint8)}, CPU)
    restore_random_states(states, CPU)
    assert 0 <= np.random.rand() < 1


@pytest.fixture
def run(tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped after three steps."""
    monkeypatch.setattr("codetr_cli.training.plots.draw_plots", lambda lines, folder: [])
    begin_and_train(tmp_path / "run", tiny_settings, stop_after=3)
    shutil.rmtree(tmp_path / "run/checkpoints/previous", ignore_errors=True)
    (tmp_path / "run/checkpoints/last/sums.json").unlink()
    return tmp_path / "run"


def begin_and_train(path: Path, settings: Settings, stop_after: int) -> FakeRun:
    words = ("train.epochs=2", "train.checkpoint_every=2", "train.ema_momentum=1e-3")
    training = begin(path, settings, *words, stop_after=stop_after)
    with pytest.raises(StoppedError):
        train(training)
    return training


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("optimizer", "state", 0, "exp_avg"), torch.ones(7)),
        (("optimizer", "state", 0, "exp_avg"), REMOVED),
        (("optimizer", "state", 0, "exp_avg"), None),
        (("optimizer", "state", 0, "step"), torch.ones(2)),
        (("optimizer", "state", 99), {}),
        (("optimizer", "param_groups"), []),
        (("optimizer",), REMOVED),
        (("randomness",), []),
        (("randomness", 0, "numpy", 2), 10**9),
        (("position",), REMOVED),
        (("position", "batch"), 10**6),
        (("scaler",), REMOVED),
        (("weights",), REMOVED),
        (("weights",), {}),
    ],
)
def test_a_state_of_another_training_is_a_bad_checkpoint(
    run: Path, tiny_settings: Settings, path: tuple[Any, ...], value: Any
):
    file = run / "checkpoints/last/state.pt"
    torch.save(changed(read_state(file), path, value), file)
    with pytest.raises(CheckpointError):
        begin_and_train(run, tiny_settings, stop_after=4)


def test_options_of_the_optimizer_are_those_of_the_settings(run: Path, tiny_settings: Settings):
    file = run / "checkpoints/last/state.pt"
    stored = changed(read_state(file), ("optimizer", "param_groups", 0, "betas"), "text")
    torch.save(changed(stored, ("optimizer", "param_groups", 0, "base_lr"), 1e9), file)
    groups = begin_and_train(run, tiny_settings, stop_after=4).state.optimizer.param_groups
    assert groups[0]["betas"] == tiny_settings.train.betas
    assert groups[0]["base_lr"] < 1


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:40]:
        yield from paths(item, (*path, key))


@pytest.mark.slow
def test_no_value_of_a_state_is_a_bug(run: Path, tmp_path: Path, tiny_settings: Settings):
    """Every entry replaced by every value: the run continues, or the checkpoint is bad."""
    original, keep = read_state(run / "checkpoints/last/state.pt"), shutil.copytree(run, tmp_path / "keep")
    count = 0
    for path in paths(original):
        if path[:1] == ("weights",) and len(path) > 1 and path[1] != "backbone.weight":
            continue
        for value in (*VALUES, *([REMOVED] if path else [])):
            shutil.rmtree(run)
            shutil.copytree(keep, run)
            torch.save(changed(original, path, value), run / "checkpoints/last/state.pt")
            try:
                begin_and_train(run, tiny_settings, stop_after=4)
            except CheckpointError:
                count += 1
    assert count > 500
