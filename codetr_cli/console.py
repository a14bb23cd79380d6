"""Everything the program prints: lines, tables, progress and the one JSON object of `--json`. Only this imports rich.

Text goes to stdout, or to stderr with `--json`; log messages, warnings, errors and progress always go to stderr. On a
terminal text is coloured and progress is a bar; elsewhere lines are plain and never cut, as a log file needs them.

Control characters in text, wherever it comes from, are shown escaped: the name of a file or class can neither command
the terminal nor pretend to be a line of this program. JSON is exact.
"""

from __future__ import annotations

import io
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

import rich
import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from codetr_cli.escaping import visible
from codetr_cli.number_text import cell_text, seconds_text

QUIET_SECONDS = 2.0  # work shorter than this shows no progress
PLAIN_SECONDS = 10.0  # between two plain progress lines
PLAIN_WIDTH = 240  # columns of a table that goes to a file or a pipe
PACKAGE_LOGGER = "codetr_cli"

Line = Sequence[tuple[str, str]]
"""A line as pieces: each a text and its style, e.g. "bold", "dim", "green" or ""."""


@dataclass
class _Mode:
    json: bool = False
    quiet: bool = False
    answered: bool = False
    live: Console | None = None  # draws a progress bar now: other text must go above the bar, through this console


_mode = _Mode()


class Advance(Protocol):
    """What `progress` yields."""

    def __call__(self, n: int = 1, *, seconds_left: float | None = None, **fields: Any) -> None:
        """Reports that `n` more items are done.

        Args:
            n: items.
            seconds_left: to the end, when the caller has a better estimate than the average since the start.
            fields: shown beside the bar, e.g. `loss=3.21`.
        """


def set_mode(*, json: bool = False, quiet: bool = False) -> None:
    """Chooses where text goes; every verb calls this first.

    Args:
        json: text goes to stderr and `result_json` writes to stdout.
        quiet: no `info`, no log messages below warnings and no progress; results, warnings and errors stay.
    """
    _mode.json, _mode.quiet, _mode.answered = json, quiet, False


@contextmanager
def log_to_console() -> Iterator[None]:
    """Inside, log messages of this package are printed on stderr, from level INFO; a second one inside does nothing."""
    package = logging.getLogger(PACKAGE_LOGGER)
    if any(isinstance(handler, _LogHandler) for handler in package.handlers):
        yield
        return
    handler, before = _LogHandler(), package.level
    package.addHandler(handler)
    if package.getEffectiveLevel() > logging.INFO:
        package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)


@contextmanager
def without_bars_of_others() -> Iterator[None]:
    """Keeps the bars that other packages, e.g. NNCF, draw with rich out of stdout, where JSON may be."""
    rich.reconfigure(file=io.StringIO(), force_terminal=False)
    try:
        yield
    finally:
        rich.reconfigure()


def info(text: str) -> None:
    """Prints a line about what is going on; nothing with `--quiet`."""
    if not _mode.quiet:
        _print(_console(stderr=_mode.json), Text(visible(text)))


def result(text: str) -> None:
    """Prints a line that the user asked for, also with `--quiet`."""
    _print(_console(stderr=_mode.json), Text(visible(text)))


def result_lines(text: str) -> None:
    """Prints text of several lines, e.g. a file that the user asked for, also with `--quiet`."""
    for line in text.rstrip("\n").split("\n"):
        result(line)


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    _print(_console(stderr=True), Text.assemble(("warning: ", "yellow"), visible(text)))


def error(text: str) -> None:
    """Prints an error on stderr, in red."""
    _print(_console(stderr=True), Text.assemble(("error: ", "bold red"), (visible(text), "red")))


def confirm(question: str) -> bool:
    """Asks for a yes or no."""
    return typer.confirm(visible(question))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table.

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
            Text.assemble(visible(name), (visible(bracket + unit), "dim")),
            justify="right" if numeric else "left",
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(Text(visible(cell_text(cell))) for cell in row))
    out = _console(stderr=_mode.json)
    if title:
        _print(out, Text(visible(title), "bold"))  # not the table's own title, which is wrapped to the table's width
    with _named(out.file):
        if out.is_terminal:
            least = Measurement.get(out, out.options.update_width(PLAIN_WIDTH), drawn).minimum
            out.print(_listed_rows(columns, rows) if least > out.width else drawn)  # else words would be broken
            return
        with out.capture() as captured:
            out.print(drawn)
        out.file.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def _listed_rows(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Text:
    """The rows of a table one below the other: each cell with its heading, none where it has none, such as bars."""
    text = Text()
    for row in rows:
        first, *others = (visible(cell_text(cell)) for cell in row)
        text.append(f"{first}\n", "bold")
        for heading, cell in zip(columns[1:], others, strict=True):
            if heading:
                text.append(f"  {visible(heading)}: ", "dim").append(f"{cell}\n")
    text.rstrip()
    return text


def columns() -> int:
    """Characters that fit in a line of a table."""
    return _console(stderr=_mode.json).width


def rows() -> int:
    """Lines that fit on the terminal."""
    return _console(stderr=_mode.json).height


def has_screen() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    return sys.stdout.isatty() and not _new_console(stderr=False).is_dumb_terminal


def can_show(text: str) -> bool:
    """Whether the encoding of the stream that text goes to has these characters."""
    stream = sys.stderr if _mode.json else sys.stdout
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def result_pieces(lines: Iterable[Line]) -> None:
    """Prints lines of several styles; on a terminal each is cut at its width."""
    out = _console(stderr=_mode.json)
    for line in lines:
        if not out.is_terminal:
            _print(out, Text("".join(visible(part) for part, _ in line)))
            continue
        with _named(out.file):
            out.print(_assembled(line), no_wrap=True, overflow="ellipsis")


@contextmanager
def screen() -> Iterator[Callable[[Sequence[Line]], None]]:
    """Takes the whole terminal, which has its former content again at the end.

    Yields:
        a function that shows lines instead of those before; what does not fit is cut.
    """
    with Live(console=_new_console(stderr=False), screen=True, auto_refresh=False) as live:
        yield lambda lines: live.update(Group(*map(_assembled, lines)), refresh=True)


def _assembled(line: Line) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for part, style in line:
        text.append(visible(part), style)
    return text


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
    """With `--json`, writes the JSON object of a command that failed, unless its result is out already."""
    if _mode.json and not _mode.answered:
        _write_json(obj)


@contextmanager
def progress(description: str, total: int | None = None, *, done: int = 0) -> Iterator[Advance]:
    """Shows the progress of work that takes longer than two seconds.

    A bar on a terminal, a plain line every ten seconds elsewhere, nothing with `--quiet`.

    Args:
        description: what is being done, e.g. `"reading images"`.
        total: number of items, None when unknown.
        done: items that were done before, e.g. steps of a run that is continued: counted, but not in the rate.

    Yields:
        a function to call as items get done: `advance(n, **fields)`.
    """
    shown: _Bar | _Lines | None = None
    if not _mode.quiet:
        shown = _Bar(description, total, done) if sys.stderr.isatty() else _Lines(description, total, done)
    try:
        yield shown.advance if shown else _ignore
    finally:
        if shown:
            shown.close()


class _LogHandler(logging.Handler):
    """Prints log messages on stderr, above a progress bar; those below warnings not with `--quiet`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.levelno >= logging.ERROR:
                error(text)
            elif record.levelno >= logging.WARNING:
                warn(text)
            elif not _mode.quiet:
                _print(_console(stderr=True), Text(visible(text)))
        except Exception:
            self.handleError(record)


class _Progress:
    """Counts items and estimates the time that is left from the rate since the start.

    Args:
        total: number of items, None when unknown.
        done: items that were done before the start.
    """

    def __init__(self, total: int | None, done: int) -> None:
        self.total, self.done, self.done_before = total, done, done
        self.started = time.monotonic()
        self.fields: dict[str, Any] = {}
        self.seconds_left: float | None = None

    def advance(self, n: int = 1, *, seconds_left: float | None = None, **fields: Any) -> None:
        self.done += n
        self.fields, self.seconds_left = fields, seconds_left
        self.show(self.elapsed())

    def show(self, elapsed: float) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def details(self, elapsed: float) -> list[str]:
        """The time that is left, or at the end the time that it took, unless the total is unknown; then the fields."""
        fields = [f"{name.replace('_', ' ')} {cell_text(value)}" for name, value in self.fields.items()]
        if not self.total:
            return fields
        if self.done >= self.total:
            return [f"took {seconds_text(elapsed)}", *fields]
        left = self.seconds_left
        if left is None:
            left = elapsed / max(self.done - self.done_before, 1) * (self.total - self.done)
        return [f"{seconds_text(left)} left", *fields]


class _Bar(_Progress):
    """Progress on a terminal; drawn at the first report after two seconds and removed at the end."""

    def __init__(self, description: str, total: int | None, done: int) -> None:
        super().__init__(total, done)
        # stdout passes through the bar only when it is a terminal too: redirected output must reach its file.
        self.drawn = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(complete_style="cyan"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[beside]}", markup=False),
            console=_new_console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self.task = self.drawn.add_task(visible(description), total=total, completed=done, beside="")

    def show(self, elapsed: float) -> None:
        self.drawn.update(self.task, completed=self.done, beside=visible(", ".join(self.details(elapsed))))
        if not self.drawn.live.is_started and elapsed > QUIET_SECONDS:
            self.drawn.start()
            _mode.live = self.drawn.console

    def close(self) -> None:
        if self.drawn.live.is_started:
            _mode.live = None
            self.drawn.stop()


class _Lines(_Progress):
    """Progress where there is no terminal: a line every ten seconds, and one at the end of long work."""

    def __init__(self, description: str, total: int | None, done: int) -> None:
        super().__init__(total, done)
        self.description = description
        self.next_line = QUIET_SECONDS  # after the start
        self.printed: int | None = None  # items done according to the last line

    def show(self, elapsed: float) -> None:
        if elapsed >= self.next_line:
            self._line(elapsed)
            self.next_line = elapsed + PLAIN_SECONDS

    def close(self) -> None:
        if self.printed is not None and self.printed != self.done:
            self._line(self.elapsed())

    def _line(self, elapsed: float) -> None:
        self.printed = self.done
        count = f"{self.done:,}/{self.total:,} ({self.done / self.total:.0%})" if self.total else f"{self.done:,}"
        info = ", ".join([f"{self.description}: {count}", *self.details(elapsed)])
        _print(_console(stderr=True), Text(visible(info)))


def _ignore(n: int = 1, *, seconds_left: float | None = None, **fields: Any) -> None:
    """Replaces a progress display with `--quiet`."""


def _console(*, stderr: bool) -> Console:
    """The console to print on: that of the progress bar while one is drawn on the same terminal, else a new one."""
    if _mode.live is not None and (sys.stderr if stderr else sys.stdout).isatty():
        return _mode.live
    return _new_console(stderr=stderr)


def _new_console(*, stderr: bool) -> Console:
    """A console on the stream as it is now: tests and progress bars replace `sys.stdout` and `sys.stderr`."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else PLAIN_WIDTH)


def _print(console: Console, text: Text) -> None:
    """Wraps at spaces on a terminal, nowhere else; a long path stays whole so that it can be copied."""
    with _named(console.file):
        console.print(text, overflow="ignore", crop=False, soft_wrap=not console.is_terminal)


@contextmanager
def _named(stream: IO[str]) -> Iterator[None]:
    """Gives an error of writing the name of the stream, e.g. `<stdout>` on a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or getattr(stream, "name", None)
        raise


def _write_json(obj: dict[str, Any]) -> None:
    _mode.answered = True
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        encoded_alike = text.encode(sys.stdout.encoding or "utf-8") == text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8, or a stream of another encoding
        encoded_alike = False
    if not encoded_alike:
        text = json.dumps(_plain(obj), indent=2, allow_nan=False)
    with _named(sys.stdout):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
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
