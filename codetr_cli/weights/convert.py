"""Turns a published checkpoint into ours: read safely, give every entry our name, find the architecture, verify.

Nothing is skipped in silence: an entry is used, or dropped for a reason that the result tells, or an error names it.

Weight averages: MMDetection 2's hook puts a second copy of every entry among the model's own (`ema_a_b_c` for `a.b.c`),
mmengine's (mmengine/hooks/ema_hook.py) puts it into a section of its own, `ema_state_dict`. Both swap before they save,
so that the plain names hold the averages, which are the published weights, and the copy holds the raw weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, listed
from codetr_cli.weights.architecture import describe, differences
from codetr_cli.weights.checkpoint import Checkpoint, file_sha256, is_safetensors, read_safetensors
from codetr_cli.weights.classes import COCO_CATEGORIES, is_coco, numbered_names
from codetr_cli.weights.load_state import check_entries, shape_text
from codetr_cli.weights.names import REASON_RAW_COPY, Naming
from codetr_cli.weights.pickles import read_pickle
from codetr_cli.weights.tensor_layout import to_our_state

ExpectedShapes = Callable[[Settings], Mapping[str, Sequence[int]]]

NOTES = "conversion_notes"  # among the extra texts of a checkpoint: what the person should know, a line each
STATE_SECTIONS = ("state_dict", "model")
TRAINING_STATE = "state of the training that made the file"
DROPPED_SECTIONS = {
    "ema_state_dict": REASON_RAW_COPY,
    "message_hub": "training log",
    "meta": "facts of the training that made the file; the class names are kept",
    **dict.fromkeys(
        (
            *("optimizer", "optimizers", "optimizer_states", "optim_wrapper", "param_schedulers", "lr_scheduler"),
            *(
                "lr_schedulers",
                "scheduler",
                "amp",
                "scaler",
                "grad_scaler",
                "loss_scaler",
                "epoch",
                "iter",
                "iteration",
            ),
            *("step", "args", "best_score", "best_fitness", "seed", "rng_state"),
        ),
        TRAINING_STATE,
    ),
}


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint and what was done to get it.

    Args:
        checkpoint: the result.
        naming: whose names the source had.
        preset: name of the preset whose architecture it is.
        dropped: reason -> names of sections and entries that were left out for it.
        notes: what the person should know, a sentence each.
    """

    checkpoint: Checkpoint
    naming: Naming
    preset: str
    dropped: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Source:
    """What a file holds: entries under published names, class names if it tells them, and what was left out."""

    entries: dict[str, Tensor]
    class_names: list[str] | None
    dropped: dict[str, list[str]]


def convert_file(
    path: Path | str,
    *,
    preset: str | None = None,
    prefer: Settings | None = None,
    only_preferred: bool = False,
    overrides: Sequence[str] = (),
    expected_shapes: ExpectedShapes | None = None,
) -> Conversion:
    """Reads a published checkpoint and makes it ours, in memory.

    Args:
        path: a .pth file (zip or legacy format), or a .safetensors file with published names.
        preset: its architecture, by name or as a TOML file; None finds the preset that fits. The number of classes is
            always the file's.
        prefer: settings to take, without `preset`, when the architecture is theirs, whatever the number of queries.
        only_preferred: refuse any other architecture than theirs, and another number of queries.
        overrides: settings that differ from the preset, as `key=value`.
        expected_shapes: gives the shape of every entry of the model that belongs to settings; all are compared. None
            leaves that to whoever loads the result into a model.

    Raises:
        CheckpointError: unreadable, unsafe, unknown entries, or no preset has this architecture.
        ConfigError: an unknown preset or setting.
    """
    path = Path(path)
    source = _read(path)
    try:
        renamed = to_our_state(source.entries)
        facts = describe(renamed.state, source.entries)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    sha256 = file_sha256(path)
    overrides = [*overrides, f"model.num_classes={facts['num_classes']}"]
    candidates = []
    if prefer is not None:
        # Whoever only starts from the file may want another number of queries than it has.
        own = overrides if only_preferred else [*overrides, f"model.num_queries={facts['num_queries']}"]
        candidates.append(_candidate(prefer, prefer.name, own, preferred=True))
    if prefer is None or not only_preferred:
        names = [preset] if preset is not None else preset_names()
        candidates += [_candidate(load_preset(name), name, overrides) for name in names]
    settings, notes = _find_settings(path, facts, candidates, sha256=sha256)
    if expected_shapes is not None:
        _verify(path, renamed.state, expected_shapes(settings), settings.name)
    class_names, category_ids, class_notes = _classes(source.class_names, settings.model.num_classes)
    dropped = {reason: [*source.dropped.get(reason, []), *names] for reason, names in renamed.dropped.items()}
    notes += class_notes
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
    return Conversion(checkpoint, renamed.naming, settings.name, {**source.dropped, **dropped}, notes)


def _read(path: Path) -> _Source:
    """Reads the file and takes the entries out of their section."""
    if is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        if "format" in metadata and "settings" in metadata:
            raise CheckpointError(f"{path} was written by codetr and needs no conversion: use it as it is.")
        return _Source(tensors, None, {})
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__} and no entries by name: it is no checkpoint.")
    section = next((name for name in STATE_SECTIONS if isinstance(content.get(name), dict)), None)
    entries = content if section is None else content[section]
    dropped: dict[str, list[str]] = defaultdict(list)
    unknown = []
    for name in content if section is not None else ():
        if name in DROPPED_SECTIONS:
            dropped[DROPPED_SECTIONS[name]].append(f"[{name}]")
        elif name != section:
            unknown.append(str(name))
    if unknown:
        raise CheckpointError(
            f"{path} has sections beside its weights that no known program writes: {', '.join(unknown[:12])}. "
            "Nothing is left out unless it is known what it is: remove them from the file if they are not weights."
        )
    strange = [str(name) for name, value in entries.items() if not (isinstance(name, str) and _is_plain(value))]
    if strange or not entries:
        what = f"entries that are no plain tensors: {', '.join(strange[:12])}" if strange else "no entries"
        raise CheckpointError(
            f"{path} has {what}. A checkpoint is a dictionary of tensors, as such or as 'state_dict'."
        )
    return _Source(dict(entries), _told_classes(content.get("meta") if section else None), dict(dropped))


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with all its numbers in memory; an expanded one could pretend any size."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _told_classes(meta: Any) -> list[str] | None:
    """Class names from a checkpoint's `meta`: `CLASSES` of MMDetection 2 and Sense-X, `dataset_meta.classes` of 3."""
    if not isinstance(meta, dict):
        return None
    dataset = meta.get("dataset_meta")
    tables = [table for table in (dataset, meta) if isinstance(table, dict)]
    for names in (table.get(key) for table in tables for key in ("classes", "CLASSES")):
        if isinstance(names, str):  # a tuple of one name that lacks its comma
            return [names]
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


@dataclass(frozen=True)
class _Candidate:
    """A preset that a file may belong to: its settings with the file's number of classes, and its own number."""

    settings: Settings
    num_classes: int
    told_as: str
    preferred: bool

    def name_in(self, stem: str) -> int:
        """Words of the longest of the preset's names whose words are all in a file's, in any order; 0: none's are."""
        source = self.settings.source
        names = [self.settings.name, *(Path(name).stem for name in (source.filename, source.config) if name)]
        return max((len(words) for words in map(_words, names) if words <= _words(stem)), default=0)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def _find_settings(
    path: Path, facts: Mapping[str, Any], candidates: Sequence[_Candidate], *, sha256: str
) -> tuple[Settings, list[str]]:
    """The settings whose architecture is the file's, and notes on the choice."""
    gaps = {id(each): differences(each.settings.model, facts) for each in candidates}
    known = [each for each in candidates if each.settings.source.sha256 == sha256]
    fitting = known or [each for each in candidates if not gaps[id(each)]]
    if not fitting:
        closest = min(candidates, key=lambda each: len(gaps[id(each)]))
        raise CheckpointError(_other_architecture(path, closest, gaps[id(closest)]))
    # Presets often share an architecture: the one that was asked for, one for as many classes, one named in the file.
    fitting = [each for each in fitting if each.preferred] or fitting
    fitting = [each for each in fitting if each.num_classes == facts["num_classes"]] or fitting
    longest = max(each.name_in(path.stem) for each in fitting)
    fitting = [each for each in fitting if each.name_in(path.stem) == longest]
    chosen = min(fitting, key=lambda each: (len(each.settings.name), each.settings.name))
    others = sorted(each.settings.name for each in fitting if each is not chosen)
    if not others:
        return chosen.settings, []
    return chosen.settings, [
        f"The architecture is {chosen.settings.name}'s and also that of {listed(others, 6)}, which may prepare "
        "images in another way: choose with --preset."
    ]


def _candidate(settings: Settings, told_as: str, overrides: Sequence[str], *, preferred: bool = False) -> _Candidate:
    return _Candidate(apply_overrides(settings, list(overrides)), settings.model.num_classes, told_as, preferred)


def _other_architecture(path: Path, closest: _Candidate, gap: Mapping[str, tuple[Any, Any]]) -> str:
    """What differs from the closest preset, and how to say that it is so."""
    told = ", ".join(f"{key} is {theirs} instead of {ours}" for key, (ours, theirs) in gap.items())
    options = [f"--set {key}={_setting_text(theirs)}" for key, (_, theirs) in gap.items() if "*" not in key]
    return (
        f"{path} is of another architecture than preset {closest.settings.name!r}: {told}. Name the preset it was "
        f"trained with, or say how it differs: --preset {closest.told_as} {' '.join(options)}"
    )


def _setting_text(value: Any) -> str:
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


def _verify(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], preset: str) -> None:
    """Compares every entry with the model's.

    Raises:
        CheckpointError: entries are missing, unexpected or of other shapes.
    """
    check_entries(
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        differing=[
            f"{name} has {shape_text(state[name].shape)} instead of {shape_text(shape)}"
            for name, shape in expected.items()
            if name in state and tuple(state[name].shape) != tuple(shape)
        ],
        source=f"{path} (preset {preset!r})",
    )


def _classes(told: list[str] | None, num_classes: int) -> tuple[list[str], list[int], list[str]]:
    """Class names, category ids and notes."""
    notes = []
    if told is not None and len(told) != num_classes:
        notes.append(f"The file names {len(told)} classes but its heads have {num_classes}: its names are not used.")
        told = None
    if told is None and num_classes == len(COCO_CATEGORIES):
        told = list(COCO_CATEGORIES.values())
        notes.append("The file names no classes; it has 80, so they are taken to be COCO's.")
    if told is None:
        told = numbered_names(num_classes)
        notes.append(
            f"The file names no classes; they are called {told[0]} ... {told[-1]}, and taken for those of annotations "
            "with the same category ids."
        )
    if is_coco(told):
        return told, list(COCO_CATEGORIES), notes
    notes.append(f"The file tells no category ids; they are 1 ... {num_classes} in the order of its classes.")
    return told, list(range(1, num_classes + 1)), notes
