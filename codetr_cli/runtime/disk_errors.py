"""Disk errors with a message for the user, and retries where a network file system fails temporarily."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from codetr_cli.errors import ResourceError
from codetr_cli.files import DISK_FULL, make_way, system_error

Done = TypeVar("Done")

# Errors of a network file system while a server restarts or a file handle is stale.
TEMPORARY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY)
PAUSES_S = (0.2, 2.0, 10.0)  # before the retries


@contextmanager
def writing(folder: Path, cleanup: Path | None = None) -> Iterator[None]:
    """Turns disk errors inside the context into an error with advice.

    Args:
        folder: of the run.
        cleanup: a half-written folder to delete.

    Raises:
        ResourceError: the disk is full, read-only, or fails, a quota is used up, or the folder is gone.
    """
    try:
        yield
    except Exception as error:
        if cleanup is not None:
            make_way(cleanup, ignore_errors=True)
        disk_error = system_error(error)
        if disk_error is None:
            raise
        raise ResourceError(_message(disk_error, folder)) from error


def persistently(action: Callable[[int], Done]) -> Done:
    """Runs a repeatable action, with retries after temporary errors of a network file system.

    Args:
        action: called with the number of failures so far.
    """
    for failures, pause_s in enumerate(PAUSES_S):
        try:
            return action(failures)
        except Exception as error:
            disk_error = system_error(error)
            if disk_error is None or disk_error.errno not in TEMPORARY:
                raise
        time.sleep(pause_s)
    return action(len(PAUSES_S))


def move(source: Path, target: Path) -> None:
    """Renames a file or folder; accepts one that was renamed although the file system reported an error."""

    def rename(failures: int) -> None:
        try:
            source.rename(target)
        except FileNotFoundError:
            if not (failures and target.exists()):
                raise

    persistently(rename)


def append(path: Path, text: str) -> None:
    """Appends lines to a text file; after a failure, starts on a new line."""

    def add(failures: int) -> None:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n" + text if failures else text)

    persistently(add)


def _message(error: OSError, folder: Path) -> str:
    """What failed, and what to do."""
    again = "then start the same command again to continue from the newest checkpoint."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"cannot write {error.filename or folder}: {error.strerror}. Earlier checkpoints are intact. Make the "
            f"folder writable, {again}"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR) or not (folder.exists() or error.errno in DISK_FULL):
        return (
            f"the run folder {folder} or a part of it is gone: it was deleted or moved, or its disk is no longer "
            f"mounted (missing: {error.filename or folder}). Nothing more can be saved. Restore it and start the same "
            "command again to continue from its newest checkpoint."
        )
    if error.errno == errno.EDQUOT:
        return (
            f"no space left for this user on the disk of {folder}: the quota is used up. Earlier checkpoints "
            f"are intact. Free some space, {again}"
        )
    if error.errno == errno.ENOSPC:
        free = f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB free)" if folder.exists() else ""
        return f"no space left on the disk of {folder}{free}: earlier checkpoints are intact. Free some space, {again}"
    return (
        f"the disk of {folder} fails: {error.filename or 'a file'}: {error.strerror or error}. Earlier "
        f"checkpoints are intact. Check the disk or the network, {again}"
    )
