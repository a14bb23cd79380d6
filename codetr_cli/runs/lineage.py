"""What weights were trained from, and the licence that follows from it. The only place that decides a licence.

A training records in its checkpoints what it started from, so that copies of them keep it. Of checkpoints of earlier
versions the run folder says it. Texts are for others: they have no paths of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from codetr_cli.errors import CodetrError
from codetr_cli.runs.folder import RunFolder
from codetr_cli.weights.checkpoint import content_id, file_sha256, read_extra
from codetr_cli.weights.licence import LICENCE, LICENCE_REASON, Licence, recorded_licence

ORIGIN, ORIGIN_SHA256, BASE_MODEL = "origin", "origin_sha256", "base_model"
"""Keys in `Checkpoint.extra` of the checkpoint that a training started from: its name, the hash of the published file
or, of a checkpoint of codetr, of its content, and the repository that it was published in."""
REPOSITORY = "repository"
"""Key in `Checkpoint.extra` of the repository that a checkpoint was published in, as `org/name`."""
MAX_CHAIN = 20
"""Trainings that follow each other, each from the weights of the one before."""
MAX_TEXT = 1000
"""Characters of a recorded text. The start may be of anybody, and each training adds to a reason: a checkpoint with
longer texts than are read would be lost."""


def lineage_of(start: Path) -> dict[str, str]:
    """The entries of `Checkpoint.extra` for a training that starts from a checkpoint.

    Raises:
        CheckpointError: the file cannot be read.
    """
    extra = read_extra(start) or {}
    licence = _inherited(start, MAX_CHAIN)
    found = {
        ORIGIN: name_of(start),
        ORIGIN_SHA256: extra.get("source_sha256") or content_id(start) or file_sha256(start),
        **({BASE_MODEL: extra[REPOSITORY]} if extra.get(REPOSITORY) else {}),
        **licence.as_extra,
    }
    return {key: text[:MAX_TEXT] for key, text in found.items()}


def recorded_lineage(extra: Mapping[str, str]) -> dict[str, str]:
    """Those entries of a checkpoint of a training, for its continuation; none of earlier versions."""
    keys = (ORIGIN, ORIGIN_SHA256, BASE_MODEL, LICENCE, LICENCE_REASON)
    return {key: extra[key] for key in keys if key in extra}


def licence_of(path: Path) -> Licence:
    """The licence of the weights in a file; unknown rather than guessed.

    Args:
        path: a checkpoint of codetr, possibly in a run folder, or a published one.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return _licence_of(path, MAX_CHAIN)


def _licence_of(path: Path, most: int) -> Licence:
    found = recorded_licence(path)
    extra = read_extra(path)
    if found.name is not None or extra is None or "source_sha256" in extra:
        return found
    if extra.get(ORIGIN):  # what it started from may be another file by now
        return Licence(None, f"they were fine-tuned from {extra[ORIGIN]}, whose licence was not known")
    start = start_of(path)
    return found if start is None else _inherited(Path(start), most)


def _inherited(start: Path, most: int) -> Licence:
    """The licence of weights that were trained from those in a file."""
    if most == 0:
        return Licence(None, f"more than {MAX_CHAIN} trainings follow each other")
    name = name_of(start)
    try:
        before = _licence_of(start, most - 1)
    except CodetrError:
        return Licence(None, f"they were fine-tuned from {name}, which cannot be read now")
    return Licence(before.name, f"fine-tuned from {name}, {before.reason}")


def run_of(weights: Path) -> Path | None:
    """The run folder of a checkpoint, `RUN/checkpoints/best/model.safetensors`; None: it is not in one."""
    folder = weights.absolute().parent
    return folder.parent.parent if folder.parent.name == "checkpoints" else None


def start_of(path: Path) -> str | None:
    """The file that the training of a checkpoint started from, as its run folder says; None: none, or not known."""
    run = run_of(path)
    inputs = None if run is None else RunFolder(run).inputs()
    return None if inputs is None else inputs.weights


def name_of(path: Path) -> str:
    """A checkpoint's name for others: that of its run or file, without the folders of this machine."""
    run = run_of(path)
    if run is not None:
        return f"{run.parent.name}/{run.name}"
    return path.absolute().parent.name if path.stem == "model" else path.name
