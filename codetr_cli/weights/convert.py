"""Converts a published checkpoint to ours: safe reading, our entry names, detection of the architecture, verification.

Every entry is used, dropped for a reason that the result reports, or an error.

Weight averages: the EMA hook of MMDetection 2 adds a second copy of every entry to the model's own (`ema_a_b_c` for
`a.b.c`); that of mmengine (mmengine/hooks/ema_hook.py) adds a section `ema_state_dict`. Both swap before saving: the
plain names hold the averages, which are the published weights, and the copy holds the raw weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from codetr_cli.class_names import storable_class_name
from codetr_cli.config.overrides import apply_overrides, replace_settings
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError, listed
from codetr_cli.weights.architecture import describe, differences
from codetr_cli.weights.checkpoint import (
    Checkpoint,
    file_sha256,
    is_safetensors,
    read_safetensors,
    refuse_exported,
)
from codetr_cli.weights.classes import COCO_CATEGORIES, numbered_names, same_classes
from codetr_cli.weights.load_state import check_shapes
from codetr_cli.weights.names import REASON_RAW_COPY, Naming
from codetr_cli.weights.pickles import is_plain_tensor, read_pickle
from codetr_cli.weights.tensor_layout import to_our_state
from codetr_cli.weights.values import check_weights

ExpectedShapes = Callable[[Settings], Mapping[str, Sequence[int]]]

NOTES = "conversion_notes"  # key in `Checkpoint.extra`: notes for the user, one per line
MAX_EXPANSION = 3  # of the bytes of a file to those of its weights
STATE_SECTIONS = ("state_dict", "model")
DROPPED_SECTIONS = {
    "ema_state_dict": REASON_RAW_COPY,
    "message_hub": "training log",
    "meta": "training metadata; the class names are kept",
    **dict.fromkeys(
        (
            *("optimizer", "optimizers", "optimizer_states", "optim_wrapper", "param_schedulers", "lr_scheduler"),
            *("lr_schedulers", "scheduler", "amp", "scaler", "grad_scaler", "loss_scaler", "epoch", "iter"),
            *("iteration", "step", "args", "best_score", "best_fitness", "seed", "rng_state"),
        ),
        "training state",
    ),
}


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint and how it was converted.

    Args:
        checkpoint: the result.
        naming: the publisher of the entry names.
        preset: name of the preset with its architecture.
        dropped: reason -> names of sections and entries that are not needed.
        notes: sentences for the user.
    """

    checkpoint: Checkpoint
    naming: Naming
    preset: str
    dropped: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)


def convert_file(
    path: Path | str,
    *,
    preset: str | None = None,
    prefer: Settings | None = None,
    only_preferred: bool = False,
    overrides: Sequence[str] = (),
    expected_shapes: ExpectedShapes | None = None,
    check_finite: bool = True,
) -> Conversion:
    """Reads a published checkpoint and converts it in memory.

    Args:
        path: a .pth file (zip or legacy format), or a .safetensors file with published names.
        preset: its architecture, by name or as a TOML file; None detects the preset. The number of classes is always
            the file's.
        prefer: settings to use, without `preset`, if the architecture is theirs, whatever the number of queries.
        only_preferred: refuse other architectures than that of `prefer`, and other numbers of queries.
        overrides: settings that differ from the preset, as `key=value`.
        expected_shapes: returns name and shape of every entry of the model for settings; all are compared. None skips
            this check; loading the result into a model repeats it.
        check_finite: refuse NaN and infinite weights, unless `test.allow_nonfinite_weights` is set; loading the result
            into a model repeats that, too.

    Raises:
        CheckpointError: unreadable, unsafe, unknown entries, no preset has this architecture, or entries that are no
            finite real numbers.
        ConfigError: an unknown preset or setting.
    """
    path = Path(path)
    refuse_exported(path)
    entries, names, dropped = _read(path)
    try:
        renamed = to_our_state(entries)
        architecture = describe(renamed.state, entries)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    sha256 = file_sha256(path)
    candidates = []
    if prefer is not None:
        # Fine-tuning may use another number of queries than the file.
        counts = ("num_classes",) if only_preferred else ("num_classes", "num_queries")
        candidates.append(_candidate(prefer, prefer.name, overrides, architecture, counts, preferred=True))
    if prefer is None or not only_preferred:
        presets = [preset] if preset is not None else preset_names()
        candidates += [_candidate(load_preset(name), name, overrides, architecture) for name in presets]
    settings, notes = _find_settings(path, candidates, num_classes=architecture["num_classes"], sha256=sha256)
    if expected_shapes is not None:
        check_shapes(renamed.state, expected_shapes(settings), source=f"{path} (preset {settings.name!r})")
    allow_nonfinite = not check_finite or settings.test.allow_nonfinite_weights
    check_weights(renamed.state, source=f"{path} (preset {settings.name!r})", allow_nonfinite=allow_nonfinite)
    class_names, category_ids, class_notes = _classes(names, settings.model.num_classes)
    notes += class_notes
    for reason, dropped_entries in renamed.dropped.items():
        dropped[reason] += dropped_entries
    checkpoint = Checkpoint(
        state=renamed.state,
        settings=settings,
        class_names=class_names,
        category_ids=category_ids,
        extra={
            "source_file": path.name,
            "source_sha256": sha256,
            "source_naming": renamed.naming,
            **({NOTES: "\n".join(notes)} if notes else {}),
        },
    )
    return Conversion(checkpoint, renamed.naming, settings.name, dict(dropped), notes)


def _read(path: Path) -> tuple[dict[str, Tensor], list[str] | None, defaultdict[str, list[str]]]:
    """Entries of a file under published names, its class names, and reason -> names of the dropped sections."""
    dropped: defaultdict[str, list[str]] = defaultdict(list)
    if is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        if "format" in metadata and "settings" in metadata:
            raise CheckpointError(f"{path} was written by codetr and needs no conversion: use it directly.")
        return tensors, None, dropped
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} contains a {type(content).__name__} instead of named entries: it is not a checkpoint."
        )
    section = next((name for name in STATE_SECTIONS if isinstance(content.get(name), dict)), None)
    entries = content if section is None else content[section]
    unknown = []
    for name in content if section is not None else ():
        if name in DROPPED_SECTIONS:
            dropped[DROPPED_SECTIONS[name]].append(f"[{name}]")
        elif name != section:
            unknown.append(name if isinstance(name, str) else f"a section with a {type(name).__name__} as its name")
    if unknown:
        raise CheckpointError(
            f"{path} has unknown sections besides its weights: {listed(unknown, 12)}. "
            "If they are not weights, remove them from the file."
        )
    strange = [
        name if isinstance(name, str) else f"an entry with a {type(name).__name__} as its name"
        for name, value in entries.items()
        if not (isinstance(name, str) and is_plain_tensor(value))
    ]
    if strange or not entries:
        what = f"entries that are not plain tensors: {listed(strange, 12)}" if strange else "no entries"
        raise CheckpointError(
            f"{path} has {what}. A checkpoint is a dictionary of tensors, or has one as its 'state_dict'."
        )
    _check_bytes(path, entries)
    return dict(entries), _class_names(content.get("meta") if section else None), dropped


def _check_bytes(path: Path, entries: Mapping[str, Tensor]) -> None:
    """Refuses entries that are far larger than their file: a storage can be the content of any number of them."""
    size, total = path.stat().st_size, sum(value.nbytes for value in entries.values())
    if total > MAX_EXPANSION * size:
        raise CheckpointError(f"{path} has {size:,} bytes and claims {total:,} bytes of weights: it is no checkpoint.")


def _class_names(meta: Any) -> list[str] | None:
    """Class names from a checkpoint's `meta`: `CLASSES` of MMDetection 2 and Sense-X, `dataset_meta.classes` of 3."""
    if not isinstance(meta, dict):
        return None
    tables = [table for table in (meta.get("dataset_meta"), meta) if isinstance(table, dict)]
    for names in (table.get(key) for table in tables for key in ("classes", "CLASSES")):
        if isinstance(names, str):  # a tuple of one name that lacks its comma
            return [names]
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


@dataclass(frozen=True)
class _Candidate:
    """A preset that may have a file's architecture.

    Args:
        settings: of the preset, with the file's number of classes.
        num_classes: of the preset.
        option: the value of --preset.
        preferred: whether the caller prefers it.
        differences: dotted name of a setting -> (value of the preset, value of the file).
    """

    settings: Settings
    num_classes: int
    option: str
    preferred: bool
    differences: dict[str, tuple[Any, Any]]

    def name_in(self, stem: str) -> int:
        """The number of words of the longest of the preset's names whose words all occur in a file's name; else 0."""
        source = self.settings.source
        names = [self.settings.name, *(Path(name).stem for name in (source.filename, source.config) if name)]
        return max((len(words) for words in map(_words, names) if words <= _words(stem)), default=0)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def _candidate(
    settings: Settings,
    option: str,
    overrides: Sequence[str],
    architecture: Mapping[str, Any],
    counts: Sequence[str] = ("num_classes",),
    *,
    preferred: bool = False,
) -> _Candidate:
    """Settings with the user's overrides and the given counts of the architecture, compared with the rest of it."""
    changed = apply_overrides(settings, list(overrides))
    try:
        changed = replace_settings(changed, {f"model.{count}": architecture[count] for count in counts})
    except ConfigError as error:
        raise CheckpointError(f"no network has as many classes or queries as this file: {error}") from error
    found = differences(changed.model, architecture)
    return _Candidate(changed, settings.model.num_classes, option, preferred, found)


def _find_settings(
    path: Path, candidates: Sequence[_Candidate], *, num_classes: int, sha256: str
) -> tuple[Settings, list[str]]:
    """The settings with the file's architecture, and notes on the choice."""
    known = [each for each in candidates if each.settings.source.sha256 == sha256]
    fitting = known or [each for each in candidates if not each.differences]
    if not fitting:
        closest = min(candidates, key=lambda each: len(each.differences))
        raise CheckpointError(_other_architecture(path, closest))

    def rank(each: _Candidate) -> tuple[bool, bool, int]:
        # Presets often share an architecture. Prefer `prefer`, then the number of classes, then the name of the file.
        return not each.preferred, each.num_classes != num_classes, -each.name_in(path.stem)

    chosen = min(fitting, key=lambda each: (rank(each), len(each.settings.name), each.settings.name))
    others = sorted(each.settings.name for each in fitting if each is not chosen and rank(each) == rank(chosen))
    note = (
        f"The architecture is that of {chosen.settings.name} and also of {listed(others, 6)}, which may preprocess "
        "images differently: choose one with --preset."
    )
    return chosen.settings, [note] if others else []


def _other_architecture(path: Path, closest: _Candidate) -> str:
    """The differences from the closest preset, and the options that select them."""
    found = closest.differences
    described = ", ".join(f"{key} is {theirs} instead of {ours}" for key, (ours, theirs) in found.items())
    # Settings are text without spaces, tuples as lists.
    values = {key: list(theirs) if isinstance(theirs, tuple) else theirs for key, (_, theirs) in found.items()}
    options = [f"--set {key}={str(value).replace(' ', '')}" for key, value in values.items() if "*" not in key]
    return (
        f"{path} has another architecture than preset {closest.settings.name!r}: {described}. Give the preset it "
        f"was trained with, or the settings that differ: --preset {closest.option} {' '.join(options)}"
    )


def _classes(names: list[str] | None, num_classes: int) -> tuple[list[str], list[int], list[str]]:
    """Class names, category ids and notes for the user, from the names in the file, if any."""
    notes = []
    if names is not None and len(names) != num_classes:
        notes.append(f"The file has {len(names)} class names but {num_classes} classes: its names are not used.")
        names = None
    if names is not None and (odd := [name for name in names if storable_class_name(name) != name]):
        names = [storable_class_name(name) for name in names]
        notes.append(f"Control characters in class names are written as text: {listed([ascii(name) for name in odd])}.")
    if names is None and num_classes == len(COCO_CATEGORIES):
        names = list(COCO_CATEGORIES.values())
        notes.append("The file has no class names; it has 80 classes, so they are assumed to be COCO's.")
    if names is None:
        names = numbered_names(num_classes)
        notes.append(
            f"The file has no class names; they are called {names[0]} ... {names[-1]}, and matched with annotations by "
            "category id."
        )
    if same_classes(names, list(COCO_CATEGORIES.values())):
        return names, list(COCO_CATEGORIES), notes
    notes.append(f"The file has no category ids; they are 1 ... {num_classes} in the order of its classes.")
    return names, list(range(1, num_classes + 1)), notes
