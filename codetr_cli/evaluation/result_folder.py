"""Where the results of evaluations are: names of the files, and the folder beside a checkpoint or in its run."""

from __future__ import annotations

from pathlib import Path

from codetr_cli.errors import ConfigError
from codetr_cli.files import cache_dir, real_path

DETECTIONS_NAME = "detections.json"
METRICS_NAME = "metrics.json"
SPEED_NAME = "speed.json"
RESULT_NAMES = (DETECTIONS_NAME, METRICS_NAME, SPEED_NAME)
"""The files of an evaluation; a folder with one of them is not free."""


def default_folder(weights: Path | None, name: str, split: str) -> Path:
    """The folder of an evaluation where none is given.

    Beside the checkpoint; for a run in the run folder itself, since its checkpoint folders are replaced. Random weights
    and those in the cache have a folder of their name.

    Args:
        weights: the file of the checkpoint; None: random weights.
        name: of a checkpoint without a place of its own.
        split: that is evaluated.
    """
    folder = None if weights is None else evaluations_folder(weights)
    return (folder or Path("eval") / name) / split


def evaluations_folder(weights: Path) -> Path | None:
    """The folder that has the evaluations of a checkpoint by default; None: they are in no place of its own."""
    base = _base_folder(weights)
    if base is None:
        return None
    return base / "eval" if base == weights.parent else base / "eval" / weights.parent.name


def check_place(folder: Path, weights: Path | None) -> None:
    """Refuses a default folder that links lead elsewhere: a run may come from somebody else.

    Raises:
        ConfigError: a folder between that of the run, or of the checkpoint, and that of the results is a link.
    """
    base = _base_folder(weights)
    if base is not None and not real_path(folder).is_relative_to(real_path(base)):
        place = next(path for path in (folder, *folder.parents) if path.is_symlink())
        raise ConfigError(f"{place} is a symbolic link out of {base}: remove it, or give another folder with --out")


def _base_folder(weights: Path | None) -> Path | None:
    """The folder of the run, or else of the checkpoint, that has the results; None: they are in this folder."""
    if weights is None or cache_dir() in weights.parents:
        return None
    folder = weights.parent
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder
