"""The lines of a run's metrics.jsonl, from either end: one JSON object each, of a kind and a step.

The file may come from a stranger: what is no line of metrics is skipped, no line is read beyond `MAX_LINE_BYTES`, and
holes are not read. The file has no limit itself: that of a long run grows and must never end it.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from codetr_cli.reading import open_file, parse_json

Line = dict[str, Any]

ENDS = frozenset(("end", "diverged"))  # kinds of lines that a continued run drops
MAX_LINE_BYTES = 1 << 20  # a line of training has about 2 KB
MAX_STEP = 1 << 53
MAX_NUMBER = 1e39
"""More than float32 holds: no number of a training is as large, and sums of smaller ones are finite."""
BLOCK_BYTES = 1 << 16


def parse_line(text: bytes) -> Line | None:
    """A line of metrics.jsonl; None where it is not one, e.g. because a kill cut it short."""
    try:
        line = parse_json(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return None
    step = line.get("step")
    return line if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < MAX_STEP else None


def has_numbers(line: Line, *names: str) -> bool:
    """Whether all these entries of a line are finite numbers, up to `MAX_NUMBER`."""
    try:
        return all(math.isfinite(line[name]) and abs(line[name]) <= MAX_NUMBER for name in names)
    except (KeyError, TypeError, OverflowError):
        return False


def is_evaluation(line: Line) -> bool:
    """Whether a line is that of an evaluation, with its AP."""
    metrics = line.get("metrics")
    return line["kind"] == "eval" and isinstance(metrics, dict) and has_numbers(metrics, "AP")


def read_lines(path: Path, containing: bytes = b"") -> Iterator[Line]:
    """The lines of metrics.jsonl in order; none where there is no file.

    Args:
        path: the file.
        containing: only lines with these bytes.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    try:
        file = open_file(path)
    except FileNotFoundError:
        return
    with file:
        is_rest = False  # of a line that is too long
        while text := file.readline(MAX_LINE_BYTES):
            if text.startswith(b"\0") and not _skip_hole(file):
                break
            is_whole = text.endswith(b"\n")
            if not is_rest and containing in text and (line := parse_line(text)) is not None:
                yield line
            is_rest = not is_whole


def _skip_hole(file: BufferedReader) -> bool:
    """Moves on to the next data of a sparse file, where the system can; False where nothing but a hole is left."""
    try:
        file.seek(file.tell(), os.SEEK_DATA)
    except (OSError, AttributeError) as error:
        return not isinstance(error, OSError) or error.errno != errno.ENXIO
    return True


def texts_from_the_end(path: Path) -> Iterator[bytes]:
    """The lines of a file as they are, last one first, read in blocks as needed.

    Raises:
        OSError: as `read_lines`, or there is no file.
        ValueError: a line has more than `MAX_LINE_BYTES`.
    """
    with open_file(path) as file:
        end = file.seek(0, os.SEEK_END)
        rest = b""
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            first, *whole = (file.read(end - start) + rest).split(b"\n")
            yield from reversed(whole)
            rest, end = first, start
            if len(rest) > MAX_LINE_BYTES:
                raise ValueError(f"a line of it has more than {MAX_LINE_BYTES:,} bytes")
        if rest:
            yield rest
