"""Processes of a server that die, or cannot start. They are forked here, which takes milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from codetr_cli.errors import CheckpointError, ResourceError, StoppedError
from codetr_cli.serving import supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes share a port on Linux")


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which it sets otherwise


def _serve(folder: Path) -> None:
    """Notes its start, and serves until SIGTERM; the first process 1 dies instead, and so does any 2."""

    def stop(number: int, frame: object) -> None:
        raise StoppedError("stopped", number)

    signal.signal(signal.SIGTERM, stop)
    rank = os.environ["RANK"]
    if supervisor.report_ready():
        (folder / f"first-{rank}").touch()
    starts = len(list(folder.glob(f"{rank}-*")))
    (folder / f"{rank}-{os.getpid()}").touch()
    if rank == "2" or (rank == "1" and not starts):
        os._exit(9)
    time.sleep(30)


def _refuse(folder: Path) -> None:
    if os.environ["RANK"] == "1":
        raise CheckpointError("no such file")
    _serve(folder)


def _when(condition: Callable[[], bool], then: Callable[[], object]) -> threading.Thread:
    def watch() -> None:
        end = time.monotonic() + 20
        while not condition() and time.monotonic() < end:
            time.sleep(0.005)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_only_the_process_that_died_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    watcher = _when(
        lambda: len(list(tmp_path.glob("1-*"))) == 2 and any(tmp_path.glob("0-*")),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(StoppedError, match="stopped by SIGTERM: 2 processes have ended") as caught:
        supervisor.supervise(_serve, (tmp_path,), 2)
    watcher.join()
    assert caught.value.exit_code == 143
    assert len(list(tmp_path.glob("0-*"))) == 1
    assert len(list(tmp_path.glob("1-*"))) == 2
    assert "server process 1 ended with exit code 9" in caplog.text
    assert "the others go on (1 of at most 10 restarts in 10 minutes)" in caplog.text
    assert "continues" not in caplog.text
    assert len(list(tmp_path.glob("first-*"))) == 1  # of all that were ready
    assert "RANK" not in os.environ


def test_an_error_of_the_user_ends_all(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        supervisor.supervise(_refuse, (tmp_path,), 2)


def test_a_process_that_dies_again_and_again_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "SERVING", replace(supervisor.SERVING, max_restarts=2))
    with pytest.raises(ResourceError, match="server process 2 ended with exit code 9"):
        supervisor.supervise(_serve, (tmp_path,), 3)
    assert 1 <= len(list(tmp_path.glob("2-*"))) <= 3


def _crash(folder: Path) -> None:
    if os.environ["RANK"] == "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    (folder / f"{os.environ['RANK']}-{os.getpid()}").touch()
    while not any(folder.glob("0-*")) or os.environ["RANK"] == "0":
        time.sleep(0.005)
    raise KeyError("weights")


def test_a_death_before_any_was_ready_ends_all_at_once(tmp_path: Path):
    """A model that cannot be loaded is not loaded eleven times."""
    with pytest.raises(RuntimeError, match="server process 1 failed with KeyError: 'weights'"):
        supervisor.supervise(_crash, (tmp_path,), 2)
    assert len(list(tmp_path.glob("1-*"))) == 1


def test_processes_end_with_a_supervisor_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: object, rank: int, process: object) -> None:
        while len(list(tmp_path.glob("[012]-*"))) < 3:
            time.sleep(0.005)
        raise OSError("no memory for another process")

    monkeypatch.setattr(supervisor._Supervisor, "_end", fail)
    with pytest.raises(OSError, match="no memory"):
        supervisor.supervise(_serve, (tmp_path,), 3)
    for process in multiprocessing.active_children():
        process.join(10)
        assert process.exitcode is not None


def test_without_a_supervisor_the_process_is_the_first():
    assert supervisor.report_ready()
