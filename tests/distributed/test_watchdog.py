"""The judgement alone, and threads on a dict instead of processes on a store."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from codetr_cli.distributed.watchdog import SLOW_FACTOR, Heartbeat, HeartbeatMessage, Watchdog, find_frozen
from tests.distributed.fake_store import KeyValueStore

TIMEOUT_S = 60.0
WELL = HeartbeatMessage(number=9, activity="backward", slow=False, progress=(41, 1, 2), idle_s=0.0, host="node1")


def judge(*signs: HeartbeatMessage, silent_s: tuple[float, ...] = (), world_size: int | None = None) -> str | None:
    silent = dict(enumerate(silent_s or (0.0,) * len(signs)))
    return find_frozen(dict(enumerate(signs)), silent, TIMEOUT_S, world_size or len(signs))


def test_all_is_well_while_the_one_that_is_waited_for_works():
    assert judge(WELL, WELL) is None
    busy = replace(WELL, activity="evaluation", progress=(41, 3, 7), idle_s=1.0)
    waiting = replace(WELL, activity="scoring", slow=True, progress=(41, 4, 0), idle_s=50 * TIMEOUT_S)
    assert judge(waiting, busy) is None


def test_a_process_without_signs_is_named_with_what_it_did():
    text = judge(replace(WELL, idle_s=59.0), replace(WELL, activity="data", host="node2"), silent_s=(0.0, 61.0))
    assert text is not None
    assert text.startswith("training process 1 on node2 stopped responding: no progress for 61 seconds")
    assert "last seen waiting for data of step 41" in text
    assert "train.timeout_minutes" in text


def test_of_processes_that_stand_still_the_last_one_is_named():
    stuck = replace(
        WELL, activity="data", progress=(41, 1, 0), idle_s=70.0, where="images.py:3 read, loader.py:80 next"
    )
    text = judge(replace(WELL, idle_s=70.0), stuck, replace(WELL, idle_s=70.0))
    assert text is not None
    assert text.startswith("training process 1 on node1 stopped responding: no progress for 70 seconds")
    assert "(images.py:3 read, loader.py:80 next)" in text


def test_all_are_named_when_all_stand_at_the_same_place():
    text = judge(replace(WELL, idle_s=70.0), replace(WELL, idle_s=71.0))
    assert text is not None
    assert text.startswith("all 2 training processes stopped responding")


def test_what_may_be_slow_is_given_more_time():
    slow = replace(WELL, activity="checkpoint", slow=True, idle_s=TIMEOUT_S * SLOW_FACTOR - 1)
    assert judge(slow, slow) is None
    assert judge(*[replace(slow, idle_s=TIMEOUT_S * SLOW_FACTOR)] * 2) is not None


def test_who_sees_one_process_only_judges_its_silence_only():
    assert judge(replace(WELL, idle_s=1000.0), world_size=4) is None
    assert judge(WELL, silent_s=(61.0,), world_size=4) is not None


def test_a_pulse_counts_within_a_step_and_its_stages():
    heartbeat = Heartbeat()
    assert heartbeat.is_slow
    for doing, step, count in (("data", 7, 0), ("forward", None, 1), ("backward", None, 2), ("checkpoint", None, 0)):
        heartbeat(doing, step)
        assert (heartbeat.step, heartbeat.count) == (7, count)
    assert heartbeat.is_slow  # the first step, and a checkpoint
    heartbeat("data", 8)
    assert (heartbeat.step, heartbeat.count, heartbeat.beats) == (8, 0, 5)
    assert not heartbeat.is_slow


@pytest.mark.parametrize("stuck", [0, 2])
def test_a_thread_that_stands_still_is_found_and_one_that_works_is_not(stuck: int):
    store, alarms, end = KeyValueStore(), [], threading.Event()
    together = threading.Barrier(3)

    def process(rank: int) -> None:
        heartbeat = Heartbeat()
        dog = Watchdog(
            store=store,
            heartbeat=heartbeat,
            rank=rank,
            world_size=3,
            timeout_s=0.5,
            alarm=lambda text: (alarms.append(text), end.set()),
            barrier=together.wait,
        )
        with dog:
            for step in range(10_000):
                heartbeat("data", step)
                if step == 20 and rank == stuck:
                    stand_still()
                heartbeat("forward")
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
    class Gone(KeyValueStore):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            raise RuntimeError("connection reset")

    alarms: list[str] = []
    dog = Watchdog(
        store=Gone(),
        heartbeat=Heartbeat(),
        rank=0,
        world_size=2,
        timeout_s=0.1,
        alarm=alarms.append,
        barrier=lambda: None,
    )
    with dog:
        deadline = time.monotonic() + 10
        while "watchdog" in [thread.name for thread in threading.enumerate()]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert alarms == []
