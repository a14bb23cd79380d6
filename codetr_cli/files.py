"""Small file operations that must not leave half a file behind or let two processes write one folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no record locks; two trainings in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content as a whole: a reader or a kill sees the old text or the new one.

    Names of files in it that are no UTF-8 are written byte by byte as they are.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable; file systems that cannot do that are left to themselves."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


class FileLock:
    """A claim on a file that the system gives up when the process ends, however it ends.

    Processes forked from the owner do not inherit it.

    Args:
        path: created when missing; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, patience_s: float = 0.0) -> bool:
        """Tries to claim the file.

        Args:
            patience_s: how long to keep trying.

        Returns:
            whether it is claimed now; True also where the file system has no locks.
        """
        file = self.path.open("a")
        deadline = time.monotonic() + patience_s
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                file.close()
                return False
            time.sleep(0.2)
        self._file = file
        return True

    def release(self) -> None:
        """Gives the claim up."""
        if self._file is not None:
            self._file.close()
            self._file = None


def is_locked(path: Path) -> bool | None:
    """Whether another process holds a `FileLock`; None where the system cannot tell. The owner must not ask."""
    if fcntl is None:
        return None
    try:
        with path.open() as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _try_lock(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:
        return False  # what some systems answer for a lock that another process holds
    except OSError:
        return True
    return True
