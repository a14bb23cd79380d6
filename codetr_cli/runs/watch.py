"""A run seen from outside: everything from the files in its folder, which may be on another machine or a copy.

A watcher reads what is new since it looked last. Files that are not there, not complete or damaged make it show less,
and never fail.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from codetr_cli.escaping import visible
from codetr_cli.locks import is_locked
from codetr_cli.runs.history import History
from codetr_cli.runs.listing import FRESH_S, read_limits, shortened
from codetr_cli.runs.metrics_log import Line, has_numbers
from codetr_cli.runs.plot_files import PlotFiles, plot_files
from codetr_cli.runs.process_record import PROCESS_NAME, ProcessRecord, read_process
from codetr_cli.runs.tail import FileTail, NewLines

Read = TypeVar("Read")
WatchedState = Literal["starting", "running", "silent", "interrupted", "finished", "diverged", "gone"]

EVENTS_BYTES = 1 << 18
"""Of events.log, read at the first look."""
MOST_PARSED = 1000
"""Lines of training that are parsed at one look, about."""
TRAINING_START = b'{"kind": "train"'
MAX_EVENTS = 50
MAX_EVENT = 400
LATE_LINES = 5.0
"""A run that has written nothing for so many times the usual pause between two lines is silent."""
CLOCKS_DIFFER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What is known of a run at one moment.

    Attributes:
        run: its folder.
        preset: that it trains; None when its settings cannot be read.
        epochs: of the whole run; None where steps are counted, or not known.
        max_steps: of the whole run; None where epochs are counted, or not known.
        state: starting: no line yet. running: its process holds the lock of the folder, or, where that cannot be seen
            from here, it has written lately. silent: it cannot be seen from here, and has not written for long.
            interrupted: its process is gone. gone: the folder is not there, or cannot be read.
        history: of its lines.
        process: that trains, or trained last; None: not recorded.
        is_seen: whether the state of the process is known, not inferred from the files.
        age_s: seconds since the newest line; None without one.
        events: newest lines of events.log, escaped.
        plots: its pictures.
        problem: what cannot be read, a clause; empty when nothing is wrong.
    """

    run: Path
    preset: str | None = None
    epochs: int | None = None
    max_steps: int | None = None
    state: WatchedState = "starting"
    history: History = field(default_factory=History)
    process: ProcessRecord | None = None
    is_seen: bool = False
    age_s: float | None = None
    events: list[str] = field(default_factory=list)
    plots: PlotFiles = field(default_factory=PlotFiles)
    problem: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the training has ended by itself."""
        return self.state in ("finished", "diverged")

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as they are logged."""
        newest = self.history.newest
        return 0 if newest is None else newest["step"]

    @property
    def total_steps(self) -> int | None:
        """Of the whole run; None: not known."""
        logged = self.history.number("total_steps")
        return int(logged) if logged else self.max_steps

    @property
    def epochs_done(self) -> int:
        """Completed epochs."""
        newest = self.history.newest
        return int(newest["epoch"]) if newest is not None and has_numbers(newest, "epoch") else 0

    @property
    def seconds_left(self) -> float | None:
        """To the end of the run, if it is running; without evaluations that are due."""
        eta_s = self.history.number("eta_s")
        if self.state not in ("running", "silent") or eta_s is None:
            return None
        return max(0.0, eta_s - (self.age_s or 0.0))


@dataclass(frozen=True)
class Look:
    """What a watcher sees at one look: the status, and the lines and events that are new since the last one."""

    status: RunStatus
    lines: list[Line]
    events: list[str]


class RunWatcher:
    """Looks at a run folder from time to time.

    Args:
        run: the folder.
        clock: seconds since 1970.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self,
        run: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run, self._clock, self._monotonic = run, clock, monotonic
        self._metrics = FileTail(run / "metrics.jsonl")
        self._log = FileTail(run / "events.log", EVENTS_BYTES)
        self._history = History()
        self._events: deque[str] = deque(maxlen=MAX_EVENTS)
        self._arrived: float | None = None  # when the newest line was seen to come, by the clock that is never set
        self._has_looked = False
        self._was_locked = False  # then a lock of a process elsewhere is seen from here
        self._problem = ""
        self._settings = _Kept(run / "settings.toml", read_limits)
        self._process = _Kept(run / PROCESS_NAME, lambda path: read_process(path.parent))

    def look(self) -> Look:
        """Reads what is new. The first look gives no new lines and events, only the status."""
        self._problem = ""
        lines, events = self._new_lines(), self._new_events()
        status = self._status()
        is_first, self._has_looked = not self._has_looked, True
        return Look(status, [] if is_first else lines, [] if is_first else events)

    def _new_lines(self) -> list[Line]:
        new = self._read(self._metrics)
        if new.is_restart:
            self._history = History()
        self._history.is_cut = self._history.is_cut or new.is_cut
        lines = [line for text in _thinned(new.lines) if (line := self._history.add(text)) is not None]
        if lines and self._has_looked:
            self._arrived = self._monotonic()
        return [] if new.is_restart else lines

    def _new_events(self) -> list[str]:
        new = self._read(self._log)
        events = [visible(text.decode("utf-8", "replace"))[:MAX_EVENT] for text in new.lines if text.strip()]
        if new.is_restart:
            self._events.clear()
        self._events.extend(events)
        return [] if new.is_restart else events

    def _read(self, tail: FileTail) -> NewLines:
        try:
            return tail.read()
        except FileNotFoundError:
            return NewLines()  # not written yet, or being replaced
        except OSError as error:
            self._problem = self._problem or f"its {tail.path.name} cannot be read: {error.strerror}"
            return NewLines()

    def _status(self) -> RunStatus:
        preset, epochs, max_steps = self._settings.value() or (None, None, None)
        self._problem = self._problem or self._settings.problem
        process, age_s = self._process.value(), self._age_s()
        state, is_seen = self._state(process, age_s)
        if state == "gone":
            self._problem = f"{self.run} is not there, or cannot be read"
        return RunStatus(
            run=self.run,
            preset=preset,
            epochs=None if max_steps else epochs,
            max_steps=max_steps,
            state=state,
            history=self._history,
            process=process,
            is_seen=is_seen,
            age_s=age_s,
            events=list(self._events),
            plots=plot_files(self.run),
            problem=self._problem,
        )

    def _age_s(self) -> float | None:
        """Seconds since the newest line: since it was seen to come, or by the clocks of both machines."""
        newest = self._history.newest
        if newest is None:
            return None
        if self._arrived is None:
            try:
                written = newest["time"] if has_numbers(newest, "time") else self._metrics.path.stat().st_mtime
            except OSError:
                return None
            age_s = self._clock() - written
            if age_s >= -CLOCKS_DIFFER_S:
                return max(0.0, float(age_s))
            self._arrived = self._monotonic()  # the clock of that machine is ahead
        return self._monotonic() - self._arrived

    def _state(self, process: ProcessRecord | None, age_s: float | None) -> tuple[WatchedState, bool]:
        """The state, and whether it is that of the process rather than inferred from the files."""
        if not self.run.is_dir():
            return "gone", False
        if self._history.end is not None:
            return ("finished" if self._history.end == "end" else "diverged"), True
        holds = self._is_held(process)
        if holds is None:
            is_fresh = age_s is None or age_s < self._late_s()
            return ("running" if is_fresh else "silent"), False
        if not holds:
            return "interrupted", True
        return ("starting" if self._history.newest is None else "running"), True

    def _is_held(self, process: ProcessRecord | None) -> bool | None:
        """Whether a process trains in the folder; None: that cannot be seen from here."""
        locked = is_locked(self.run / ".lock")
        self._was_locked = self._was_locked or bool(locked)
        if locked or process is None or (locked is False and self._was_locked):
            return locked
        # Of a process elsewhere, a lock that is free may be that of a copy, or of a disk without locks.
        alive = process.is_alive
        return None if alive and locked is False else alive

    def _late_s(self) -> float:
        """Seconds without a line after which a run that is not seen counts as silent."""
        evaluation = self._history.evaluation or {}
        seconds = float(evaluation["seconds"]) if has_numbers(evaluation, "seconds") else 0.0
        return max(FRESH_S, LATE_LINES * self._history.line_seconds, 2 * seconds)


def _thinned(lines: list[bytes]) -> list[bytes]:
    """Lines of a file without some of those of training, where they are more than a curve shows; the newest stay.

    Parsing takes longer than reading: a run of 100,000 lines should be there at once.
    """
    training = [number for number, line in enumerate(lines) if line.startswith(TRAINING_START)]
    every = len(training) // MOST_PARSED + 1
    dropped = set(training[:-2]) - set(training[::every])
    return [line for number, line in enumerate(lines) if number not in dropped]


class _Kept(Generic[Read]):
    """What a small file says, read again only when it has changed."""

    def __init__(self, path: Path, read: Callable[[Path], Read]) -> None:
        self._path, self._read_file = path, read
        self._seen: tuple[int, int, int] | None = None
        self._value: Read | None = None
        self.problem = ""

    def value(self) -> Read | None:
        """The newest value that could be read; None before the first."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                self._value, self._seen, self.problem = self._read_file(self._path), seen, ""
        except FileNotFoundError:
            self.problem = ""
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.problem = f"its {self._path.name} cannot be read: {shortened(reason or type(error).__name__)}"
        return self._value
