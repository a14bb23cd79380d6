"""Ids stay with objects whose paths are known."""

from __future__ import annotations

import sys
from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest

from codetr_cli.errors import ResourceError
from codetr_cli.prediction.video import tracking

pytest.importorskip("edgefirst.tracker", reason="the extra [track] is not installed")

RATE = 25
PATHS = {
    # name: category, position at frame t, size: cars that pass each other, a van above them, people across
    "right": (1, lambda t: (10 + 4 * t, 100), (44, 30)),
    "left": (1, lambda t: (410 - 4 * t, 108), (44, 30)),
    "down": (2, lambda t: (200, 3 * t), (20, 48)),
    "up": (2, lambda t: (214, 300 - 3 * t), (20, 48)),
    "still": (1, lambda t: (205, 170), (44, 30)),
    "over the still one": (3, lambda t: (205 + t // 10, 172), (44, 30)),
}
FRAMES = 100


def scene(t: int, hidden: set[str] = frozenset()) -> tuple[list[str], list[dict[str, Any]]]:
    """Names and detections of a frame; their order changes."""
    names = [name for name in PATHS if name not in hidden]
    names = names[t % len(names) :] + names[: t % len(names)]
    found = []
    for name in names:
        category, path, (width, height) = PATHS[name]
        x, y = path(t)
        found.append({"bbox": [x, y, width, height], "score": 0.8 - 0.02 * (t % 5), "category_id": category})
    return names, found


def ids_of(hidden=lambda t: set(), tracker: tracking.Tracker | None = None) -> dict[str, list[int | None]]:
    tracker = tracker or tracking.Tracker(Fraction(1, RATE))
    ids = defaultdict(list)
    for t in range(FRAMES):
        names, detections = scene(t, hidden(t))
        for name, number in zip(names, tracker.update(detections, Fraction(t, RATE)), strict=True):
            ids[name].append(number)
    return dict(ids)


def test_ids_stay_with_objects_that_cross():
    ids = ids_of()
    assert {name: len(set(numbers)) for name, numbers in ids.items()} == dict.fromkeys(PATHS, 1)
    assert sorted(numbers[0] for numbers in ids.values()) == [1, 2, 3, 4, 5, 6]
    assert ids == ids_of()


def test_an_object_that_is_hidden_for_less_than_a_second_keeps_its_id():
    ids = ids_of(lambda t: {"down"} if 60 <= t < 78 else set())
    assert {name: len(set(numbers)) for name, numbers in ids.items()} == dict.fromkeys(PATHS, 1)


def test_an_object_that_was_gone_for_long_gets_another_id():
    ids = ids_of(lambda t: {"still"} if 20 <= t < 70 else set())
    assert len(set(ids["still"])) == 2


def test_weak_detections_continue_tracks_and_start_none():
    tracker = tracking.Tracker(Fraction(1, RATE))
    strong = {"bbox": [0, 0, 40, 40], "score": 0.9, "category_id": 1}
    weak = {**strong, "score": 0.35}
    other = {**weak, "bbox": [200, 200, 40, 40]}
    assert tracker.update([strong, other], Fraction(0)) == [1, None]
    assert tracker.update([weak, other], Fraction(1, RATE)) == [1, None]
    assert tracker.update([], Fraction(2, RATE)) == []
    assert tracker.count == 1


def test_negative_times_and_slow_videos():
    tracker = tracking.Tracker(Fraction(10))
    still = {"bbox": [0, 0, 40, 40], "score": 0.9, "category_id": 1}
    assert [tracker.update([still], Fraction(-100 + 10 * t))[0] for t in range(5)] == [1] * 5


def test_ids_of_ended_tracks_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    tracker = tracking.Tracker(Fraction(1, RATE))
    for t in range(60):
        crowd = [{"bbox": [100 * x, 500 * t, 50, 50], "score": 0.9, "category_id": 1} for x in range(200)]
        tracker.update(crowd, Fraction(t))
    assert tracker.count == 12_000
    assert len(tracker._ids) < 11_000


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "edgefirst.tracker", None)
    with pytest.raises(ResourceError, match=r'pip install "codetr-cli\[track\]"'):
        tracking.import_tracker()
