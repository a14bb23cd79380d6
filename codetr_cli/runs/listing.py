"""A summary of the runs in a folder, for `codetr runs`: read from each run folder's text files, without PyTorch.

Of metrics.jsonl only the end is read, as far back as the newest line of training and the newest evaluation: hundreds of
long runs take a second. A damaged run folder is reported as such and hides no other.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codetr_cli.files import is_locked

DEPTH = 4  # levels below the given folder
BLOCK_BYTES = 1 << 16
FRESH_S = 600.0  # where a disk has no locks, a run that wrote this recently counts as running

State = Literal["running", "interrupted", "finished", "diverged", "broken"]
Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run.

    Attributes:
        run: its folder.
        preset: that it trains; None when its settings cannot be read.
        state: running: a process holds its lock. interrupted: it can be continued. broken: see `problem`.
        best_ap: highest AP so far, None before the first evaluation.
        epochs_done: completed.
        epochs: of the whole run, None where steps are counted.
        step: optimizer steps done, as far as they are logged.
        max_steps: of the whole run, None where epochs are counted.
        loss: of the newest line of training.
        age_s: since something was written.
        problem: what is wrong with the folder, None when nothing is.
    """

    run: str
    preset: str | None = None
    state: State = "interrupted"
    best_ap: float | None = None
    epochs_done: int = 0
    epochs: int | None = None
    step: int = 0
    max_steps: int | None = None
    loss: float | None = None
    age_s: float | None = None
    problem: str | None = None


def list_runs(folder: Path) -> list[RunRow]:
    """All runs in a folder, the one that wrote last first; the folder may be a run itself."""
    rows = [read_run(path) for path in find_runs(folder)]
    return sorted(rows, key=lambda row: (row.age_s is None, row.age_s, row.run))


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Run folders, complete or not, in the order of their names; folders inside a run are not searched."""
    try:
        names = {entry.name: entry.is_dir() for entry in os.scandir(folder)}
    except OSError:
        return  # not readable
    if "settings.toml" in names or {"metrics.jsonl", "checkpoints"} & names.keys():
        yield folder
    elif depth:
        for name in sorted(names):
            if names[name] and not name.startswith("."):
                yield from find_runs(folder / name, depth - 1)


def read_run(folder: Path) -> RunRow:
    """The summary of a run folder; nothing in it makes this fail."""
    run, age_s = str(folder), _age_s(folder)
    try:
        settings = tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8"))
        preset, train = str(settings["name"]), settings["train"]
        epochs, max_steps = int(train["epochs"]), train.get("max_steps")
    except FileNotFoundError:
        return RunRow(run=run, state="broken", age_s=age_s, problem="it has no settings.toml")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RunRow(run=run, state="broken", age_s=age_s, problem=f"its settings.toml cannot be read: {error}")
    try:
        newest, training, evaluation = _newest_lines(folder / "metrics.jsonl", _evaluates(folder))
        best_ap = _best_ap(folder / "metrics.jsonl", evaluation) if evaluation else None
        counted = newest or {"step": 0, "epoch": 0}
        return RunRow(
            run=run,
            preset=preset,
            state=_state(folder, counted.get("kind"), age_s),
            best_ap=best_ap,
            epochs_done=int(counted["epoch"]),
            epochs=None if max_steps else epochs,
            step=int(counted["step"]),
            max_steps=max_steps,
            loss=float(training["loss"]) if training else None,
            age_s=age_s,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"its metrics.jsonl cannot be read: {type(error).__name__}: {error}"
        return RunRow(run=run, preset=preset, state="broken", age_s=age_s, problem=problem)


def _state(folder: Path, newest_kind: str | None, age_s: float | None) -> State:
    locked = is_locked(folder / ".lock")
    if locked is None:
        locked = newest_kind not in ("end", "diverged") and age_s is not None and age_s < FRESH_S
    if locked:
        return "running"
    ends: dict[str | None, State] = {"end": "finished", "diverged": "diverged"}
    return ends.get(newest_kind, "interrupted")


def _age_s(folder: Path) -> float | None:
    written = []
    for name in ("metrics.jsonl", "events.log", "settings.toml"):
        with suppress(OSError):
            written.append((folder / name).stat().st_mtime)
    return max(0.0, time.time() - max(written)) if written else None


def _evaluates(folder: Path) -> bool:
    """Whether the run may have evaluations."""
    try:
        return json.loads((folder / "origin.json").read_bytes()).get("val_annotations") is not None
    except (OSError, ValueError, AttributeError):
        return True


def _newest_lines(path: Path, evaluates: bool) -> tuple[Line | None, Line | None, Line | None]:
    """The newest line of any kind, of training, and of an evaluation; a line that a kill cut short is skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something, but no line of metrics.
    """
    newest = training = evaluation = None
    found_any = False
    try:
        for index, text in enumerate(_lines_from_the_end(path)):
            found_any = found_any or bool(index and text.strip())  # the last line may be cut short
            kind = _kind(text)
            wanted = newest is None or (training is None and kind == "train") or kind == "eval"
            line = parse_line(text) if wanted else None
            if line is None:
                continue
            newest = newest or line
            training = line if training is None and kind == "train" else training
            evaluation = line if kind == "eval" else evaluation
            if training is not None and (evaluation is not None or not evaluates):
                break
    except FileNotFoundError:
        return None, None, None  # killed before its first step
    if found_any and newest is None:
        raise ValueError("no line of it is one of metrics")
    return newest, training, evaluation


def _best_ap(path: Path, newest: Line) -> float | None:
    """The highest AP so far, stored with each evaluation; files of earlier versions are read in full."""
    best = newest.get("best")
    if best is None:
        evaluations = [parse_line(text) for text in path.read_bytes().splitlines() if _kind(text) == "eval"]
        best = max(line["metrics"]["AP"] for line in evaluations if line is not None)
    return float(best) if best >= 0 else None


def _kind(text: bytes) -> str | None:
    """The kind of a line without parsing it."""
    for kind in ("train", "eval"):
        if text.startswith(b'{"kind": "%s"' % kind.encode()):
            return kind
    return None


def parse_line(text: bytes) -> Line | None:
    """A line of metrics.jsonl; None where it is not one, e.g. because a kill cut it short."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"kind", "step"} <= line.keys() else None


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """The lines of a file, last one first, read in blocks as needed."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        rest = b""
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            first, *whole = (file.read(end - start) + rest).split(b"\n")
            yield from reversed(whole)
            rest, end = first, start
        if rest:
            yield rest
