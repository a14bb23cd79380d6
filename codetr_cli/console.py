"""Everything the program draws: lines, tables, progress and the one JSON object of `--json`. The only importer of rich.

People's text goes to stdout, or to stderr under `--json`; warnings, errors and progress always go to stderr. On a
terminal text is coloured and progress is a bar; anywhere else lines are plain and never cut, as a log file wants them.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

THEME = Theme(
    {"good": "green", "bad": "bold red", "caution": "yellow", "unit": "dim", "title": "bold", "bar.complete": "cyan"}
)
QUIET_SECONDS = 2.0  # work shorter than this shows no progress
PLAIN_SECONDS = 10.0  # between two plain progress lines
PLAIN_WIDTH = 240  # columns of a table that goes to a file or a pipe


@dataclass
class _Mode:
    json: bool = False
    quiet: bool = False
    answered: bool = False


_mode = _Mode()


class Advance(Protocol):
    """What `progress` yields."""

    def __call__(self, n: int = 1, **fields: Any) -> None:
        """Reports that `n` more items are done; `fields` are shown beside the bar, e.g. `loss=3.21`."""


def set_mode(*, json: bool = False, quiet: bool = False) -> None:
    """Chooses where text goes; every verb calls this first.

    Args:
        json: people's text goes to stderr and `result_json` writes to stdout.
        quiet: no `info` and no progress; results, warnings and errors stay.
    """
    _mode.json, _mode.quiet, _mode.answered = json, quiet, False


def info(text: str) -> None:
    """Shows a line about what is going on; nothing under `--quiet`."""
    if not _mode.quiet:
        _print(_console(stderr=_mode.json), Text(text))


def result(text: str) -> None:
    """Shows a line that is what the person asked for; `--quiet` keeps it."""
    _print(_console(stderr=_mode.json), Text(text))


def warn(text: str) -> None:
    """Shows a warning on stderr."""
    _print(_console(stderr=True), Text.assemble(("warning: ", "caution"), text))


def error(text: str) -> None:
    """Shows one red paragraph on stderr."""
    _print(_console(stderr=True), Text.assemble(("error: ", "bad"), (text, "red")))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Shows a table.

    Args:
        title: printed above it; empty for none.
        columns: headings; a unit in square brackets is dimmed, e.g. `"latency [ms]"`.
        rows: cells as `cell_text` takes them. Columns of numbers are aligned right.
    """
    rows = [list(row) for row in rows]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(columns):
        name, bracket, unit = heading.partition(" [")
        numeric = all(isinstance(row[index], int | float | None) for row in rows) and bool(rows)
        drawn.add_column(
            Text.assemble(name, (bracket + unit, "unit")),
            justify="right" if numeric else "left",
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(Text(cell_text(cell)) for cell in row))
    out = _console(stderr=_mode.json)
    if title:
        _print(out, Text(title, "title"))  # not the table's own title, which is wrapped to the table's width
    with out.capture() as captured:
        out.print(drawn)
    out.file.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def width() -> int:
    """Columns that a table has room for."""
    return _console(stderr=_mode.json).width


def result_json(obj: dict[str, Any]) -> None:
    """Writes the one JSON object of `--json` to stdout; without `--json` it does nothing.

    Args:
        obj: plain values, paths, and anything with `item()` or `tolist()`; NaN and infinities become null.

    Raises:
        RuntimeError: called twice in one run.
    """
    if not _mode.json:
        return
    if _mode.answered:
        raise RuntimeError("the JSON result was already written")
    _write_json(obj)


def fail_json(obj: dict[str, Any]) -> None:
    """Writes the JSON object of a command that failed, unless its result is out already."""
    if not _mode.answered:
        _write_json(obj)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Advance]:
    """Shows how far a piece of work is once it takes longer than two seconds.

    A bar on a terminal, a plain line every ten seconds elsewhere, nothing under `--quiet`.

    Args:
        description: what is being done, e.g. `"reading images"`.
        total: number of items, None when unknown.

    Yields:
        a function to call as items get done: `advance(n, **fields)`.
    """
    shown: _Bar | _Lines | None = None
    if not _mode.quiet:
        shown = _Bar(description, total) if sys.stderr.isatty() else _Lines(description, total)
    try:
        yield shown.advance if shown else _ignore
    finally:
        if shown:
            shown.close()


@contextmanager
def tolerate_closed_streams() -> Iterator[None]:
    """Inside, text that can no longer be written is let go: nobody need listen for work to be done.

    The reader of a pipe may leave (`| head`), a terminal may close, the disk of a log file may be full.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Forgiving(sys.stdout), _Forgiving(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def cell_text(value: object) -> str:
    """A cell or field as text: thousands separated, four significant digits, `-` for None, yes or no for booleans."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 and math.isfinite(value) else f"{value:.4g}"
    return str(value)


def bytes_text(count: float) -> str:
    """A number of bytes with a binary unit, e.g. `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def seconds_text(seconds: float) -> str:
    """A duration to read at a glance, e.g. `0.42 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class _Forgiving:
    """A stream that takes whatever it is given, also when that goes nowhere any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _let_go(self, error: OSError) -> None:
        """What is still buffered must not complain later, unless there may be room for it then."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class _Bar:
    """Progress on a terminal; drawn at the first report after two seconds and cleared at the end."""

    def __init__(self, description: str, total: int | None) -> None:
        self.done = 0
        self.started = time.monotonic()
        # stdout passes through the bar only when it is a terminal too: redirected output must reach its file.
        self.drawn = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[beside]}", markup=False),
            console=_console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self.task = self.drawn.add_task(description, total=total, beside="")

    def advance(self, n: int = 1, **fields: Any) -> None:
        self.done += n
        if not self.drawn.live.is_started and time.monotonic() - self.started > QUIET_SECONDS:
            self.drawn.start()
        self.drawn.update(self.task, completed=self.done, beside=_fields_text(fields))

    def close(self) -> None:
        if self.drawn.live.is_started:
            self.drawn.stop()


class _Lines:
    """Progress where there is no terminal: a line now and then, and one at the end of long work."""

    def __init__(self, description: str, total: int | None) -> None:
        self.description, self.total = description, total
        self.done = 0
        self.fields: dict[str, Any] = {}
        self.started = time.monotonic()
        self.next_line = self.started + QUIET_SECONDS
        self.told: int | None = None  # what the last line said was done

    def advance(self, n: int = 1, **fields: Any) -> None:
        self.done += n
        self.fields = fields
        if time.monotonic() >= self.next_line:
            self._line()
            self.next_line = time.monotonic() + PLAIN_SECONDS

    def close(self) -> None:
        if self.told is not None and self.told != self.done:
            self._line()

    def _line(self) -> None:
        self.told = self.done
        elapsed = time.monotonic() - self.started
        parts = [f"{self.description}: {self.done:,}"]
        if self.total:
            left = elapsed / max(self.done, 1) * max(self.total - self.done, 0)
            parts = [f"{parts[0]}/{self.total:,} ({self.done / self.total:.0%})"]
            parts += [f"{seconds_text(left)} left"] if self.done < self.total else [f"took {seconds_text(elapsed)}"]
        parts += [_fields_text(self.fields)] if self.fields else []
        _print(_console(stderr=True), Text(", ".join(parts)))


def _ignore(n: int = 1, **fields: Any) -> None:
    """Stands in for a progress display under `--quiet`."""


def _fields_text(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {cell_text(value)}" for name, value in fields.items())


def _console(*, stderr: bool) -> Console:
    """A console on the stream as it is now: tests and progress bars exchange `sys.stdout` and `sys.stderr`."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, theme=THEME, highlight=False, width=None if stream.isatty() else PLAIN_WIDTH)


def _print(console: Console, text: Text) -> None:
    """Wraps at spaces on a terminal, nowhere else; a long path stays whole so that it can be copied."""
    console.print(text, overflow="ignore", crop=False, soft_wrap=not console.is_terminal)


def _write_json(obj: dict[str, Any]) -> None:
    _mode.answered = True
    sys.stdout.write(json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    """The value in terms of JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    to_list: Callable[[], Any] | None = getattr(value, "tolist", None)
    return _plain(to_list()) if to_list else str(value)
