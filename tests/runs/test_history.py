from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from codetr_cli.runs.history import MAX_POINTS, MAX_SERIES, History, Series


def training(step: int, **values: Any) -> bytes:
    return json.dumps({"kind": "train", "step": step, "epoch": 0, "loss": 3.0, "groups": {"a": 1.0}} | values).encode()


def evaluation(step: int, **metrics: Any) -> bytes:
    return json.dumps({"kind": "eval", "step": step, "epoch": 1, "metrics": metrics}).encode()


def test_newest_values_and_courses():
    history = History()
    for text in (
        training(1, lr=0.1, time=10.0),
        training(2, loss=2.0, lr=0.2, time=14.5, groups={"a": 0.5, "b": 1.5}),
        evaluation(2, AP=0.3, AP50=0.5, APs=-1.0),
        evaluation(4, AP=0.2),
        b'{"kind": "skip", "step": 5}',
    ):
        assert history.add(text) is not None
    assert (history.number("loss"), history.number("lr"), history.number("grad_norm")) == (2.0, 0.2, None)
    assert dict(history.groups()) == {"a": 0.5, "b": 1.5}
    assert history.line_seconds == 4.5
    assert history.series["loss"].points == [(1, 3.0), (2, 2.0)]
    assert history.series["loss/b"].points == [(2, 1.5)]
    assert history.series["eval/AP"].points == [(2, 0.3), (4, 0.2)]
    assert "eval/APs" not in history.series  # no small objects
    assert history.evaluation is not None
    assert history.best is not None
    assert (history.evaluation["step"], history.best["step"]) == (4, 2)
    assert history.skipped == 1
    assert history.end is None


@pytest.mark.parametrize("kind", ["end", "diverged"])
def test_the_end(kind: str):
    history = History()
    history.add(training(3))
    history.add(json.dumps({"kind": kind, "step": 3, "epoch": 1}).encode())
    assert history.end == kind


def test_of_many_values_every_nth_is_kept():
    series = Series()
    for step in range(100_000):
        series.add(step, float(step))
    assert MAX_POINTS / 2 <= len(series.points) <= MAX_POINTS
    steps = [step for step, _ in series.points]
    assert steps[0] == 0
    assert len({b - a for a, b in pairwise(steps)}) == 1
    assert steps[-1] > 99_000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"kind": "train", "st',
        b"\0\0\0",
        b'{"kind": "eval", "step": 1, "metrics": {"AP": null}}',
        b'{"kind": "eval", "step": 1, "metrics": [1]}',
        training(1, loss="low", groups=[1, 2], lr=None, time="now", grad_norm=float("nan")),
        training(1, groups={"a": "x", "b": float("inf")}),
    ],
)
def test_other_text_and_values_are_skipped(text: bytes):
    history = History()
    history.add(text)
    assert history.number("lr") is None
    assert history.evaluation is None
    assert list(history.groups()) == []
    assert set(history.series) <= {"loss"}


def test_the_number_of_series_is_bounded():
    history = History()
    history.add(training(1, groups={f"group {number}": 1.0 for number in range(1000)}))
    assert len(history.series) == MAX_SERIES
    assert len(list(history.groups())) == MAX_SERIES
