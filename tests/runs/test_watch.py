from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.config.schema import Settings
from codetr_cli.runs import watch
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runs.process_record import PROCESS_NAME, ProcessRecord
from codetr_cli.runs.watch import RunWatcher
from tests.conftest import REPOSITORY
from tests.runs.saved_runs import HOLDER


class Clocks:
    """Clocks of the machine that watches."""

    def __init__(self) -> None:
        self.now, self.passed = 1_000_000.0, 50.0

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.passed += seconds


@pytest.fixture
def folder(tmp_path: Path, tiny_settings: Settings) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.open(tiny_settings, RunInputs(train_annotations="train.json"))
    return folder


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def watcher(folder: RunFolder, clocks: Clocks) -> RunWatcher:
    return RunWatcher(folder.path, clock=lambda: clocks.now, monotonic=lambda: clocks.passed)


@pytest.fixture
def holder(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of the run."""
    command = [sys.executable, "-c", HOLDER, str(folder.path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def train_line(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": 0, "loss": 3.0, "groups": {}, **values}


def record(folder: RunFolder, host: str, pid: int = 7) -> None:
    (folder.path / PROCESS_NAME).write_text(json.dumps(asdict(ProcessRecord(host=host, pid=pid, started=1.0))))


def test_what_comes_while_it_is_watched(folder: RunFolder, watcher: RunWatcher, clocks: Clocks):
    folder.event("new run")
    folder.log(train_line(1, time=clocks.now - 30, total_steps=40, eta_s=100.0))
    look = watcher.look()
    assert (look.lines, look.events) == ([], [])  # the status has them
    status = look.status
    assert (status.preset, status.epochs, status.step, status.total_steps) == ("tiny", 1, 1, 40)
    assert status.events[0].endswith("new run")
    assert status.age_s == pytest.approx(30)
    folder.log(train_line(2))
    folder.event("more\x1b[2J")
    clocks.wait(5)
    look = watcher.look()
    assert [line["step"] for line in look.lines] == [2]
    assert [text.partition("  ")[2] for text in look.events] == ["more\\x1b[2J"]
    assert look.status.age_s == 0
    clocks.wait(7)
    assert watcher.look().status.age_s == 7


def test_half_a_line_waits_for_the_rest(folder: RunFolder, watcher: RunWatcher):
    text = json.dumps(train_line(1))
    with folder.metrics_path.open("w") as file:
        file.write(text[:20])
        file.flush()
        assert watcher.look().status.step == 0
        file.write(text[20:] + "\n")
    assert [line["step"] for line in watcher.look().lines] == [1]


def test_a_run_that_goes_back_is_shown_as_it_is_then(folder: RunFolder, watcher: RunWatcher):
    for step in range(1, 7):
        folder.log(train_line(step))
    assert watcher.look().status.step == 6
    folder.rewind(2)
    look = watcher.look()
    assert look.lines == []  # they are not new
    assert look.status.step == 2
    assert [step for step, _ in look.status.history.series["loss"].points] == [1, 2]


def test_a_process_that_holds_the_lock_runs(folder: RunFolder, watcher: RunWatcher, holder: subprocess.Popen[str]):
    record(folder, socket.gethostname(), holder.pid)
    status = watcher.look().status
    assert (status.state, status.is_seen) == ("starting", True)
    folder.log(train_line(1))
    assert watcher.look().status.state == "running"
    holder.kill()
    holder.wait()
    status = watcher.look().status
    assert (status.state, status.is_seen) == ("interrupted", True)


def test_a_lock_of_another_machine_that_was_seen_is_trusted(
    folder: RunFolder, watcher: RunWatcher, holder: subprocess.Popen[str]
):
    record(folder, "node7")
    folder.log(train_line(1))
    assert watcher.look().status.is_seen
    holder.kill()
    holder.wait()
    status = watcher.look().status
    assert (status.state, status.is_seen) == ("interrupted", True)


def test_without_a_record_the_lock_decides(folder: RunFolder, watcher: RunWatcher):
    folder.log(train_line(1))
    assert watcher.look().status.state == "interrupted"


def test_a_copy_of_a_run_on_another_machine(folder: RunFolder, watcher: RunWatcher, clocks: Clocks):
    """Its lock is free here, and its process is not seen: what is written last decides."""
    record(folder, "node7")
    folder.log(train_line(1, time=clocks.now - 60))
    status = watcher.look().status
    assert (status.state, status.is_seen) == ("running", False)
    clocks.wait(watch.FRESH_S)
    status = watcher.look().status
    assert (status.state, status.age_s) == ("silent", watch.FRESH_S + 60)


def test_slow_lines_and_evaluations_are_waited_for(folder: RunFolder, watcher: RunWatcher, clocks: Clocks):
    record(folder, "node7")
    folder.log(train_line(1, time=clocks.now - 4000))
    folder.log(train_line(2, time=clocks.now - 2000))
    assert watcher.look().status.state == "running"
    clocks.wait(8001)
    assert watcher.look().status.state == "silent"
    folder.log({"kind": "eval", "step": 2, "epoch": 0, "metrics": {"AP": 0.1}, "seconds": 9000.0})
    watcher.look()
    clocks.wait(17_000)
    assert watcher.look().status.state == "running"


def test_a_copy_on_the_same_machine(folder: RunFolder, watcher: RunWatcher, holder: subprocess.Popen[str]):
    record(folder, socket.gethostname(), holder.pid)
    folder.log(train_line(1, time=999_990.0))
    copy = folder.path.with_name("copy")
    shutil.copytree(folder.path, copy)
    status = RunWatcher(copy, clock=lambda: 1_000_000.0).look().status
    assert (status.state, status.is_seen) == ("running", False)


def test_a_clock_that_is_ahead(folder: RunFolder, watcher: RunWatcher, clocks: Clocks):
    record(folder, "node7")
    folder.log(train_line(1, time=clocks.now + 3600))
    assert watcher.look().status.age_s == 0
    clocks.wait(20)
    assert watcher.look().status.age_s == 20


def test_a_line_without_a_time_is_as_old_as_the_file(folder: RunFolder, watcher: RunWatcher, clocks: Clocks):
    folder.log(train_line(1))
    os.utime(folder.metrics_path, (clocks.now - 90,) * 2)
    assert watcher.look().status.age_s == pytest.approx(90)


@pytest.mark.parametrize(("kind", "state"), [("end", "finished"), ("diverged", "diverged")])
def test_the_end(folder: RunFolder, watcher: RunWatcher, kind: str, state: str):
    record(folder, "node7")
    folder.log(train_line(1))
    folder.log({"kind": kind, "step": 1, "epoch": 1})
    status = watcher.look().status
    assert status.state == state
    assert status.is_over
    assert status.seconds_left is None


def test_time_left_passes_between_lines(folder: RunFolder, watcher: RunWatcher, clocks: Clocks):
    record(folder, "node7")
    folder.log(train_line(1, time=clocks.now, eta_s=100.0))
    assert watcher.look().status.seconds_left == 100
    clocks.wait(30)
    assert watcher.look().status.seconds_left == 70


def test_files_and_folders_that_vanish(folder: RunFolder, watcher: RunWatcher):
    folder.log(train_line(3))
    assert watcher.look().status.step == 3
    folder.metrics_path.unlink()
    status = watcher.look().status
    assert (status.step, status.problem) == (3, "")  # it may be being replaced
    aside = folder.path.with_name("aside")
    folder.path.rename(aside)
    status = watcher.look().status
    assert status.state == "gone"
    assert str(folder.path) in status.problem
    aside.rename(folder.path)
    folder.log(train_line(4))
    status = watcher.look().status
    assert status.state != "gone"
    assert status.step == 4


def test_damaged_files_are_named(folder: RunFolder, watcher: RunWatcher):
    folder.settings_path.write_text("name = [")
    status = watcher.look().status
    assert status.preset is None
    assert "settings.toml cannot be read" in status.problem
    os.mkfifo(folder.metrics_path)
    assert "metrics.jsonl cannot be read: it is a named pipe" in watcher.look().status.problem


def test_nothing_is_read_where_nothing_has_changed(
    folder: RunFolder, watcher: RunWatcher, monkeypatch: pytest.MonkeyPatch
):
    record(folder, "node7")
    folder.log(train_line(1))
    watcher.look()
    reads: list[Path] = []
    for module in ("tail", "listing", "process_record"):
        name = "open_file" if module == "tail" else "read_bytes"
        original: Callable[..., Any] = getattr(__import__(f"codetr_cli.runs.{module}", fromlist=[name]), name)
        monkeypatch.setattr(
            f"codetr_cli.runs.{module}.{name}",
            lambda path, *rest, original=original: reads.append(Path(path)) or original(path, *rest),
        )
    watcher.look()
    assert {path.name for path in reads} <= {"metrics.jsonl", "events.log"}  # opened to see their sizes
    started = time.monotonic()
    for _ in range(50):
        watcher.look()
    assert time.monotonic() - started < 2


def test_of_very_many_lines_some_are_parsed(folder: RunFolder, watcher: RunWatcher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch, "MOST_PARSED", 100)
    lines = [train_line(step, time=float(step)) for step in range(1, 2001)]
    lines.insert(500, {"kind": "eval", "step": 500, "epoch": 0, "metrics": {"AP": 0.25}})
    folder.metrics_path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    history = watcher.look().status.history
    steps = [step for step, _ in history.series["loss"].points]
    assert 90 <= len(steps) <= 110
    assert (steps[0], steps[-2:]) == (1, [1999, 2000])
    assert history.line_seconds == 1
    assert history.best is not None
