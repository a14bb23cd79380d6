"""The judgement alone, and threads on a dict instead of processes on a store."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from codetr_cli.config.schema import Settings
from codetr_cli.distributed.watchdog import SLOW_FACTOR, Pulse, Sign, Watchdog, find_frozen
from codetr_cli.runs.folder import RunFolder
from codetr_cli.training import liveness

TIMEOUT_S = 60.0
WELL = Sign(number=9, doing="backward", slow=False, progress=(41, 1, 2), idle_s=0.0, host="node1")


def judge(*signs: Sign, silent_s: tuple[float, ...] = (), world_size: int | None = None) -> str | None:
    silent = dict(enumerate(silent_s or (0.0,) * len(signs)))
    return find_frozen(dict(enumerate(signs)), silent, TIMEOUT_S, world_size or len(signs))


def test_all_is_well_while_the_one_that_is_waited_for_works():
    assert judge(WELL, WELL) is None
    busy = replace(WELL, doing="evaluation", progress=(41, 3, 7), idle_s=1.0)
    waiting = replace(WELL, doing="scoring", slow=True, progress=(41, 4, 0), idle_s=50 * TIMEOUT_S)
    assert judge(waiting, busy) is None


def test_a_process_without_signs_is_named_with_what_it_did():
    text = judge(replace(WELL, idle_s=59.0), replace(WELL, doing="data", host="node2"), silent_s=(0.0, 61.0))
    assert text is not None
    assert text.startswith("training process 1 on node2 stopped answering: nothing new for 61 seconds")
    assert "last seen waiting for data of step 41" in text
    assert "train.timeout_minutes" in text


def test_of_processes_that_stand_still_the_last_one_is_named():
    stuck = replace(WELL, doing="data", progress=(41, 1, 0), idle_s=70.0, where="images.py:33 read, loader.py:80 next")
    text = judge(replace(WELL, idle_s=70.0), stuck, replace(WELL, idle_s=70.0))
    assert text is not None
    assert text.startswith("training process 1 on node1 stopped answering: nothing new for 70 seconds")
    assert "(images.py:33 read, loader.py:80 next)" in text


def test_all_are_named_when_all_stand_at_the_same_place():
    text = judge(replace(WELL, idle_s=70.0), replace(WELL, idle_s=71.0))
    assert text is not None
    assert text.startswith("all 2 training processes stopped answering")


def test_what_may_be_slow_is_given_more_time():
    slow = replace(WELL, doing="checkpoint", slow=True, idle_s=TIMEOUT_S * SLOW_FACTOR - 1)
    assert judge(slow, slow) is None
    assert judge(*[replace(slow, idle_s=TIMEOUT_S * SLOW_FACTOR)] * 2) is not None


def test_who_sees_one_process_only_judges_its_silence_only():
    assert judge(replace(WELL, idle_s=1000.0), world_size=4) is None
    assert judge(WELL, silent_s=(61.0,), world_size=4) is not None


def test_a_pulse_counts_within_a_step_and_its_stages():
    pulse = Pulse()
    assert pulse.is_slow
    for doing, step, count in (("data", 7, 0), ("forward", None, 1), ("backward", None, 2), ("checkpoint", None, 0)):
        pulse(doing, step)
        assert (pulse.step, pulse.count) == (7, count)
    assert pulse.is_slow  # the first step, and a checkpoint
    pulse("data", 8)
    assert (pulse.step, pulse.count, pulse.beats) == (8, 0, 5)
    assert not pulse.is_slow


class Board(dict[str, bytes]):
    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]


@pytest.mark.parametrize("stuck", [0, 2])
def test_a_thread_that_stands_still_is_found_and_one_that_works_is_not(stuck: int):
    board, alarms, end = Board(), [], threading.Event()
    together = threading.Barrier(3)

    def process(rank: int) -> None:
        pulse = Pulse()
        dog = Watchdog(
            board=board,
            pulse=pulse,
            rank=rank,
            world_size=3,
            timeout_s=0.5,
            alarm=lambda text: (alarms.append(text), end.set()),
            meet=together.wait,
        )
        with dog:
            for step in range(10_000):
                pulse("data", step)
                if step == 20 and rank == stuck:
                    stand_still()
                pulse("forward")
                if end.wait(0.01):
                    return

    def stand_still() -> None:
        end.wait(20)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(3)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 15
    assert len(alarms) == 1
    assert alarms[0].startswith(f"training process {stuck} on ")
    assert "waiting for data of step 20" in alarms[0]
    assert "stand_still" in alarms[0]


def test_a_store_that_is_gone_ends_the_watch_without_an_alarm():
    class Gone(Board):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            raise RuntimeError("connection reset")

    alarms: list[str] = []
    dog = Watchdog(
        board=Gone(), pulse=Pulse(), rank=0, world_size=2, timeout_s=0.1, alarm=alarms.append, meet=lambda: None
    )
    with dog:
        deadline = time.monotonic() + 10
        while "watchdog" in [thread.name for thread in threading.enumerate()]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert alarms == []


def test_an_alarm_needs_no_disk(tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """The process ends also when the run folder, for which it may be waiting, takes no line."""
    ended: list[str] = []
    monkeypatch.setattr(liveness, "end_process", lambda error, tell: ended.append(str(error)))
    watch = liveness.watchdog(Board(), Pulse(), tiny_settings, RunFolder(tmp_path / "gone"), mock.Mock())
    watch.alarm("process 1 stopped answering")
    assert ended == ["process 1 stopped answering"]
