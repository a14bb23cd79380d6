"""What the cache holds besides converted datasets: weights, measurements of kernels, and what killed processes left.

Only names that codetr writes count. Links are neither followed nor deleted: they are of the user.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.files import COMPILED_FOLDER, TEMPORARY_NAME, cache_dir, is_abandoned, make_way
from codetr_cli.locks import is_locked
from codetr_cli.receipts import has_changed, receipt_path
from codetr_cli.weights.remote import check_kind, doubt_path

WEIGHT_FOLDERS = {"presets": 1, "backbones": 0, "urls": 1, "converted": 0}
"""Folder in the cache -> levels of folders in it."""
KERNEL_FOLDER = "triton"
_WEIGHTS = re.compile(r"[^.].*\.(pth|pt|safetensors|bin|ckpt|pkl|pickle|tar|zip)", re.IGNORECASE | re.DOTALL)
_BESIDE = re.compile(r"\.(.+)\.(receipt|doubt)", re.DOTALL)
_MEASUREMENT = re.compile(r"(forward|backward)-[0-9a-f]{16}\.json")
_PART = re.compile(r"(.+)\.part(\.json|\.lock)?", re.DOTALL)


@dataclass(frozen=True)
class CachedFile:
    """A file in the cache, or the folder of compiled code.

    Args:
        path: the file.
        kind: weights, a measurement of kernels or compiled ones, or what an unfinished download or a killed process
            left.
        size_bytes: with the files that belong to it.
        beside: the files that belong to it.
        problem: why it cannot be used, empty if it can.
    """

    path: Path
    kind: Literal["weights", "kernels", "leftover"]
    size_bytes: int
    beside: tuple[Path, ...] = ()
    problem: str = ""


def find_cached_files() -> list[CachedFile]:
    """All files of the cache besides converted datasets, without those that another process is writing."""
    found: list[CachedFile] = []
    for name, levels in WEIGHT_FOLDERS.items():
        for folder in _folders(cache_dir() / name, levels):
            found += _in_folder(folder, anything=name == "urls")
    for path in _regular_files(cache_dir() / KERNEL_FOLDER):
        if _MEASUREMENT.fullmatch(path.name):
            found.append(CachedFile(path, "kernels", _size(path)))
        elif is_abandoned(path):
            found.append(CachedFile(path, "leftover", _size(path), problem="unfinished"))
    compiled = cache_dir() / COMPILED_FOLDER
    if compiled.is_dir() and not compiled.is_symlink():
        found.append(CachedFile(compiled, "kernels", sum(map(_size, compiled.rglob("*")))))
    return sorted(found, key=lambda file: file.path)


def delete_cached_files(files: Iterable[CachedFile]) -> None:
    """Deletes files and the folders of presets and URLs that are empty then.

    Raises:
        ResourceError: a file cannot be deleted.
    """
    for file in files:
        try:
            for path in (file.path, *file.beside):
                make_way(path)
        except OSError as error:
            raise ResourceError(
                f"cannot delete {error.filename}: {error.strerror}. Check the permissions of its folder."
            ) from error
        if file.path.parent.parent.name in WEIGHT_FOLDERS:
            with suppress(OSError):  # not empty
                file.path.parent.rmdir()


def _in_folder(folder: Path, *, anything: bool) -> Iterator[CachedFile]:
    """The files of one folder.

    Args:
        folder: of weights.
        anything: whether files of any name are weights, as the names that URLs end with.
    """
    paths = _regular_files(folder)
    names = {path.name for path in paths}
    for path in paths:
        beside, part = _BESIDE.fullmatch(path.name), _PART.fullmatch(path.name)
        if TEMPORARY_NAME.fullmatch(path.name):
            if is_abandoned(path):
                yield CachedFile(path, "leftover", _size(path), problem="unfinished")
        elif beside:
            if beside[1] not in names:
                yield CachedFile(path, "leftover", _size(path), problem="the file that it describes is missing")
        elif part:
            if not is_locked(path.with_name(f"{part[1]}.part.lock")):
                yield CachedFile(path, "leftover", _size(path), problem="an unfinished download")
        elif _WEIGHTS.fullmatch(path.name) or receipt_path(path).name in names or (anything and path.name[0] != "."):
            others = tuple(other for other in (receipt_path(path), doubt_path(path)) if other.name in names)
            size = _size(path) + sum(map(_size, others))
            yield CachedFile(path, "weights", size, others, _problem(path))


def _problem(path: Path) -> str:
    changed = has_changed(path)
    if changed:
        return "has changed since it was written"
    try:
        if changed is None:
            check_kind(path, "")
    except (OSError, CheckpointError) as error:
        return str(error).removeprefix(f"{path} ").rstrip(". ")
    return "could not be used" if doubt_path(path).is_file() else ""


def _folders(folder: Path, levels: int) -> Iterator[Path]:
    """The folders at that level, 0 for the folder itself."""
    if folder.is_symlink() or not folder.is_dir():
        return
    if levels == 0:
        yield folder
        return
    with suppress(OSError):
        for entry in sorted(folder.iterdir()):
            yield from _folders(entry, levels - 1)


def _regular_files(folder: Path) -> list[Path]:
    paths: list[Path] = []
    if not folder.is_symlink():
        with suppress(OSError):
            paths = [path for path in sorted(folder.iterdir()) if stat.S_ISREG(path.lstat().st_mode)]
    return paths


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0
