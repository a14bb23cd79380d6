"""Which run folder a training command means: a new one, or an interrupted one to continue.

The same command continues the run that it started. No run continues with other settings or other data, and nothing is
overwritten. Data is recognized by the digests of its annotations, so a run continues when its folders have moved.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from codetr_cli.annotations.cache import cache_folder
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CodetrError, ConfigError
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.runs.folder import RunFolder, RunInputs
from codetr_cli.runs.memory_record import flatten, with_fitted
from codetr_cli.runs.metrics_log import has_numbers
from codetr_cli.runtime.disk_errors import writing

# Settings that may change within a run. They change no number of a training, only its reports, its speed and its memory
# use (train.fsdp: only rounding). With another micro batch, images come in another order: a resumed run warns of it.
FREE = frozenset(
    (
        "summary",
        "data.workers",
        "data.bad_files",
        "data.allow_outside",
        "model.encoder_checkpointing",
        "model.backbone.checkpointing",
        "model.decoder_checkpointing",
        "model.aux_checkpointing",
        "train.memory_check",
        "train.micro_batch",
        "train.fsdp",
        "train.log_every",
        "train.eval_every",
        "train.report",
        "train.checkpoint_every",
        "train.timeout_minutes",
        "train.loggers",
        "train.val_pictures",
        "train.max_nonfinite_steps",
        "train.early_stop_patience",
        "test.batch_size",
    )
)
# Limits of a run that may grow.
GROWING = frozenset(("train.epochs", "train.max_steps"))
# Settings that only say where the data of a split is. They may change when the digest of the split has not.
LOCATIONS = {
    "train": frozenset(("data.root", "data.extra_roots", "data.train_images", "data.train_annotations")),
    "val": frozenset(("data.val_images", "data.val_annotations")),
}


@dataclass(frozen=True)
class RunChoice:
    """The run folder of a command, whether to continue what is in it, and a sentence about that for the user."""

    path: Path
    resume: bool
    note: str


def choose_run(
    settings: Settings,
    inputs: RunInputs,
    *,
    run: Path | None,
    root: Path = Path("runs"),
    restart: bool = False,
    dry_run: bool = False,
) -> RunChoice:
    """Decides between a new run folder and one to continue.

    Args:
        settings: resolved, as they would be written to the folder.
        inputs: data and weights of the command.
        run: the requested folder; None picks one below `root/<preset>`.
        root: the default parent of run folders.
        restart: never continue. A requested folder that holds a run is moved aside.
        dry_run: move nothing.

    Raises:
        ConfigError: the folder holds something else, a finished run, or a run with other settings.
    """
    if run is None:
        return _choose_numbered(settings, inputs, root / settings.name, restart)
    folder = RunFolder(run)
    kind = folder.kind()
    if kind == "run" and restart:  # before anything in it is read: no matter what it holds, it is only moved
        return RunChoice(run, False, f"new run in {run}, the old one moved to {_move_aside(folder, dry_run)}")
    folder.check()
    if kind == "foreign":
        reason = "it has files that no run has written" if folder.settings_path.exists() else "it has no settings.toml"
        raise ConfigError(f"{run} is not empty and is no run folder ({reason}): give another folder with --run")
    if kind == "empty":
        return RunChoice(run, False, f"new run in {run}")
    status = folder.status()
    changed = differences(folder, settings, inputs)
    if changed:
        raise ConfigError(
            f"{run} was trained with other settings: {'; '.join(changed)}. Give the same command as before, or its "
            f"settings with --preset {folder.settings_path}, to continue it, another folder with --run to start a new "
            "run, or --restart to move the old run aside."
        )
    if status == "finished" and _length(folder.settings()) == _length(settings) and not _ended_before(folder):
        raise ConfigError(
            f"the run in {run} is finished; its weights are {folder.last / WEIGHTS_NAME}. Continue it with "
            f"--preset {folder.settings_path} and a larger --set train.epochs=... or --set train.max_steps=..., give "
            "another folder with --run, or --restart to move the old run aside."
        )
    state = "finished" if status == "finished" else "interrupted"
    return RunChoice(run, True, f"continuing the {state} run in {run}{_moved_note(folder, inputs)}")


def differences(folder: RunFolder, settings: Settings, inputs: RunInputs) -> list[str]:
    """What a command would change in a run, one phrase each; raises ConfigError where its settings cannot be read."""
    # Both with what was fitted: a kill may have come between memory.json and settings.toml.
    pair = (with_fitted(part, folder.path) for part in (folder.settings(), settings))
    old, new = (flatten(part.model_dump(mode="json")) for part in pair)
    old_inputs = folder.inputs()
    movable = frozenset[str]().union(*(LOCATIONS[split] for split in LOCATIONS if _is_same(split, old_inputs, inputs)))
    changed = [
        f"{key}: {_shown(old.get(key))} there, {_shown(new.get(key))} now"
        for key in new
        if old.get(key) != new.get(key)
        and key not in FREE
        and key not in movable
        and not key.startswith("source.")
        and not (key in GROWING and _grows(old.get(key), new.get(key)))
    ]
    for key, before, value in _input_changes(old_inputs, inputs) if old_inputs is not None else ():
        # A command without validation data or initial weights changes nothing that was trained.
        if value is None or (key.startswith("val_") and before is None):
            continue
        if key.endswith("_digest"):
            which = key.replace("_digest", "_annotations")
            changed.append(f"the content of {which} ({getattr(inputs, which)}) has changed")
        else:
            changed.append(f"{key}: {_shown(before)} there, {_shown(value)} now")
    return changed


def with_weights(inputs: RunInputs, run: Path) -> RunInputs:
    """The inputs of a command with the initial weights of the run that it continues, if it names none itself.

    For the record only: a run folder may come from somebody else and must not name files that are read.
    """
    old = RunFolder(run).inputs()
    return inputs if old is None or inputs.weights is not None else replace(inputs, weights=old.weights)


def check_weights_named(inputs: RunInputs, run: Path) -> None:
    """Refuses to start a run again, before its first checkpoint, from other weights than at first.

    Raises:
        ConfigError: it was started from a checkpoint that this command does not name.
    """
    if inputs.weights is None and (path := with_weights(inputs, run).weights) is not None:
        raise ConfigError(
            f"{run} has no checkpoint to continue from, and it was started from the weights {path}: give --weights "
            f"{path} again"
        )


def _is_same(split: str, old: RunInputs | None, new: RunInputs) -> bool:
    """Whether a run and a command read annotations of the same content for a split."""
    digest = getattr(old, f"{split}_digest", None)
    return digest is not None and digest == getattr(new, f"{split}_digest")


def _input_changes(old: RunInputs, new: RunInputs) -> Iterator[tuple[str, str | None, str | None]]:
    """Name, value there and value now of everything that differs; what earlier versions did not record is skipped."""
    before = asdict(old)
    for key, value in asdict(new).items():
        if before[key] == value or (key.endswith("_digest") and before[key] is None):
            continue
        if key.endswith("_annotations") and _is_same(key.removesuffix("_annotations"), old, new):
            continue
        # Earlier versions named the converted file in the cache and not its sources.
        if old.train_digest is None and Path(before[key] or "").is_relative_to(cache_folder()):
            continue
        yield key, before[key], value


def _moved_note(folder: RunFolder, inputs: RunInputs) -> str:
    """A phrase about data that was at another path before; empty where it was not."""
    old = folder.inputs()
    if old is None or old.train_annotations == inputs.train_annotations:
        return ""
    return f"; its data has moved from {old.train_annotations} to {inputs.train_annotations}, the content is the same"


def _choose_numbered(settings: Settings, inputs: RunInputs, root: Path, restart: bool) -> RunChoice:
    """The newest numbered folder when it holds this very run, interrupted; else the next number."""
    changed = ""
    numbers = sorted(int(path.name) for path in root.glob("*") if path.name.isdecimal() and path.is_dir())
    newest = RunFolder(root / str(numbers[-1])) if numbers else None
    if newest is not None and _is_unused(newest):
        return RunChoice(newest.path, False, f"new run in {newest.path}")
    if newest is not None and not restart:
        if _is_same_run(newest, settings, inputs):
            note = f"continuing the interrupted run in {newest.path}{_moved_note(newest, inputs)}"
            return RunChoice(newest.path, True, f"{note} (--restart starts a new one)")
        changed = _changed_data(newest, inputs)
    path = root / str(numbers[-1] + 1 if numbers else 1)
    return RunChoice(path, False, f"new run in {path}{changed}")


def _is_unused(folder: RunFolder) -> bool:
    """Whether a training was killed before it wrote settings here; a job that waits in SLURM's queue uses a folder."""
    try:
        folder.check()
        if folder.kind() != "empty" or (folder.path / "slurm").exists():
            return False
        folder.lock().release()
    except CodetrError:
        return False
    return True


def _changed_data(folder: RunFolder, inputs: RunInputs) -> str:
    """A phrase about an interrupted run that is not continued because its annotations changed; else empty."""
    old = folder.inputs()
    if folder.status() != "interrupted" or old is None:
        return ""
    changes = [key for key, _, _ in _input_changes(old, inputs)]
    if not changes or not all(key.endswith("_digest") for key in changes):
        return ""
    return f"; the interrupted one in {folder.path} is not continued, because its annotations have changed"


def _is_same_run(folder: RunFolder, settings: Settings, inputs: RunInputs) -> bool:
    try:
        folder.check()
        old = folder.inputs()
        if folder.status() != "interrupted" or old is None or any(_input_changes(old, inputs)):
            return False
        if differences(folder, settings, inputs) or _length(folder.settings()) != _length(settings):
            return False
        folder.lock().release()
    except CodetrError:
        return False
    return True


def _ended_before(folder: RunFolder) -> bool:
    """Whether the run ended before its settings' limits: an earlier version was killed when it began to continue."""
    train = folder.settings().train
    ends = [line for line in folder.lines(containing="end") if line["kind"] == "end"]
    if ends[-1].get("early", True) or not has_numbers(ends[-1], "step", "epoch"):
        return False
    done, wanted = (ends[-1]["step"], train.max_steps) if train.max_steps else (ends[-1]["epoch"], train.epochs)
    return bool(done < wanted)


def _move_aside(folder: RunFolder, dry_run: bool) -> Path:
    path = Path(os.path.abspath(folder.path))  # noqa: PTH100 (links stay links): "." has no name
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.old{number}")):
        number += 1
    if dry_run:
        return aside
    if not os.path.lexists(lock := path / ".lock") or stat.S_ISREG(lock.lstat().st_mode):  # else nobody can hold it
        folder.lock().release()
    with writing(path):
        return path.rename(aside)


def _length(settings: Settings) -> tuple[int, int | None, int | None]:
    return settings.train.epochs, settings.train.max_steps, settings.train.early_stop_patience


def _grows(old: Any, new: Any) -> bool:
    """Whether a limit is raised; None is no limit."""
    return old is not None and (new is None or new >= old)


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
