"""`codetr watch`: shows a training while it runs, from the files of its run folder."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.commands import _watch_screen as screen
from codetr_cli.errors import ConfigError

if TYPE_CHECKING:
    from codetr_cli.runs.watch import RunStatus, RunWatcher

EXAMPLES = ("codetr watch", "codetr watch runs/co_dino_r50/3", "codetr watch /mnt/cluster/runs/3 --once")
PAUSE_S = 2.0
LEAST_PAUSE_S = 0.2
REDRAW_S = 1.0
PLAIN_S = 10.0
"""Between two lines on the progress of a run where there is no terminal."""


def watch(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run folder, or a folder with runs: the newest. Default: runs/."),
    ] = None,
    every: Annotated[
        float, opt.option("--every", "SECONDS", "How often the files are read.", opt.INPUT, min=LEAST_PAUSE_S, max=3600)
    ] = PAUSE_S,
    once: Annotated[bool, opt.flag("--once", "Print the state now and exit.", opt.OUTPUT)] = False,
    json_output: opt.JsonOption = False,
) -> None:
    """Watch a training: losses, AP, speed, memory, time left, last events.

    Everything is read from the run folder, which may be on a shared disk or a copy that grows (rsync). Ends when the
    training ends; Ctrl-C ends only the watching. Without a terminal, prints a line when something has changed. --json
    prints one object and exits.
    """
    console.set_mode(json=json_output)
    from codetr_cli.runs.watch import RunWatcher

    watcher = RunWatcher(_find(run))
    if json_output or once:
        status = watcher.look().status
        if not json_output:
            _show(status)
        console.result_json(screen.as_json(status))
    elif console.has_screen():
        _show(_watch_on_screen(watcher, every))
    else:
        _watch_plainly(watcher, every)


def _find(given: Path | None) -> Path:
    """The run folder that is meant: the newest one where the folder has several.

    Raises:
        ConfigError: there is none.
    """
    from codetr_cli.runs.listing import newest_run

    folder = Path("runs") if given is None else given
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: `codetr train` makes runs in runs/; give a run folder")
    found = newest_run(folder)
    if found is None:
        raise ConfigError(f"no runs in {folder}: `codetr train` makes runs in runs/; give a run folder")
    return found


def _show(status: RunStatus) -> None:
    console.result_pieces(screen.screen_lines(status, console.columns()))


def _watch_on_screen(watcher: RunWatcher, every: float) -> RunStatus:
    """Draws the screen until the training ends or the user stops watching, and returns the newest status."""
    status, looked = watcher.look().status, time.monotonic()
    with suppress(KeyboardInterrupt), _ended_by_sigterm(), console.screen() as draw:
        while not status.is_over:
            aged = status.age_s and status.age_s + time.monotonic() - looked
            draw(screen.screen_lines(replace(status, age_s=aged), console.columns(), console.rows()))
            time.sleep(min(every, REDRAW_S))
            if time.monotonic() - looked >= every:
                status, looked = watcher.look().status, time.monotonic()
    return status


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the program as an error does, so that the terminal gets its former content again."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch_plainly(watcher: RunWatcher, every: float) -> None:
    """Prints the state, and then a line for each change, until the training ends or the user stops watching."""
    status = watcher.look().status
    _show(status)
    state, step, due = (status.state, status.problem), status.step, time.monotonic() + PLAIN_S
    with suppress(KeyboardInterrupt):
        while not status.is_over:
            sys.stdout.flush()
            time.sleep(every)
            look = watcher.look()
            status = look.status
            for event in look.events:
                console.result(event)
            if (status.state, status.problem) != state:
                state = status.state, status.problem
                console.result(f"{status.state}: {screen.state_text(status)}")
            if status.step != step and (time.monotonic() >= due or status.is_over):
                step, due = status.step, time.monotonic() + PLAIN_S
                console.result(screen.change_text(status))
