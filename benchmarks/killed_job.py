"""A training that is killed as planned and started again; used by kill_test.py. Linux only: processes are in /proc."""

from __future__ import annotations

import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.compare_runs import metric_lines

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 240.0  # for any event; a loaded machine is slow

Victim = Literal["job", "process", "loader"]
Moment = Literal["step", "writing", "evaluation", "start"]


@dataclass(frozen=True)
class PlannedKill:
    """Whom to kill and when.

    Attributes:
        victim: job: launcher and all; process: one that trains; loader: one that loads data.
        moment: step: any time during steps; writing: while the checkpoints' folder changes; evaluation: after the last
            step of an epoch; start: while processes start.
        step: that must have been logged before; ignored for a start.
        share: when in the moment, from 0 to 1.
        which: of several victims, from 0 to 1.
    """

    victim: Victim
    moment: Moment
    step: int
    share: float
    which: float


@dataclass(frozen=True)
class Kill:
    """The effect of a kill.

    Attributes:
        planned: victim and moment.
        logged: the newest step that was logged.
        complete: the newest step whose checkpoint was complete.
        loaded: step of the checkpoint that was loaded after it, 0 for none; None where no process had to load one.
        left: incomplete files in the checkpoints' folder.
        seconds: from the start of the processes to the kill.
    """

    planned: PlannedKill
    logged: int
    complete: int
    loaded: int | None
    left: str
    seconds: float


class BrokenRunError(Exception):
    """The training did not survive a kill."""


class Process(Protocol):
    """What is used of a `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """Its exit code, if known."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def wait(self) -> int:
        """Waits for its end."""


def start_python(words: list[str], output: Path) -> Process:
    """Starts a new interpreter whose streams are appended to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with output.open("ab") as file:
        return subprocess.Popen([sys.executable, *words], env=environment, stdout=file, stderr=file)


class KilledJob:
    """A training that is started again with the same command after each kill.

    Args:
        work: folder of the data set and the settings.
        name: of the run folder.
        steps: of the training.
        start: starts Python with the given words; its streams are appended to the file.
    """

    def __init__(
        self, work: Path, name: str, steps: int, start: Callable[[list[str], Path], Process] = start_python
    ) -> None:
        self.run = work / name
        self.output = work / f"{name}.txt"
        self.output.write_bytes(b"")
        self._start = start
        self.command = ["-m", "codetr_cli", "train", "--preset", str(work / "tiny.toml"),
                        "--data", str(work / "data"), "--run", str(self.run), "--device", "cpu", "--procs", "2",
                        "--max-restarts", "1000", "--set", f"train.max_steps={steps}"]  # fmt: skip
        self.process: Process | None = None
        self.since = 0.0
        self.starts = 0  # that had reached the training before the last kill
        self.start_seconds = [6.0]
        self.continued = False  # after the last kill, without a restart

    def start(self) -> None:
        """Runs the command."""
        self.process = self._start(self.command, self.output)
        self.since = time.monotonic()

    def wait_until_done(self) -> None:
        """Waits until the training is done."""
        if self.process is None:
            self.start()
        process = self._living(None)
        self._wait(lambda: process.poll() is not None, None)
        if process.returncode != 0:
            raise self._broken(f"it ended with exit code {process.returncode}")

    def kill(self, planned: PlannedKill) -> Kill:
        """Waits for the moment, kills the victim, and checks what remains."""
        if self.process is None:
            self.start()
        self._wait_for_moment(planned)
        victims = self._victims(planned)
        processes = self._training_processes()
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        seconds = time.monotonic() - self.since
        dead = self._wait_until_dead(planned, victims, processes)
        logged, complete = newest_step(self.run), newest_complete(self.run)
        left = incomplete_files(self.run / "checkpoints")
        loaded = self._load_copy(planned) if dead else None
        if loaded is not None and loaded < complete:
            raise self._broken(
                f"{planned}: step {loaded} was loaded, but the checkpoint of step {complete} was complete"
            )
        self.continued = not dead
        self.starts = len(resumed_steps(self.run)) - self.continued
        if planned.victim == "job":
            self.process = None
        self.since = time.monotonic()
        return Kill(planned, logged, complete, loaded, left, seconds)

    def kill_all(self) -> None:
        """Kills all processes that still run."""
        if self.process is not None and self.process.poll() is None:
            for pid in (self.process.pid, *descendants(self.process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def _wait_for_moment(self, planned: PlannedKill) -> None:
        if planned.moment == "start":
            if planned.victim != "job":
                self._wait(lambda: len(self._training_processes()) == 2, planned)
            time.sleep(planned.share * statistics.median(self.start_seconds))
            self._living(planned)
            return
        self._wait(lambda: len(resumed_steps(self.run)) > self.starts, planned)
        first = resumed_steps(self.run)[-1] + 1
        self._wait(lambda: newest_step(self.run) >= first, planned)
        if not self.continued:
            self.start_seconds.append(time.monotonic() - self.since)
        self._wait(lambda: newest_step(self.run) >= planned.step, planned)
        if planned.moment == "writing":
            self._wait(lambda: incomplete_files(self.run / "checkpoints") != NO_FILES, planned, pause=0.0)
            time.sleep(0.03 * planned.share**2)
        else:
            time.sleep(0.3 * planned.share)

    def _victims(self, planned: PlannedKill) -> list[int]:
        process = self._living(planned)
        if planned.victim == "job":
            return [process.pid, *descendants(process.pid)]
        training = self._training_processes()
        pids = training if planned.victim == "process" else [pid for parent in training for pid in descendants(parent)]
        if not pids:
            raise self._broken(f"{planned}: there is no such process")
        return [pids[int(planned.which * len(pids))]]

    def _wait_until_dead(self, planned: PlannedKill, victims: list[int], processes: list[int]) -> bool:
        """Whether all training processes are dead, so that none writes; False where they continued by themselves."""
        if planned.victim == "job":
            assert self.process is not None
            self.process.wait()
            self._wait(lambda: not any(map(is_alive, victims)), None)
            return True
        enough = newest_step(self.run) + 4
        self._wait(lambda: not any(map(is_alive, processes)) or newest_step(self.run) >= enough, planned, pause=0.005)
        return not any(map(is_alive, processes))

    def _training_processes(self) -> list[int]:
        process = self._living(None)
        return [pid for pid in children(process.pid) if b"resource_tracker" not in _read(f"/proc/{pid}/cmdline")]

    def _load_copy(self, planned: PlannedKill) -> int:
        """The step that a restart continues from; a copy is loaded, so that the run folder stays unchanged."""
        from codetr_cli.errors import CodetrError
        from codetr_cli.runs.folder import RunFolder

        copy = self.run.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        if not (self.run / "checkpoints").is_dir():
            return 0
        shutil.copytree(self.run, copy)
        folder = RunFolder(copy)
        try:
            folder.recover()
            saved = folder.load()
        except CodetrError as error:
            raise self._broken(f"{planned}: {error}") from error
        if "cannot be used" in _read(copy / "events.log").decode():
            raise self._broken(f"{planned}: a checkpoint is damaged")
        return int(saved.state["step"]) if saved else 0

    def _living(self, planned: PlannedKill | None) -> Process:
        assert self.process is not None
        if planned is not None and self.process.poll() is not None:
            raise self._broken(f"{planned}: it ended before, with exit code {self.process.returncode}")
        return self.process

    def _wait(self, condition: Callable[[], bool], planned: PlannedKill | None, pause: float = 0.002) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            self._living(planned)
            if time.monotonic() > deadline:
                raise self._broken(f"{planned or 'the end'}: no progress for {TIMEOUT_S:.0f} seconds")
            time.sleep(pause)

    def _broken(self, text: str) -> BrokenRunError:
        output = self.output.read_text(encoding="utf-8", errors="replace")
        return BrokenRunError(f"{text}. Its last output: {output[-2000:]}")


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        fields = _read(path / "stat").rpartition(b")")[2].split()
        if fields and int(fields[1]) == pid:
            found.append(int(path.name))
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """Process ids of its children, their children, and so on."""
    own = children(pid)
    return own + [below for child in own for below in descendants(child)]


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return bool(fields) and fields[0] not in (b"Z", b"X")


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


NO_FILES = "no incomplete files"


def newest_step(run: Path) -> int:
    """The last step that was logged."""
    return max((line["step"] for line in metric_lines(run)), default=0)


def newest_complete(run: Path) -> int:
    """The newest step whose checkpoint was logged as complete."""
    steps = re.findall(rb"checkpoint of step (\d+): [\d.]+ s copied", _read(run / "events.log"))
    return max(map(int, steps), default=0)


def resumed_steps(run: Path) -> list[int]:
    """The step that each start continued from."""
    return [int(step) for step in re.findall(rb"training from step (\d+) to .*\n", _read(run / "events.log"))]


def incomplete_files(checkpoints: Path) -> str:
    """What remains in the checkpoints' folder of a save that was interrupted."""
    names = {path.name for path in checkpoints.glob("*")} if checkpoints.is_dir() else set()
    hidden = sorted(name for name in names if name.startswith("."))
    if not hidden:
        return NO_FILES
    if "last" not in names and len(names) > 1:
        return f"during an exchange: {', '.join(hidden)} and no last"
    return f"while writing or deleting: {', '.join(hidden)}"
