"""One background thread that writes checkpoints while training continues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType


class BackgroundWriter:
    """Runs one write at a time in a thread; its context waits at the end, also after an error.

    Attributes:
        written_at: monotonic time when the newest checkpoint was copied for writing, or when training started.
    """

    def __init__(self) -> None:
        self.written_at = time.monotonic()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as own:
            if error is None:
                raise
            error.add_note(str(own))

    def write(self, work: Callable[[], None]) -> None:
        """Starts a write after the one in progress has ended."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint-writer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error of a write that has ended, like `wait`, but does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits for the write in progress.

        Raises:
            ResourceError: no space left; earlier checkpoints are unchanged.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised in the training thread by `wait`
            self._error = error
