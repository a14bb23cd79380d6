"""A summary of the runs in a folder, for `codetr runs`: read from each run folder's text files, without PyTorch.

Of metrics.jsonl only the end is read, as far back as the newest line of training and the newest evaluation: hundreds of
long runs take a second. A damaged run folder is reported as such and hides no other.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codetr_cli.locks import is_locked
from codetr_cli.reading import MAX_TOML_BYTES, parse_json, parse_toml, read_bytes
from codetr_cli.runs.metrics_log import (
    MAX_STEP,
    Line,
    has_numbers,
    is_evaluation,
    parse_line,
    read_lines,
    texts_from_the_end,
)

DEPTH = 4  # levels below the given folder
# How far back the newest evaluation is searched, and how many lines may be no lines of metrics at the end.
MAX_SEARCHED_LINES, MAX_SEARCHED_BYTES, MAX_OTHER_LINES = 1_000_000, 1 << 29, 10_000
MAX_SHOWN = 120  # characters of a text from a file
FRESH_S = 600.0  # where a disk has no locks, a run that wrote this recently counts as running

State = Literal["running", "interrupted", "finished", "diverged", "broken"]


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


def newest_run(folder: Path) -> Path | None:
    """The run in a folder that has written last; the folder itself if it is a run, None where there is none."""
    ages = {run: _age_s(run) for run in find_runs(folder)}
    known = {run: age_s for run, age_s in ages.items() if age_s is not None}
    return min(known, key=lambda run: (known[run], str(run)), default=None)


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Run folders, complete or not, and folders that cannot be read; folders inside a run are not searched.

    Links are followed after everything else, and each folder is searched once, by whatever name.
    """
    waiting, links = deque([(folder, depth)]), deque[tuple[Path, int]]()
    seen: set[tuple[int, int]] = set()
    while waiting or links:
        path, depth = (waiting or links).popleft()
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                names = {entry.name: entry for entry in entries}
        except OSError:
            yield path
            continue
        if "settings.toml" in names or {"metrics.jsonl", "checkpoints"} & names.keys():
            yield path
        elif depth:
            for name in sorted(names):
                if not name.startswith(".") and _is_folder(names[name]):
                    (links if names[name].is_symlink() else waiting).append((path / name, depth - 1))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; not for links in a circle."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_run(folder: Path) -> RunRow:
    """The summary of a run folder; nothing in it makes this fail."""
    run, age_s = str(folder), _age_s(folder)
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries}
        if "settings.toml" not in names:
            raise ValueError("it has no settings.toml")
    except OSError as error:
        return RunRow(run=run, state="broken", age_s=age_s, problem=f"it cannot be read: {error.strerror}")
    except ValueError as error:
        return RunRow(run=run, state="broken", age_s=age_s, problem=str(error))
    try:
        preset, epochs, max_steps = read_limits(folder / "settings.toml")
    except Exception as error:
        return RunRow(run=run, state="broken", age_s=age_s, problem=_problem("settings.toml", error))
    try:
        newest, training, evaluation = _newest_lines(folder / "metrics.jsonl", _evaluates(folder))
        best_ap = _best_ap(folder / "metrics.jsonl", evaluation) if evaluation else None
        counted = newest or {"kind": None, "step": 0, "epoch": 0}
        if not has_numbers(counted, "epoch"):
            raise ValueError("a line of it has no epoch")
        return RunRow(
            run=run,
            preset=preset,
            state=_state(folder, counted["kind"], age_s),
            best_ap=best_ap,
            epochs_done=int(counted["epoch"]),
            epochs=None if max_steps else epochs,
            step=counted["step"],
            max_steps=max_steps,
            loss=float(training["loss"]) if training and has_numbers(training, "loss") else None,
            age_s=age_s,
        )
    except Exception as error:
        return RunRow(run=run, preset=preset, state="broken", age_s=age_s, problem=_problem("metrics.jsonl", error))


def read_limits(path: Path) -> tuple[str, int, int | None]:
    """Preset, epochs and number of steps of a run.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold the settings of a run.
    """
    table = parse_toml(read_bytes(path, MAX_TOML_BYTES).decode("utf-8"))
    train = table.get("train")
    if not isinstance(train, dict) or "epochs" not in train or not isinstance(table.get("name"), str):
        raise ValueError("it has no name or no train.epochs")
    limits = {name: train[name] for name in ("epochs", "max_steps") if name in train}
    for name, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_STEP:
            raise ValueError(f"train.{name} is not a number of {name.removeprefix('max_')}")
    return shortened(table["name"]), int(limits["epochs"]), limits.get("max_steps")


def _problem(name: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else error
    return f"its {name} cannot be read: {shortened(str(reason or type(error).__name__))}"


def shortened(text: str) -> str:
    """A text of a file for a table: its beginning."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


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
        inputs = parse_json(read_bytes(folder / "origin.json", MAX_TOML_BYTES))
        return inputs.get("val_annotations") is not None
    except (OSError, ValueError, AttributeError):
        return True


def _newest_lines(path: Path, evaluates: bool) -> tuple[Line | None, Line | None, Line | None]:
    """The newest line of any kind, of training, and of an evaluation; a line that a kill cut short is skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something, but no line of metrics.
    """
    newest = training = evaluation = None
    found_any, searched = False, 0
    try:
        for index, text in enumerate(texts_from_the_end(path)):
            searched += len(text)
            if index == (MAX_SEARCHED_LINES if newest else MAX_OTHER_LINES) or searched > MAX_SEARCHED_BYTES:
                break
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
    """The highest AP so far, stored with each evaluation; files of earlier versions are read in full.

    Raises:
        ValueError: an evaluation has no AP.
    """
    if "best" in newest:
        values = [newest["best"]] if has_numbers(newest, "best") else []
    else:
        values = [line["metrics"]["AP"] for line in read_lines(path, b'"eval"') if is_evaluation(line)]
    if not values:
        raise ValueError("an evaluation in it has no AP")
    best = float(max(values))
    return best if best >= 0 else None


def _kind(text: bytes) -> str | None:
    """The kind of a line without parsing it."""
    for kind in ("train", "eval"):
        if text.startswith(b'{"kind": "%s"' % kind.encode()):
            return kind
    return None
