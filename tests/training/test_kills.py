"""The short form of benchmarks/kill_test.py: the same training, the same comparison, three kills instead of fifty."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forked import ForkedPython

compare_runs = pytest.importorskip("benchmarks.compare_runs", reason="a source distribution has no benchmarks")
killed_job = pytest.importorskip("benchmarks.killed_job", reason="a source distribution has no benchmarks")
kill_test = pytest.importorskip("benchmarks.kill_test", reason="a source distribution has no benchmarks")


def start_forked(words: list[str], output: Path) -> ForkedPython:
    return ForkedPython(*words, output=output)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("start", [start_forked, pytest.param(killed_job.start_python, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_three_times_ends_like_an_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], start: Callable[[list[str], Path], Any]
):
    generator = random.Random(5)
    planned = [
        killed_job.PlannedKill("process", "writing", 2, generator.random(), generator.random()),
        killed_job.PlannedKill("loader", "step", 6, generator.random(), generator.random()),
        killed_job.PlannedKill("job", "writing", 10, generator.random(), generator.random()),
    ]
    kills, compared = kill_test.run(tmp_path, planned, steps=16, start=start)
    assert len(kills) == 3
    assert all(kill.loaded is None or kill.logged - kill.loaded <= 4 for kill in kills), capsys.readouterr().out
    assert compared > 1000


def test_a_difference_is_found(tmp_path: Path):
    """The comparison itself can fail."""
    a, b = ({"weights": {"x": make_tensor(value)}, "loss": [1.0, float("nan")]} for value in (0.0, 1e-7))
    leaves = [list(compare_runs.leaves("", tree)) for tree in (a, b)]
    equal = [compare_runs.equal(x, y) for (_, x), (_, y) in zip(*leaves, strict=True)]
    assert equal == [False, True, True]


def make_tensor(value: float) -> object:
    import torch

    return torch.full((2,), value)
