"""Locks between processes that write into the same folder."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no record locks: two processes that write the same folder are not detected there
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """An exclusive lock on a file. The system releases it when the process ends, however it ends.

    Forked processes do not inherit it. The process must not open `path` in any other way: closing it would release
    the lock.

    Args:
        path: created if missing; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, patience_s: float = 0.0) -> bool:
        """Tries to lock the file.

        Args:
            patience_s: how long to keep trying.

        Returns:
            whether this process holds the lock now; True also on file systems without locks.

        Raises:
            OSError: it cannot be created, or is not a regular file.
        """
        deadline = time.monotonic() + patience_s
        while True:
            _check_lock_file(self.path)
            file = self.path.open("a")
            locked = _try_lock(file)
            if locked and _is_same_file(file, self.path):
                self._file = file
                return True
            file.close()
            if not locked:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.2)

    def release(self, *, remove: bool = False) -> None:
        """Releases the lock.

        Args:
            remove: also delete the file.
        """
        if self._file is None:
            return
        if remove:
            with suppress(OSError):
                self.path.unlink()
        self._file.close()
        self._file = None


def is_locked(path: Path) -> bool | None:
    """Whether another process holds the `FileLock` of a file; None if the system cannot report it.

    The process that holds the lock must not call this: it would release the lock.
    """
    if fcntl is None:
        return None
    try:
        _check_lock_file(path)
        with path.open() as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _check_lock_file(path: Path) -> None:
    """Refuses links, which lead elsewhere, and pipes, which wait for ever.

    Raises:
        OSError: there is something other than a regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _try_lock(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some systems report a lock of another process as the latter
        return False
    except OSError:
        return True
    return True


def _is_same_file(file: IO[str], path: Path) -> bool:
    """Whether a path still names an open file: the previous owner of a lock may have deleted it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
