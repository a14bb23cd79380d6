"""What a disk refuses, told in a sentence, and tried again where a network file system only fails for a moment."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from codetr_cli.errors import ResourceError
from codetr_cli.files import DISK_FULL, system_error

Done = TypeVar("Done")

# What a network file system answers while a server starts again or a file handle has become stale.
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY)
PAUSES_S = (0.2, 2.0, 10.0)  # before such a thing is tried again


@contextmanager
def writing(folder: Path, cleanup: Path | None = None) -> Iterator[None]:
    """Turns what a disk refuses inside the context into an error that says so.

    Args:
        folder: of the run that is written.
        cleanup: a half-written folder to delete.

    Raises:
        ResourceError: the disk is full, read-only, or fails, a quota is used up, or the folder is gone.
    """
    try:
        yield
    except Exception as error:
        if cleanup is not None:
            shutil.rmtree(cleanup, ignore_errors=True)
        refusal = system_error(error)
        if refusal is None:
            raise
        raise ResourceError(_words(refusal, folder)) from error


def persistently(action: Callable[[int], Done]) -> Done:
    """Does something that may be done again, again when a network file system fails for a moment.

    Args:
        action: called with the number of failures before.
    """
    for failures, pause_s in enumerate(PAUSES_S):
        try:
            return action(failures)
        except Exception as error:
            refusal = system_error(error)
            if refusal is None or refusal.errno not in PASSING:
                raise
        time.sleep(pause_s)
    return action(len(PAUSES_S))


def move(source: Path, target: Path) -> None:
    """Renames a file or folder; one that a file system has renamed without saying so counts."""

    def rename(failures: int) -> None:
        try:
            source.rename(target)
        except FileNotFoundError:
            if not (failures and target.exists()):
                raise

    persistently(rename)


def append(path: Path, text: str) -> None:
    """Adds lines to the end of a text file; after a failure begins anew on a line of its own."""

    def add(failures: int) -> None:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n" + text if failures else text)

    persistently(add)


def _words(error: OSError, folder: Path) -> str:
    """What a disk refuses, and what to do."""
    again = "then start the same command again to continue from the newest checkpoint."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"cannot write {error.filename or folder}: {error.strerror}. What was saved before is intact. Make the "
            f"folder writable, {again}"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR) or not (folder.exists() or error.errno in DISK_FULL):
        return (
            f"the run folder {folder} is gone, or something in it: it was deleted or moved, or its disk is no longer "
            f"there (missing: {error.filename or folder}). Nothing more can be saved. Put it back and start the same "
            "command again to continue from its newest checkpoint."
        )
    if error.errno == errno.EDQUOT:
        return (
            f"no space left for this user on the disk of {folder}: the quota is used up. What was saved before is "
            f"intact. Free some space, {again}"
        )
    if error.errno == errno.ENOSPC:
        free = f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB free)" if folder.exists() else ""
        return f"no space left on the disk of {folder}{free}: what was saved before is intact. Free some space, {again}"
    return (
        f"the disk of {folder} fails: {error.filename or 'a file'}: {error.strerror or error}. What was saved before "
        f"is intact. Look at the disk or the network to it, {again}"
    )
