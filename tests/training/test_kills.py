"""The short form of benchmarks/kill_test.py: the same training, the same comparison, three kills instead of fifty."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

kill_test = pytest.importorskip("benchmarks.kill_test", reason="a source distribution has no benchmarks")


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_killed_three_times_it_ends_like_a_run_that_nothing_happened_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    draw = random.Random(5)
    plans = [
        kill_test.Plan("process", "writing", 2, draw.random(), draw.random()),
        kill_test.Plan("loader", "step", 6, draw.random(), draw.random()),
        kill_test.Plan("job", "writing", 10, draw.random(), draw.random()),
    ]
    kills, compared = kill_test.stand(tmp_path, plans, steps=16)
    assert len(kills) == 3
    assert all(kill.loaded is None or kill.logged - kill.loaded <= 4 for kill in kills), capsys.readouterr().out
    assert compared > 1000


def test_a_difference_is_found(tmp_path: Path):
    """The comparison itself can fail."""
    a, b = ({"weights": {"x": kill_test_tensor(value)}, "loss": [1.0, float("nan")]} for value in (0.0, 1e-7))
    leaves = [list(kill_test._leaves("", tree)) for tree in (a, b)]
    equal = [kill_test._equal(x, y) for (_, x), (_, y) in zip(*leaves, strict=True)]
    assert equal == [False, True, True]


def kill_test_tensor(value: float) -> object:
    import torch

    return torch.full((2,), value)
