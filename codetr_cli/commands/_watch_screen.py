"""What `codetr watch` shows of a run, as lines for a terminal, as plain sentences, and as the object of `--json`."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from codetr_cli import console
from codetr_cli.commands._text_plots import curve
from codetr_cli.number_text import bytes_text, cell_text, seconds_text

if TYPE_CHECKING:
    from pathlib import Path

    from codetr_cli.console import Line
    from codetr_cli.runs.history import Series
    from codetr_cli.runs.watch import RunStatus

LABEL, VALUE, BEST = 20, 11, 30
"""Columns of names, of numbers, and of the best AP behind them; the rest of a line is for the curve."""
DONE, PLAIN_DONE = ("━", "╌"), ("#", "-")
TALL, UNFOLDED = 30, 10_000
"""Lines of a terminal from which what is too long for one gets several; below, it is cut, and losses stay in sight."""
LONGEST_CURVE = 60
LEAST_EVENTS, MOST_EVENTS = 3, 12
MOST_NAMES = 6
DAY_S = 86400.0

STATE_STYLES = {
    "starting": "cyan",
    "running": "green",
    "silent": "yellow",
    "interrupted": "yellow",
    "finished": "bold green",
    "diverged": "bold red",
    "gone": "bold red",
}


def screen_lines(status: RunStatus, width: int, height: int | None = None) -> list[Line]:
    """The screen of a run.

    Args:
        status: of the run.
        width: columns of the terminal.
        height: its lines; None: as many as needed.
    """
    fold = width if height is None or height >= TALL else UNFOLDED
    head = [*_title(status, width, fold), *_progress(status, width, fold)]
    numbers, files = list(_numbers(status, fold)), list(_files(status))
    room = None if height is None else height - len(head) - len(numbers) - len(files) - 5  # four gaps, and a heading
    curves = _fitting(list(_losses(status, width)), list(_metrics(status, width, fold)), room)
    left = MOST_EVENTS if room is None else min(room - len(curves), MOST_EVENTS)
    events: list[Line] = [_event(text) for text in (status.events[-left:] if left > 0 else [])]
    blocks: list[list[Line]] = [head, curves, numbers, [[("events", "bold")], *events] if events else [], files]
    lines: list[Line] = []
    for block in filter(None, blocks):
        lines += [*([[("", "")]] if lines else []), *block]
    return lines if height is None else lines[:height]


def state_text(status: RunStatus) -> str:
    """A sentence on the process and the age of what is shown."""
    process = status.process
    who = "the process"
    if process is not None:
        who = f"process {process.pid} on {process.host}"
    age = None if status.age_s is None else f"last line {age_text(status.age_s)} ago"
    if status.problem:
        return status.problem
    if status.is_over:
        return age or ""
    if status.is_seen:
        text = {
            "starting": f"{who} is alive",
            "running": f"{who} is alive",
            "interrupted": f"{who} is gone; the same command continues the run",
        }[status.state]
    elif status.state == "silent":
        text = f"{who} cannot be seen from here, and has written nothing for long"
    else:
        text = f"{who} cannot be seen from here"
    return ", ".join(filter(None, (text, age)))


def change_text(status: RunStatus) -> str:
    """The newest numbers in one line."""
    history = status.history
    parts = [f"step {_of(status.step, status.total_steps)}"]
    if (loss := history.number("loss")) is not None:
        parts.append(f"loss {cell_text(loss)}")
    if history.evaluation is not None and history.best is not None:
        parts.append(f"AP {_ap(history.evaluation)} (best {_ap(history.best)})")
    if (rate := history.number("images_per_s")) is not None:
        parts.append(f"{cell_text(rate)} images/s")
    if status.seconds_left:
        parts.append(f"{seconds_text(status.seconds_left)} left")
    return ", ".join(parts)


def age_text(age_s: float) -> str:
    """A time that has passed, in days where it is long."""
    if age_s >= 2 * DAY_S:
        return f"{age_s / DAY_S:.0f} days"
    return seconds_text(age_s) if age_s >= 60 else f"{max(age_s, 1):.0f} s"


def as_json(status: RunStatus) -> dict[str, Any]:
    """The object of `--json`."""
    history, process = status.history, status.process
    training = history.training or {}
    return {
        "run": status.run,
        "preset": status.preset,
        "state": status.state,
        "process": None if process is None else vars(process) | {"is_alive": process.is_alive},
        "is_seen": status.is_seen,
        "age_s": status.age_s,
        "step": status.step,
        "total_steps": status.total_steps,
        "epoch": status.epochs_done,
        "epochs": status.epochs,
        "seconds_left": status.seconds_left,
        "loss": history.number("loss"),
        "groups": dict(history.groups()),
        "lr": history.number("lr"),
        "grad_norm": history.number("grad_norm"),
        "images_per_s": history.number("images_per_s"),
        "data_wait": history.number("data_wait"),
        "memory_bytes": training.get("memory_bytes"),
        "ram_free_bytes": training.get("ram_free_bytes"),
        "skipped_steps": history.skipped,
        "evaluation": history.evaluation,
        "best_evaluation": history.best,
        "ap_by_step": [list(point) for point in _points(status, "eval/AP")],
        "loss_by_step": [list(point) for point in _points(status, "loss")],
        "events": status.events,
        "plots": status.plots.plots,
        "val_pictures": [picture.path for picture in status.plots.newest_pictures],
        "problem": status.problem or None,
    }


def _title(status: RunStatus, width: int, fold: int) -> Iterator[Line]:
    state, preset = status.state, f" ({status.preset})" if status.preset else ""
    name, room = str(status.run), max(width - len(state) - len(preset) - 2, 10)
    if len(name) > room:
        name = f"...{name[3 - room :]}"  # runs differ at the end
    yield [(state, STATE_STYLES[state]), (f"  {name}", "bold"), (preset, "dim")]
    text = state_text(status)
    for line in textwrap.wrap(text, fold):
        yield [(line, "red" if status.problem else "dim")]


def _progress(status: RunStatus, width: int, fold: int) -> Iterator[Line]:
    total, step = status.total_steps, status.step
    epoch = "" if status.epochs is None else f"epoch {min(status.epochs_done + 1, status.epochs)} of {status.epochs}, "
    text = f"{epoch}step {_of(step, total)}"
    left = "" if not status.seconds_left else f", {seconds_text(status.seconds_left)} left"
    if not total:
        yield [(text + left, "")]
        return
    share = min(step / total, 1.0)
    end = f" {share:4.0%}{left}"
    if len(text) + len(end) > fold:
        yield [(f"{text} {share:4.0%}", "")]
        if left:
            yield [(left.removeprefix(", "), "")]
        return
    room = min(width - len(text) - len(end) - 2, 50)
    bar: list[tuple[str, str]] = []
    if room >= 10:
        full, empty = DONE if console.can_show("".join(DONE)) else PLAIN_DONE
        done = round(share * room)
        bar = [(" ", ""), (full * done, "cyan"), (empty * (room - done), "dim")]
    yield [(text, ""), *bar, (end, "")]


def _fitting(losses: list[Line], metrics: list[Line], room: int | None) -> list[Line]:
    """The curves that there is room for: all, those of losses and the first of metrics, or the first of both."""
    for curves in (losses + metrics, losses + metrics[:1]):
        if room is None or len(curves) + LEAST_EVENTS <= room:
            return curves
    return losses[:1] + metrics[:1]


def _losses(status: RunStatus, width: int) -> Iterator[Line]:
    """The loss and those of groups, with their courses."""
    history = status.history
    if history.training is None:
        return
    yield _row("loss", history.number("loss"), history.series.get("loss"), width, "cyan", is_loss=True)
    for name, value in history.groups():
        yield _row(f"  {name}", value, history.series.get(f"loss/{name}"), width, "cyan", is_loss=True)


def _metrics(status: RunStatus, width: int, fold: int) -> Iterator[Line]:
    """AP and further metrics of the evaluations, with their courses."""
    history = status.history
    if history.evaluation is None or history.best is None:
        return
    best = history.best
    line = _row("AP", history.evaluation["metrics"]["AP"], history.series.get("eval/AP"), width - BEST, "green")
    step = f"step {best['step']:,}"
    if fold >= LABEL + VALUE + BEST:
        yield [*line, (f"  best {_ap(best)} at {step}", "bold")]
    else:
        yield from (line, [(f"{f'  best, {step}':<{LABEL}}{_ap(best):>{VALUE}}", "bold")])
    for name, series in history.series.items():
        metric = name.removeprefix("eval/")
        if name.startswith("eval/") and metric != "AP":
            yield _row(f"  {metric}", series.values[-1], series, width - BEST, "green")


def _row(
    name: str, value: float | None, series: Series | None, width: int, style: str, *, is_loss: bool = False
) -> Line:
    room = min(width - LABEL - VALUE - 2, LONGEST_CURVE)
    drawn = "" if series is None else curve(series.values, room, logarithmic=is_loss)
    is_main = not name.startswith(" ")
    number = cell_text(value) if is_loss else "-" if value is None or value < 0 else f"{value:.3f}"
    return [
        (f"{name[: LABEL - 1]:<{LABEL}}", "bold" if is_main else ""),
        (f"{number:>{VALUE}}", "bold" if is_main else ""),
        (f"  {drawn}", style if is_main else f"dim {style}"),
    ]


def _numbers(status: RunStatus, fold: int) -> Iterator[Line]:
    history = status.history
    if history.training is None:
        return
    rates = [("learning rate", history.number("lr")), ("gradient norm", history.number("grad_norm"))]
    yield from _pairs([(name, None if value is None else cell_text(value)) for name, value in rates], fold)
    wait, rate = history.number("data_wait"), history.number("images_per_s")
    yield from _pairs(
        [
            ("images/s", None if rate is None else cell_text(rate)),
            ("waiting for data", None if wait is None else f"{wait:.0%} of the time"),
        ],
        fold,
    )
    memory, free = history.number("memory_bytes"), history.number("ram_free_bytes")
    is_gpu = status.process is not None and status.process.device not in ("", "cpu")
    yield from _pairs(
        [
            ("GPU memory" if is_gpu else "memory", f"{bytes_text(memory)} at most" if memory else None),
            ("free RAM", None if free is None else bytes_text(free)),
        ],
        fold,
    )
    if history.skipped:
        yield [(f"{'skipped steps':<{LABEL}}", ""), (f"{history.skipped:>{VALUE},}", "yellow")]


def _pairs(pairs: Sequence[tuple[str, str | None]], fold: int) -> Iterator[Line]:
    """Names with their values in one line, or in one each where that is too long."""
    known = [(name, value) for name, value in pairs if value is not None]
    columns = [[(f"{name:<{LABEL}}", "dim"), (f"{value:>{VALUE}}", "")] for name, value in known]
    line = [*columns[:1], *([(f"    {name} ", "dim"), (f"{value:>{VALUE}}", "")] for name, value in known[1:])]
    if sum(len(text) for pair in line for text, _ in pair) <= fold:
        yield [part for pair in line for part in pair]
    else:
        yield from columns


def _event(text: str) -> Line:
    """An event with its time, without the date if it is that of today."""
    moment, _, said = text.partition("  ")
    if not said:
        return [(text, "dim")]
    date, _, clock = moment.partition(" ")
    shown = clock if date == time.strftime("%Y-%m-%d") else moment
    return [(f"{shown}  ", "dim"), (said, "")]


def _files(status: RunStatus) -> Iterator[Line]:
    """Paths of the newest pictures and plots in the run folder."""
    plots, pictures = status.plots.plots, [picture.path for picture in status.plots.newest_pictures]
    if plots:
        age = "" if status.plots.written is None else f" ({age_text(max(time.time() - status.plots.written, 0))} ago)"
        yield [("plots     ", "dim"), (_names(status, plots) + age, "")]
    if pictures:
        yield [("pictures  ", "dim"), (_names(status, pictures), "")]


def _names(status: RunStatus, paths: Sequence[Path]) -> str:
    """Paths in one folder of the run, which is named once."""
    more = "" if len(paths) <= MOST_NAMES else ", ..."
    return f"{paths[0].parent.relative_to(status.run)}/" + ", ".join(path.name for path in paths[:MOST_NAMES]) + more


def _points(status: RunStatus, name: str) -> list[tuple[int, float]]:
    series = status.history.series.get(name)
    return [] if series is None else series.points


def _ap(line: dict[str, Any]) -> str:
    return f"{line['metrics']['AP']:.3f}" if line["metrics"]["AP"] >= 0 else "-"


def _of(done: int, total: int | None) -> str:
    return f"{done:,}/{total:,}" if total else f"{done:,}"
