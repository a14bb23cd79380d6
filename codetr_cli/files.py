"""Files: atomic replacement, locks between processes, and the cache folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from codetr_cli.errors import CodetrError, ResourceError

try:
    import fcntl
except ImportError:  # Windows has no record locks: two processes that write the same folder are not detected there
    fcntl = None  # type: ignore[assignment]

WEIGHTS_NAME = "model.safetensors"
"""File name of the weights in every checkpoint folder and in the cache."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_dir() -> Path:
    """The folder of downloads and conversions: `CODETR_CACHE`, else ~/.cache/codetr."""
    folder = os.environ.get("CODETR_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "codetr"


# -------------------------------------------------------------------------------------------------------------- writing


@contextmanager
def replace_file(path: Path, size: int | None = None, *, parents: bool = False) -> Iterator[Path]:
    """Writes a file atomically: readers see the old content or the new content, never a part of it.

    Yields a temporary path in the same folder. When the block ends, that file is synced to disk and renamed to `path`.
    When the block raises, it is deleted and an existing file at `path` stays unchanged. A killed process leaves it
    behind, as `.NAME.PID.tmp`.

    Args:
        path: the final path.
        size: bytes to be written, for the error message of a full disk; None if unknown.
        parents: whether to create missing parent folders.

    Raises:
        ResourceError: no space left, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors creates files that only their owner can read
        rename_synced(temporary, path)
    except Exception as error:
        cause = system_error(error)
        if cause is None or isinstance(error, CodetrError):
            raise
        raise ResourceError(_write_error(path, cause, size)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces the text of a file atomically. File names in it that are not UTF-8 are written byte for byte.

    Raises:
        ResourceError: no space left, or the file cannot be written.
    """
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def rename_synced(source: Path, target: Path) -> None:
    """Renames a file so that name and content survive a power failure."""
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    source.replace(target)
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Flushes the entries of a folder to disk; does nothing on file systems that do not support it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind an exception; None if there is none."""
    while error is not None and not isinstance(error, OSError):
        # PyTorch and safetensors report some of these errors as text only.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        if "No space left" in str(error):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return error


def _write_error(path: Path, error: OSError, size: int | None) -> str:
    if error.errno not in DISK_FULL:
        return f"cannot write {path}: {error.strerror or error}. Choose another folder or fix its permissions."
    space = ""
    if size is not None:
        with suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            space = f"{size / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free. "
    return (
        f"no space left on the disk while writing {path}. {space}Existing files are unchanged: free some space or "
        "choose another folder, then run the command again."
    )


# ---------------------------------------------------------------------------------------------------------------- locks


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
        """
        deadline = time.monotonic() + patience_s
        while True:
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
