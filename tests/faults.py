"""Kills and full disks at every write below a folder: a command runs in a forked child, where an audit hook counts.

What Python's own functions do is counted: files opened for writing, names that change, folders. The content that other
libraries write into an opened file is not, but `TORN` leaves a part of it.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli.result_files import RECORD_NAME

KILL = "kill"
"""SIGKILL before the write."""
TORN = "torn"
"""SIGKILL after a part of the file's content is written."""
FULL = "full"
"""From this write on, no file can be created, renamed or opened for writing: no space left."""
FULL_CONTENT = "full content"
"""From this write on files can be created, but take no content: no space left. Needs /dev/full."""
FAILING = "failing"
"""From this write on, nothing can be written or deleted: an input/output error."""
FAILING_ONCE = "failing once"
"""An input/output error at this write only."""

LIMIT_S = 120
"""A child that takes longer is killed: threads of this process that a library waits for do not exist there."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
}
"""Audit events of other writes -> how many of their first arguments are paths."""
NEEDS_SPACE = ("os.rename", "os.mkdir", "os.link", "os.symlink")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: exit code; negative for the signal that ended it.
        writes: what it wrote below the folder, in order, e.g. `open a.txt`.
        out: its standard output.
        err: its standard error.
    """

    code: int
    writes: list[str]
    out: str
    err: str


def run_with_fault(command: Callable[[], int], folder: Path, fault: str | None = None, at: int = 0) -> Ended:
    """Runs a command in a forked child.

    Args:
        command: returns the exit code.
        folder: whose writes count; it need not exist.
        fault: KILL, TORN, FULL, FULL_CONTENT, FAILING, FAILING_ONCE or None.
        at: the number of the write that it happens at, from 1.
    """
    with tempfile.TemporaryDirectory() as reports:
        paths = [Path(reports, name) for name in ("out", "err", "writes")]
        for path in paths:
            path.touch()
        child = os.fork()
        if child == 0:
            _child(command, _Hook(folder, fault, at, paths[2]), paths[:2])
        _, status = os.waitpid(child, 0)
        out, err, writes = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return Ended(os.waitstatus_to_exitcode(status), writes.splitlines(), out, err)


def instants(total: int, count: int) -> list[int]:
    """Numbers of writes: the first, the last and others chosen between them; all of them if `count` is large enough."""
    chosen = random.Random(0).sample(range(1, total + 1), min(count, total))
    return sorted({1, total, *chosen})


def contents(folder: Path, ignore: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its relative path; not the record of results, which has times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (RECORD_NAME, *ignore))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class _Hook:
    """Counts writes below a folder and makes the fault happen."""

    def __init__(self, folder: Path, fault: str | None, at: int, report: Path) -> None:
        self.folder, self.fault, self.at = os.path.abspath(folder), fault, at  # noqa: PTH100 (resolves no links)
        self.report = os.open(report, os.O_WRONLY | os.O_APPEND)
        self.count, self.busy = 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy or (event != "open" and event not in CHANGES):
            return
        self.busy = True
        try:
            self._check(event, arguments)
        finally:
            self.busy = False

    def _check(self, event: str, arguments: tuple[Any, ...]) -> None:
        if isinstance(arguments[0], int) or (event == "open" and not (arguments[2] or 0) & WRITING):
            return  # an open file, or one to be read
        paths = [_absolute(path, event, arguments) for path in arguments[: CHANGES.get(event, 1)]]
        if not any(path == self.folder or path.startswith(self.folder + os.sep) for path in paths):
            return
        self.count += 1
        os.write(self.report, f"{event} {os.path.relpath(paths[-1], self.folder)}\n".encode(errors="replace"))
        if self.at and self.count >= self.at:
            self._fail(event, paths[-1], arguments)

    def _fail(self, event: str, path: str, arguments: tuple[Any, ...]) -> None:
        if self.fault in (KILL, TORN):
            if self.fault == TORN and event == "open":
                with suppress(OSError):
                    file = os.open(path, arguments[2] | os.O_WRONLY, 0o666)
                    os.write(file, b'{"torn')
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == FAILING or (self.fault == FAILING_ONCE and self.count == self.at):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if self.fault == FULL and event in ("open", *NEEDS_SPACE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])
        # Files of which nothing is kept; a `replace_file` creates its file first.
        emptied = event == "open" and arguments[2] & os.O_TRUNC
        if self.fault == FULL_CONTENT and emptied and os.path.lexists(path) and not os.path.islink(path):  # noqa: PTH114
            os.unlink(path)  # noqa: PTH108
            os.symlink("/dev/full", path)  # noqa: PTH211


def _absolute(path: Any, event: str, arguments: tuple[Any, ...]) -> str:
    """The path of an event, which may be relative to an open folder, its last argument."""
    text = os.fsdecode(path)
    relative = event not in ("open", "os.truncate") and not os.path.isabs(text) and arguments[-1] >= 0  # noqa: PTH117
    if relative:
        text = os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), text)  # noqa: PTH115, PTH118
    return os.path.abspath(text)  # noqa: PTH100 (resolves no links)


def _child(command: Callable[[], int], hook: _Hook, streams: Sequence[Path]) -> None:
    code = 99
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(LIMIT_S)
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False, encoding="utf-8") for number in (1, 2))  # noqa: SIM115
        sys.addaudithook(hook)
        code = command()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
