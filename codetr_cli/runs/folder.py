"""The run folder: what is in it, its log files, and checkpoints that survive a kill at any instant.

    settings.toml      every resolved setting        origin.json   data files and initial weights
    metrics.jsonl      one line per log step, one per evaluation, one at the end
    events.log         the package's log with times   plots/        losses, learning rate, AP, validation images
    memory.json        what was checked, fitted and decided because of memory use
    process.json       which process trains here, or did last
    report.html        of the best checkpoint, with report.json; both are listed in .codetr_results
    checkpoints/last   newest; best: highest AP; previous: one generation older. Each is a folder of
        model.safetensors (the weights, or their average where one is kept), state.pt (the rest of the training state),
        sharded/ (the shards that each process of a sharded training writes) and sums.json (SHA-256 of all files)

A checkpoint is written into a temporary folder, synced, and renamed into place. `recover` completes or undoes whatever
a kill interrupted, when the folder is opened next.

Killed at any instant, the same command continues the run. Files are replaced atomically or appended to, in this order:

    restart         the old folder is renamed; only then is there a new one
    start           .lock, plots/, checkpoints/, origin.json; then settings.toml, which makes the folder a run: without
                    it the folder is empty, and the same command starts there
    continuation    .lock; the end line is dropped from metrics.jsonl, so that the run counts as interrupted from here
                    on; origin.json, then settings.toml, with longer limits or another place of the data; `recover`
    memory          memory.json before settings.toml: both sides of a comparison of settings are adapted by it
    first step      bad_files.txt is fixed by the first checkpoint, and written again before there is one
    resumption      a checkpoint is read; lines after its step are dropped from metrics.jsonl
    step            its line in metrics.jsonl, then its checkpoint: a line without a checkpoint is dropped later
    evaluation      checkpoint, `best`, then the line: without the line it is repeated
    rollback        the older checkpoint becomes `last`, then the lines: without them the same steps fail again
    end             checkpoint, evaluation, plots; the end line comes last; the report follows it
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from codetr_cli.config.overrides import to_toml
from codetr_cli.config.presets import load_preset
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.escaping import visible
from codetr_cli.files import (
    DISK_FULL,
    WEIGHTS_NAME,
    make_way,
    replace_file,
    sync_folder,
    write_text,
)
from codetr_cli.locks import FileLock
from codetr_cli.reading import check_regular, parse_json, read_bytes
from codetr_cli.runs.checksums import SUMS, check_sums, write_sums
from codetr_cli.runs.metrics_log import ENDS, read_lines
from codetr_cli.runs.places import TEMPORARY, check_places, has_other_logs
from codetr_cli.runs.plot_files import VAL_IMAGES
from codetr_cli.runs.stored_state import check_state
from codetr_cli.runtime.disk_errors import append, move, persistently, writing
from codetr_cli.weights import torch_files
from codetr_cli.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from codetr_cli.weights.values import check_weights

logger = logging.getLogger(__name__)

STATE = "state.pt"
MAX_REASON = 300  # letters of an error message
SHARDED = "sharded"
# What a run folder may hold before its settings are written.
BEFORE_SETTINGS = frozenset((".lock", "events.log", "origin.json", "plots", "checkpoints", "slurm"))
MAX_INPUTS_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Data and initial weights of a run; paths are absolute. Stored as origin.json.

    Attributes:
        train_annotations: annotation file of the training images, or the folders that were read.
        train_digest: digest of the training annotations; None for runs of earlier versions.
        val_annotations: the same of the validation images, None when the run never evaluates.
        val_digest: digest of the validation annotations.
        weights: the checkpoint to fine-tune, None for a training from scratch.
    """

    train_annotations: str
    train_digest: str | None = None
    val_annotations: str | None = None
    val_digest: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read: the weights, the training state, and the folder of both."""

    weights: Checkpoint
    state: dict[str, Any]
    folder: Path


class RunFolder:
    """One run's folder, which need not exist yet, and everything that is written there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_path = path / "settings.toml"
        self.inputs_path = path / "origin.json"
        self.metrics_path = path / "metrics.jsonl"
        self.events_path = path / "events.log"
        self.plots_dir = path / "plots"
        self.checkpoints_dir = path / "checkpoints"
        self.last = self.checkpoints_dir / "last"
        self.best = self.checkpoints_dir / "best"
        self.previous = self.checkpoints_dir / "previous"

    # ------------------------------------------------------------------------------------------------ opening, status

    def check(self) -> None:
        """Refuses a folder in which names of a run are links, pipes or the like; see `check_places`."""
        check_places(self.path)

    def kind(self) -> Literal["empty", "foreign", "run"]:
        """As `status`, without what a run has written after it began."""
        if self.settings_path.is_file():
            # Settings alone may be a copy, e.g. beside plots of something else.
            return "foreign" if not self._has_begun() and self._has_files_of_others() else "run"
        entries = self.path.iterdir() if self.path.is_dir() else ()
        names = {entry.name for entry in entries if not fnmatch(entry.name, TEMPORARY)}
        return "foreign" if names - BEFORE_SETTINGS or self._has_files_of_others() else "empty"

    def _has_begun(self) -> bool:
        """Whether a training has been here: each leaves its lock file, which copies of a run may lack."""
        marks = (self.path / ".lock", self.metrics_path, self.last, self.best, self.previous)
        return any(map(os.path.lexists, marks))

    def _has_files_of_others(self) -> bool:
        """Whether there is what a run would replace or append to, but only has once it has begun, or never."""
        plots = self.plots_dir.iterdir() if self.plots_dir.is_dir() else ()
        return (
            any(map(os.path.lexists, (self.last, self.best, self.previous)))
            or any(not fnmatch(entry.name, TEMPORARY) for entry in plots)
            or (os.path.lexists(self.inputs_path) and self.inputs() is None)
            or has_other_logs(self.path)
        )

    def status(self) -> Literal["empty", "foreign", "interrupted", "finished"]:
        """Whether the path is empty, holds something else, or holds a run that is interrupted or finished."""
        kind = self.kind()
        if kind != "run":
            return kind
        return "finished" if any(line["kind"] == "end" for line in self.lines(containing="end")) else "interrupted"

    def open(self, settings: Settings, inputs: RunInputs) -> None:
        """Creates the folder, or continues the run in it, and writes settings and inputs; see the order above."""
        has_ended = any(line["kind"] in ENDS for line in self.lines())
        with writing(self.path):
            self.plots_dir.mkdir(parents=True, exist_ok=True)
            self.checkpoints_dir.mkdir(exist_ok=True)
            # A run that ended with other limits must not count as finished with the new ones.
            if has_ended:
                self._write_metrics(line for line in self.lines() if line["kind"] not in ENDS)
            write_text(self.inputs_path, json.dumps(asdict(inputs), indent=2) + "\n")
            # The settings mark the folder as a run, so they come last.
            write_text(self.settings_path, to_toml(settings))

    def settings(self) -> Settings:
        """The settings of the run.

        Raises:
            ConfigError: they cannot be read, e.g. because another version of the program wrote them.
        """
        return load_preset(str(self.settings_path))

    def inputs(self) -> RunInputs | None:
        """Data and initial weights of the run; None when that cannot be read."""
        try:
            inputs = RunInputs(**parse_json(read_bytes(self.inputs_path, MAX_INPUTS_BYTES)))
        except (OSError, ValueError, TypeError):
            return None
        return inputs if all(value is None or isinstance(value, str) for value in asdict(inputs).values()) else None

    def lock(self, patience_s: float = 0.0) -> FileLock:
        """Locks the folder for this process until it ends or releases the lock.

        Args:
            patience_s: seconds to wait for another process to release it.

        Raises:
            ConfigError: another training writes here.
        """
        lock = FileLock(self.path / ".lock")
        with writing(self.path):
            acquired = lock.acquire(patience_s)
        if not acquired:
            raise ConfigError(
                f"another training is writing into {self.path}: wait for it or stop it, or give another folder with "
                "--run"
            )
        return lock

    # ------------------------------------------------------------------------------------------------ metrics, events

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl; its `kind` is train, eval, skip, memory, rollback, end or diverged."""
        self._append(self.metrics_path, json.dumps(line) + "\n")

    def event(self, text: str) -> None:
        """Appends a line with the time to events.log; code logs instead, see `event_log`."""
        self._append(self.events_path, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {visible(text)}\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl, see `lines`."""
        return list(self.lines())

    def lines(self, containing: str = "") -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl one by one; one that a kill cut short is skipped.

        Args:
            containing: only lines with this text somewhere.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            yield from read_lines(self.metrics_path, containing.encode())
        except OSError as error:
            raise ConfigError(f"cannot read {self.metrics_path}: {error.strerror}") from error

    def rewind(self, step: int) -> None:
        """Drops what was logged after a step, and any end line, so that a resumed training writes no line twice."""
        kept = (line for line in self.lines() if 0 < step >= line["step"] and line["kind"] not in ENDS)
        with writing(self.path):
            self._write_metrics(kept)

    def _write_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        with replace_file(self.metrics_path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _append(self, path: Path, text: str) -> None:
        with writing(self.path):
            self.settings_path.stat()  # a deleted folder must not be recreated with a part of a run in it
            append(path, text)

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def save(
        self,
        weights: dict[str, Tensor],
        state: dict[str, Any],
        *,
        settings: Settings,
        class_names: list[str],
        category_ids: list[int],
        lineage: Mapping[str, str] | None = None,
        beside: Callable[[Path], None] | None = None,
    ) -> None:
        """Writes a new `last` checkpoint; the former one becomes `previous`.

        Args:
            weights: the model's state dict.
            state: tensors, numbers, texts, lists and dicts only; `step` ties it to the weights.
            settings: stored with the weights, as are the next two.
            class_names: by label.
            category_ids: by label.
            lineage: what the training started from, as `runs.lineage` gives it.
            beside: writes the folder of the shards that each process saves by itself.

        Raises:
            ResourceError: it could not be written; earlier checkpoints are unchanged.
        """
        fresh = self.checkpoints_dir / ".fresh-last"

        def write(failures: int) -> None:
            make_way(fresh, ignore_errors=True)
            fresh.mkdir()
            save_checkpoint(
                fresh / WEIGHTS_NAME,
                weights,
                settings=settings,
                class_names=class_names,
                category_ids=category_ids,
                extra={"step": str(state["step"]), **(lineage or {})},
            )
            if beside is not None:
                beside(fresh / SHARDED)
                sync_folder(fresh / SHARDED)
            parts = {f"{SHARDED}/{path.name}": path for path in (fresh / SHARDED).glob("*")}
            # The state gets its name last: where it is, the checkpoint is complete.
            with replace_file(fresh / STATE) as temporary:
                with temporary.open("wb") as file:
                    torch.save(state, file)
                write_sums(fresh, {WEIGHTS_NAME: fresh / WEIGHTS_NAME, STATE: temporary, **parts})

        with writing(self.path, cleanup=fresh):
            persistently(write)
        with writing(self.path):
            self._replace_last()

    def mark_best(self) -> None:
        """Makes the newest checkpoint the best one, by hard links where the file system has them."""
        self._copy(self.last, self.best)

    def recover(self) -> None:
        """Completes or undoes what a kill interrupted while checkpoints were exchanged, and deletes half-written files.

        Raises:
            ResourceError: the folder cannot be written.
        """
        with writing(self.path):
            if _is_complete(self.checkpoints_dir / ".fresh-last"):
                self._replace_last()
            for folder in (self.best, self.last, self.previous):
                for source in (f".fresh-{folder.name}", f".retired-{folder.name}"):
                    if not folder.exists() and _is_complete(self.checkpoints_dir / source):
                        make_way(folder)  # a link that leads nowhere
                        move(self.checkpoints_dir / source, folder)
            # By name: a linked folder of checkpoints may hold hidden folders of somebody else.
            for prefix, folder in product((".fresh-", ".retired-"), (self.last, self.best, self.previous)):
                make_way(folder.with_name(f"{prefix}{folder.name}"), ignore_errors=True)
        for leftover in chain.from_iterable(
            place.glob(TEMPORARY) for place in (self.path, self.plots_dir, self.plots_dir / VAL_IMAGES)
        ):
            with suppress(OSError):
                leftover.unlink()

    def load(self, on_unreadable: Callable[[str], None] = logger.warning) -> Saved | None:
        """The newest intact checkpoint, None when there has been none; call `recover` before.

        Args:
            on_unreadable: called with the reason why a newer one is skipped.

        Raises:
            CheckpointError: there are checkpoints and none can be read.
        """
        problems = []
        # A link whose disk is not mounted exists, but cannot be read.
        for folder in filter(os.path.lexists, (self.last, self.previous, self.best)):
            try:
                saved = _load(folder)
            except CheckpointError as error:
                problems.append(str(error))
                on_unreadable(f"checkpoint {folder.name} cannot be used: {error}")
                continue
            if folder != self.last and not problems:
                on_unreadable(f"checkpoint {self.last.name} cannot be used: {self.last} is gone")
            return saved
        if problems:
            raise CheckpointError(
                f"no checkpoint of {self.path} can be read: {'; '.join(problems)}. Start a new run with --restart."
            )
        return None

    def last_good(self) -> str | None:
        """The name of the newest checkpoint not saved between non-finite steps; None without one."""
        for folder in (self.last, self.previous, self.best):
            try:
                if folder.exists() and not _load(folder).state["position"].get("bad_steps"):
                    return folder.name
            except CheckpointError as error:
                logger.debug("checkpoint %s cannot be used: %s", folder.name, error)
        return None

    def go_back_to(self, name: str) -> None:
        """Replaces the newest checkpoint by an older one."""
        if name != self.last.name:
            self._copy(self.checkpoints_dir / name, self.last)

    def _replace_last(self) -> None:
        if os.path.lexists(self.last):  # also a link that leads nowhere
            self._retire(self.previous)
            move(self.last, self.previous)
        move(self.checkpoints_dir / ".fresh-last", self.last)
        self._clear_retired(self.previous)

    def _copy(self, source: Path, target: Path) -> None:
        """Replaces a checkpoint by a copy of another one, prepared under a temporary name."""
        fresh = self.checkpoints_dir / f".fresh-{target.name}"
        make_way(fresh, ignore_errors=True)
        with writing(self.path, cleanup=fresh):
            fresh.mkdir()
            if (source / SHARDED).is_dir():
                (fresh / SHARDED).mkdir()
                for part in (source / SHARDED).iterdir():
                    _link_or_copy(part, fresh / SHARDED / part.name)
            for file in (WEIGHTS_NAME, SUMS, STATE):
                if file != SUMS or (source / SUMS).exists():  # earlier versions wrote none
                    _link_or_copy(source / file, fresh / file)
            sync_folder(fresh)
        with writing(self.path):
            self._retire(target)
            move(fresh, target)
            self._clear_retired(target)

    def _retire(self, old: Path) -> None:
        """Moves a checkpoint aside; it is deleted once its successor is in place."""
        if os.path.lexists(old):
            retired = self.checkpoints_dir / f".retired-{old.name}"
            make_way(retired, ignore_errors=True)
            move(old, retired)

    def _clear_retired(self, old: Path) -> None:
        sync_folder(self.checkpoints_dir)
        make_way(self.checkpoints_dir / f".retired-{old.name}", ignore_errors=True)


class EventLogHandler(logging.Handler):
    """Appends log records of every level to the events.log of a run folder, one line each.

    Raises:
        ResourceError: out of the logging call, as from `RunFolder.event`: the disk is full or the folder is gone.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(logging.DEBUG)
        self._folder = folder

    def createLock(self) -> None:  # noqa: N802 (logging's name)
        """No lock: lines are appended whole, and a thread must not wait for another one's slow disk."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Appends one record."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._folder.event(text)


@contextmanager
def event_log(folder: RunFolder) -> Iterator[None]:
    """Records everything that the package logs in a run's events.log while the context lasts; for rank 0."""
    package, handler = logging.getLogger("codetr_cli"), EventLogHandler(folder)
    before = package.level
    package.setLevel(logging.DEBUG)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)


def read_state(path: Path) -> dict[str, Any]:
    """Reads a training state; nothing in it is executed.

    Raises:
        CheckpointError: missing, damaged, or not a training state.
    """
    try:
        return check_state(torch_files.load(path))
    except Exception as error:  # a hostile or damaged file can make the reader fail in any way
        raise CheckpointError(f"cannot read the training state {path}: {str(error)[:MAX_REASON]}") from error


def _load(folder: Path) -> Saved:
    """Reads a checkpoint; raises CheckpointError where a file is missing or damaged, or the steps differ."""
    for name in (WEIGHTS_NAME, STATE):
        try:
            check_regular(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from error
    check_sums(folder)
    weights, state = load_checkpoint(folder / WEIGHTS_NAME), read_state(folder / STATE)
    check_weights(weights.state, source=str(folder / WEIGHTS_NAME))  # a run cannot continue from NaN
    if weights.extra.get("step") != str(state["step"]):
        raise CheckpointError(
            f"{folder} holds weights of step {weights.extra.get('step')} and a state of step {state['step']}"
        )
    return Saved(weights, state, folder)


def _is_complete(folder: Path) -> bool:
    return (folder / STATE).is_file() and (folder / WEIGHTS_NAME).is_file()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        shutil.copy2(source, target)
