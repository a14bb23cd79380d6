from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from codetr_cli.runtime import signals
from codetr_cli.runtime.signals import StopRequest
from tests.conftest import REPOSITORY


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_is_a_wish(number: int):
    calls: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with StopRequest(calls.append, lambda: calls.append(-1)) as stop:
        assert stop.number is None
        os.kill(os.getpid(), number)
        wait_for(lambda: stop.number == number)
        os.kill(os.getpid(), number)  # a launcher repeats it at once: still the same wish
        time.sleep(0.05)
        assert calls == [number]
    assert {n: signal.getsignal(n) for n in before} == before
    assert "stop-request" not in [thread.name for thread in threading.enumerate()]


def test_a_second_signal_ends_the_process_even_in_a_long_computation():
    script = """
import ctypes, signal, sys
from codetr_cli.runtime import signals
signals.SAME_REQUEST_SECONDS = 0.3
say = lambda text: (sys.stdout.write(text + "\\n"), sys.stdout.flush())
with signals.StopRequest(lambda number: say(f"first {number}"), lambda: say("second")):
    say("ready")
    for _ in range(100):
        ctypes.CDLL(None).usleep(900_000)  # Python's own handlers do not run in there
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "first 15\n"
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "second\n"
    assert process.returncode == 143


def test_what_a_cluster_sends_after_its_warning_is_the_same_wish(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0.05)
    calls: list[int] = []
    with StopRequest(calls.append, lambda: calls.append(-1)) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda: stop.number == signal.SIGUSR1)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: stop.number == signal.SIGTERM)
        assert calls == [signal.SIGUSR1]


def test_outside_the_main_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def run() -> None:
        with StopRequest(lambda number: None, lambda: None) as stop:
            seen.append(stop.number)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None]
    assert signal.getsignal(signal.SIGINT) is before
