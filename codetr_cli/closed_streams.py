"""Streams whose reader may end before the work does."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def tolerate_closed_streams(*, stdout: bool = True) -> Iterator[None]:
    """Inside, text that can no longer be written is discarded, so that the work continues.

    The reader of a pipe may end (`| head`), a terminal may close, the disk of a log file may be full. Characters that
    the encoding of a stream lacks (`LANG=C`) are written escaped from now on.

    Args:
        stdout: also on stdout, which otherwise raises.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    before = sys.stdout, sys.stderr
    sys.stderr = _TolerantStream(sys.stderr)
    if stdout:
        sys.stdout = _TolerantStream(sys.stdout)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _TolerantStream:
    """A stream that accepts text also when it can no longer be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._discard(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _discard(self, error: OSError) -> None:
        """Discards what is still buffered, unless there may be room for it later."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
