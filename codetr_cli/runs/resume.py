"""Which run folder a training command means: a new one, or an interrupted one to continue.

The same command continues what it began. Nothing is continued under other settings, and nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codetr_cli.config.schema import Settings
from codetr_cli.data.formats.cache import cache_folder
from codetr_cli.errors import CodetrError, ConfigError
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.runs.folder import Origin, RunFolder
from codetr_cli.runs.memory_record import with_fitted

# Settings that may change within a run: they change no number of a training, only how it is watched, how fast data
# comes and how much memory is used; sharding none but by rounding. With another micro batch, images come in another
# order: a resumed run warns of it.
FREE = frozenset(
    (
        "summary",
        "data.workers",
        "data.bad_files",
        "model.encoder_checkpointing",
        "model.backbone.checkpointing",
        "model.decoder_checkpointing",
        "model.aux_checkpointing",
        "train.memory_check",
        "train.micro_batch",
        "train.fsdp",
        "train.log_every",
        "train.eval_every",
        "train.checkpoint_every",
        "train.timeout_minutes",
        "train.loggers",
        "train.max_nonfinite_steps",
        "train.early_stop_patience",
        "test.batch_size",
    )
)
# A run may be prolonged; its beginning stays what it was.
GROWING = frozenset(("train.epochs", "train.max_steps"))


@dataclass(frozen=True)
class Choice:
    """The run folder of a command.

    Attributes:
        path: the folder.
        resume: continue what is in it.
        note: one sentence for the person.
    """

    path: Path
    resume: bool
    note: str


def choose_run(
    settings: Settings, origin: Origin, *, run: Path | None, root: Path = Path("runs"), fresh: bool = False
) -> Choice:
    """Decides between a new run folder and one to continue.

    Args:
        settings: resolved, as they would be written to the folder.
        origin: data and weights of the command.
        run: the folder that was asked for; None picks one below `root/<preset>`.
        root: where run folders lie by default.
        fresh: never continue. A folder that was asked for is moved aside if it holds a run.

    Raises:
        ConfigError: the folder holds something else, a finished run, or a run with other settings.
    """
    if run is None:
        return _choose_numbered(settings, origin, root / settings.name, fresh)
    folder = RunFolder(run)
    status = folder.status()
    if status == "foreign":
        raise ConfigError(
            f"{run} is not empty and no run folder (it has no settings.toml): give another folder with --run"
        )
    if status == "empty":
        return Choice(run, False, f"new run in {run}")
    if fresh:
        return Choice(run, False, f"new run in {run}, the old one moved to {_move_aside(folder)}")
    changed = differences(folder, settings, origin)
    if changed:
        raise ConfigError(
            f"{run} was trained with other settings: {'; '.join(changed)}. Give the same command as before, or its "
            f"settings with --preset {folder.settings_path}, to continue it, another folder with --run to start anew, "
            "or --fresh to move the old run aside."
        )
    if status == "finished" and _length(folder.settings()) == _length(settings):
        raise ConfigError(
            f"the run in {run} is finished and stays as it is; its weights are {folder.last / WEIGHTS_NAME}. "
            f"Train on with --preset {folder.settings_path} and a larger --set train.epochs=... or "
            "--set train.max_steps=..., give another folder with --run, or --fresh to move the old run aside."
        )
    return Choice(run, True, f"continuing the {'finished' if status == 'finished' else 'interrupted'} run in {run}")


def differences(folder: RunFolder, settings: Settings, origin: Origin) -> list[str]:
    """What a command would change in a run, one phrase each; empty when the run can be continued.

    Raises:
        ConfigError: the run's settings cannot be read.
    """
    old, new = dict(_flat(folder.settings())), dict(_flat(with_fitted(settings, folder.path)))
    changed = [
        f"{key}: {_shown(old.get(key))} there, {_shown(new.get(key))} now"
        for key in new
        if old.get(key) != new.get(key)
        and key not in FREE
        and not key.startswith("source.")
        and not (key in GROWING and _grows(old.get(key), new.get(key)))
    ]
    old_origin = folder.origin()
    if old_origin is not None:
        for key, before, value in _origin_changes(old_origin, origin):
            # Leaving out the validation data or the weights to start from changes nothing that was trained.
            if value is None or (key.startswith("val_") and before is None):
                continue
            if key.endswith("_digest"):
                which = key.replace("_digest", "_annotations")
                changed.append(f"the content of {which} ({getattr(origin, which)}) is another by now")
            else:
                changed.append(f"{key}: {_shown(before)} there, {_shown(value)} now")
    return changed


def _origin_changes(old: Origin, new: Origin) -> Iterator[tuple[str, str | None, str | None]]:
    """Name, value there and value now of everything that differs; what earlier versions did not note is left out."""
    before = asdict(old)
    for key, value in asdict(new).items():
        if before[key] == value or (key.endswith("_digest") and before[key] is None):
            continue
        # Earlier versions named the converted file in the cache and not what it was made of.
        if old.train_digest is None and Path(before[key] or "").is_relative_to(cache_folder()):
            continue
        yield key, before[key], value


def _choose_numbered(settings: Settings, origin: Origin, root: Path, fresh: bool) -> Choice:
    """The newest numbered folder when it is this very run, interrupted; else the next number."""
    changed = ""
    numbers = sorted(int(path.name) for path in root.glob("*") if path.name.isdecimal() and path.is_dir())
    if numbers and not fresh:
        newest = RunFolder(root / str(numbers[-1]))
        if _is_same_run(newest, settings, origin):
            return Choice(
                newest.path, True, f"continuing the interrupted run in {newest.path} (--fresh starts a new one)"
            )
        changed = _changed_data(newest, origin)
    path = root / str(numbers[-1] + 1 if numbers else 1)
    return Choice(path, False, f"new run in {path}{changed}")


def _changed_data(folder: RunFolder, origin: Origin) -> str:
    """Says that an interrupted run is not continued because its data changed on disk; empty if that is not why."""
    old = folder.origin()
    if folder.status() != "interrupted" or old is None:
        return ""
    changes = [key for key, _, _ in _origin_changes(old, origin)]
    if not changes or not all(key.endswith("_digest") for key in changes):
        return ""
    return f"; the interrupted one in {folder.path} is not continued, because its annotations changed since"


def _is_same_run(folder: RunFolder, settings: Settings, origin: Origin) -> bool:
    try:
        old = folder.origin()
        if folder.status() != "interrupted" or old is None or any(_origin_changes(old, origin)):
            return False
        if differences(folder, settings, origin):
            return False
        if _length(folder.settings()) != _length(settings):
            return False
        folder.lock().release()
    except CodetrError:
        return False
    return True


def _move_aside(folder: RunFolder) -> Path:
    folder.lock().release()
    number = 1
    while (aside := folder.path.with_name(f"{folder.path.name}.old{number}")).exists():
        number += 1
    return folder.path.rename(aside)


def _length(settings: Settings) -> tuple[int, int | None, int | None]:
    return settings.train.epochs, settings.train.max_steps, settings.train.early_stop_patience


def _grows(old: Any, new: Any) -> bool:
    """Whether a length is prolonged; None is no limit."""
    return old is not None and (new is None or new >= old)


def _flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    """All single settings by dotted name."""
    pending: list[tuple[str, Any]] = [("", settings.model_dump(mode="json"))]
    while pending:
        prefix, value = pending.pop(0)
        if isinstance(value, dict):
            pending += [(f"{prefix}.{key}" if prefix else key, item) for key, item in value.items()]
        else:
            yield prefix, value


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
