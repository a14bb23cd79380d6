"""Where the results of a verb are written without overwriting anything that exists."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path


def free_folder(folder: Path, marker: str, *, force: bool) -> Path:
    """The folder, or the first of folder_2, folder_3, ... without the marker, a file of earlier results.

    With `force` it is the folder in any case.
    """
    return _first_free(folder, lambda candidate: force or not (candidate / marker).exists())


def free_file(file: Path, *, force: bool) -> Path:
    """The file, or the first of file_2, file_3, ... with the same suffix that does not exist."""
    return _first_free(file, lambda candidate: force or not candidate.exists())


def _first_free(path: Path, is_free: Callable[[Path], bool]) -> Path:
    names = (path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(1))
    return next(name for name in names if is_free(name))
