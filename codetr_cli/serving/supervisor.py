"""Several server processes under one that watches them: each is replaced alone when it dies, and all end together."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from codetr_cli.data.loading.worker_process import interrupts_held
from codetr_cli.distributed.launcher import run_worker, share_threads
from codetr_cli.distributed.worker_errors import ERROR_FOLDER, Work, error_of
from codetr_cli.errors import StoppedError
from codetr_cli.runtime.signals import NAMES, STOPPING

logger = logging.getLogger(__name__)

SERVING = Work(
    name="server",
    less_memory="lower --batch, --max-pixels or the number of processes",
    continues="",
    max_restarts=10,
)
PERIOD_S = 600.0
"""More than `SERVING.max_restarts` deaths within this time end the server."""
CONTEXT = multiprocessing.get_context("spawn")
READY_FILE = "CODETR_READY_FILE"
"""Environment variable of the processes: a file that is there once one of them has been ready."""


def report_ready() -> bool:
    """Notes that this process serves.

    Returns:
        whether it is the first of its server to do so; True where no supervisor has started it.
    """
    path = os.environ.get(READY_FILE)
    try:
        if path is not None:
            Path(path).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def supervise(function: Callable[..., Any], arguments: Sequence[Any], processes: int) -> None:
    """Runs `function(*arguments)` in several processes until a signal; one that dies is started again.

    Before any of them was ready, see `report_ready`, a death ends all: a model that cannot be loaded is no accident.
    RANK and WORLD_SIZE in the environment of a process are its number and how many there are. Signals are forwarded.

    Args:
        function: importable by name; it and the arguments are pickled. It serves until a signal, then raises
            `StoppedError`.
        arguments: the same for all processes.
        processes: how many.

    Raises:
        StoppedError: a signal came, and all processes have ended.
        CodetrError: an error that the user must fix, or deaths before any was ready, or too many; the other processes
            answer what they have accepted before.
        RuntimeError: deaths as above, by an error that is a bug.
    """
    share_threads(processes)
    with tempfile.TemporaryDirectory(prefix="codetr-") as folder:
        _Supervisor(function, arguments, processes, Path(folder)).run()


class _Supervisor:
    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], processes: int, folder: Path) -> None:
        self._function, self._arguments, self._count, self._folder = function, tuple(arguments), processes, folder
        self._ready_file = folder / "ready"
        self._running: dict[int, SpawnProcess] = {}  # by number
        self._signals: list[int] = []
        self._deaths: deque[float] = deque()
        self._error: Exception | None = None

    def run(self) -> None:
        with self._forwarded_signals():
            try:
                self._watch()
            except BaseException:  # e.g. no memory for another process
                self._send(signal.SIGTERM)  # the interpreter waits for them
                raise
        if self._error is not None:
            raise self._error
        number = self._signals[0]
        raise StoppedError(f"stopped by {NAMES[number]}: {self._count} processes have ended", number)

    def _watch(self) -> None:
        for rank in range(self._count):
            self._start(rank)
        while self._running:
            ended = wait([process.sentinel for process in self._running.values()])
            for rank, process in list(self._running.items()):
                if process.sentinel in ended:
                    self._end(rank, process)

    def _errors(self, rank: int) -> Path:
        """The folder for the errors of one process: others may be writing theirs while they are read."""
        return self._folder / f"errors-{rank}"

    def _start(self, rank: int) -> None:
        if self._signals:
            return
        errors = self._errors(rank)
        errors.mkdir(exist_ok=True)
        variables = {"RANK": rank, "WORLD_SIZE": self._count, ERROR_FOLDER: errors, READY_FILE: self._ready_file}
        arguments = ({name: str(value) for name, value in variables.items()}, self._function, self._arguments)
        process = CONTEXT.Process(target=_work, args=arguments)
        with interrupts_held():
            process.start()
        self._running[rank] = process
        if self._signals:  # it came meanwhile
            self._send(self._signals[-1])

    def _end(self, rank: int, process: SpawnProcess) -> None:
        """A process has ended: starts it again, or ends the others."""
        process.join()
        del self._running[rank]
        if self._signals or self._error is not None:
            return
        code = process.exitcode or 0
        error, is_final = error_of(self._errors(rank), {rank: code}, SERVING)
        for path in self._errors(rank).iterdir():
            path.unlink()
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - PERIOD_S:
            self._deaths.popleft()
        if is_final or not self._ready_file.exists() or len(self._deaths) > SERVING.max_restarts:
            self._error = error
            self._send(signal.SIGTERM)
            return
        logger.warning(
            "%s. It is started again, and the others go on (%d of at most %d restarts in %.0f minutes).",
            *(str(error).rstrip("."), len(self._deaths), SERVING.max_restarts, PERIOD_S / 60),
        )
        self._start(rank)

    def _send(self, number: int) -> None:
        for process in list(self._running.values()):
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    @contextmanager
    def _forwarded_signals(self) -> Iterator[None]:
        def forward(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            self._send(number)

        before = {number: signal.signal(number, forward) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _work(environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """A process: ends with the one that has started it, whatever ends that."""
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    run_worker(function, arguments, SERVING)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
