"""Ctrl-C, SIGTERM and SIGUSR1 as a request to stop: the loop checks it, saves and exits; a second one exits at once.

A cluster sends SIGUSR1 some minutes before it ends a job: the SIGTERM that follows does not count as a second request.

A thread reads the signal numbers that the interpreter writes to a pipe on arrival, so that the answer to the first and
the exit at the second come even while the main thread is in a long computation.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from codetr_cli.errors import StoppedError

WARNING = getattr(signal, "SIGUSR1", None)  # Windows has none
STOPPING = tuple(number for number in (signal.SIGINT, signal.SIGTERM, WARNING) if number is not None)
NAMES = {int(number): "Ctrl-C" if number == signal.SIGINT else number.name for number in STOPPING}
# A launcher forwards the terminal's signal to its children: one that arrives this soon is the same request.
SAME_REQUEST_SECONDS = 1.0
END = b"\0"


class StopRequest:
    """Whether a signal requested a stop; a context manager that restores the handlers it replaces.

    Outside the main thread, where Python allows no signal handlers, it does nothing.

    Args:
        on_first: called with the signal's number when the first arrives, from another thread.
        on_second: called before the process ends at the second, from another thread, e.g. to restore the terminal.

    Attributes:
        number: the first signal's number, None before it.
    """

    def __init__(self, on_first: Callable[[int], None], on_second: Callable[[], None]) -> None:
        self.number: int | None = None
        self._on_first, self._on_second = on_first, on_second
        self._restore: list[Callable[[], object]] = []

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, _arrived) or signal.SIG_DFL for number in STOPPING}
        watcher = threading.Thread(target=self._watch, args=(reader,), name="stop-request", daemon=True)
        watcher.start()
        self._restore = [
            *(lambda n=number, h=handler: signal.signal(n, h) for number, handler in handlers.items()),
            lambda: signal.set_wakeup_fd(previous),
            # Closing the pipe would not end the watcher: processes forked meanwhile have the writing end too.
            lambda: os.write(writer, END),
            watcher.join,
            lambda: os.close(writer),
            lambda: os.close(reader),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for undo in self._restore:
            undo()
        self._restore = []

    def _watch(self, reader: int) -> None:
        first_at = 0.0
        while (arrived := os.read(reader, 1)) != END:
            if arrived[0] not in STOPPING:
                continue
            if self.number is None:
                self.number, first_at = arrived[0], time.monotonic()
                self._on_first(self.number)
            elif self.number == WARNING:
                self.number, first_at = arrived[0], time.monotonic()
            elif time.monotonic() - first_at > SAME_REQUEST_SECONDS:
                self._on_second()
                os._exit(StoppedError("", self.number).exit_code)


def _arrived(number: int, frame: FrameType | None) -> None:
    """Replaces the default action; the watcher reads the number from the pipe."""
