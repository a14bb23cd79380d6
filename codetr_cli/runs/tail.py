"""New lines of a text file that another process, perhaps on another machine, appends to.

Only what is new is read. The file may be replaced by one with the same beginning (rsync), be cut and written again (a
run that went back to a checkpoint), end in half a line, or be gone for a while.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from codetr_cli.reading import open_file
from codetr_cli.runs.metrics_log import MAX_LINE_BYTES

READ_BYTES = 32 << 20
"""Of a longer addition the end is read: of a log with a line of 2 KB at every step, the last 15,000 steps."""
MARK_BYTES = 256


@dataclass(frozen=True)
class NewLines:
    """What a file has got since it was read last.

    Attributes:
        lines: complete lines without their ends.
        is_restart: the file is another one, or was cut: what was read before no longer counts.
        is_cut: lines before these were skipped, because there are too many.
    """

    lines: list[bytes] = field(default_factory=list)
    is_restart: bool = False
    is_cut: bool = False


class FileTail:
    """Reads a file from time to time.

    Args:
        path: the file; it need not exist yet.
        limit: bytes that are read at once, the last ones.
    """

    def __init__(self, path: Path, limit: int = READ_BYTES) -> None:
        self.path, self._limit = path, limit
        self._seen: tuple[int, int, int] | None = None
        self._offset = 0  # of the first line that is not complete yet
        self._mark = b""  # the bytes before it: a file that has others there is another one

    def read(self) -> NewLines:
        """The lines since the last call; all lines the first time.

        Raises:
            OSError: the file is not there, or cannot be read; the next call may succeed.
        """
        with open_file(self.path) as file:
            status = os.fstat(file.fileno())
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return NewLines()
            is_restart = not self._is_continued(file, status.st_size)
            if is_restart:
                self._offset, self._mark = 0, b""
            start = max(self._offset, status.st_size - self._limit)
            is_cut = start > self._offset
            file.seek(start)
            content = file.read(status.st_size - start)
        self._seen = seen
        whole, _, rest = content.rpartition(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            whole, rest = content, b""
        end = start + len(content) - len(rest)
        if end > self._offset:
            before = self._mark if start == self._offset else b""
            self._mark = (before + content[: end - start])[-MARK_BYTES:]
            self._offset = end
        lines = whole.split(b"\n") if whole else []
        return NewLines(lines[1:] if is_cut else lines, is_restart, is_cut)

    def _is_continued(self, file: BufferedReader, size: int) -> bool:
        """Whether what was read before is still there."""
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._mark))
        return file.read(len(self._mark)) == self._mark
