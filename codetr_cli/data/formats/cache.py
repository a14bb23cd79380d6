"""The cache of converted annotations: one folder a conversion, and where each came from, for messages.

A conversion is a COCO file a split and a summary, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli import files
from codetr_cli.errors import ResourceError

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Source:
    """Where the annotations of a file come from: the file, or for one in the cache the folders that it was made of.

    `folders` are those of the data sets, for `codetr prepare`.
    """

    name: str
    folders: tuple[Path, ...]

    @property
    def check(self) -> str:
        """The command that lists every problem."""
        return " and ".join(f"`codetr prepare {shlex.quote(str(folder))}`" for folder in self.folders)


def source_of(annotations_path: Path) -> Source:
    """The source of an annotation file, in the cache or not."""
    if annotations_path.is_relative_to(cache_folder()):
        summary = read_summary(annotations_path.parent)
        split = annotations_path.stem.removeprefix("instances_")
        return Source(summary["names"][split], tuple(Path(folder) for folder in summary["folders"]))
    return Source(str(annotations_path), (annotations_path.parent.parent,))


def content_digest(path: Path) -> str:
    """SHA-256 of a file, 16 hexadecimal digits: identifies its content, whenever it was written."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@dataclass(frozen=True)
class CacheEntry:
    """One conversion in the cache; `sources` are the folders it was made of, none for an unfinished one."""

    folder: Path
    sources: tuple[str, ...]
    size_bytes: int
    last_used: float

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name


def cache_folder() -> Path:
    """The folder of all conversions."""
    return files.cache_dir() / "datasets"


def cache_entries() -> list[CacheEntry]:
    """All conversions, the last used one first."""
    folder = cache_folder()
    found = [_entry(path) for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda entry: (-entry.last_used, entry.name))


def clear_cache() -> list[CacheEntry]:
    """Deletes all conversions and returns them; each is made again when it is needed.

    Raises:
        ResourceError: a file cannot be deleted.
    """
    entries = cache_entries()
    try:
        for entry in entries:
            (entry.folder / SUMMARY).unlink(missing_ok=True)  # first: an interrupted deletion leaves no conversion
            shutil.rmtree(entry.folder)
        for lock in cache_folder().glob("*.lock"):  # of earlier versions
            lock.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot delete converted annotations in {cache_folder()}: {error.strerror or error}. Check the "
            "permissions of that folder"
        ) from error
    return entries


def _entry(folder: Path) -> CacheEntry:
    summary = folder / SUMMARY
    try:
        sources = tuple(json.loads(summary.read_text(encoding="utf-8"))["folders"])
        last_used = summary.stat().st_mtime
    except (OSError, ValueError, KeyError):
        sources, last_used = (), folder.stat().st_mtime
    size_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return CacheEntry(folder, sources, size_bytes, last_used)


def is_cached(folder: Path) -> bool:
    """Whether a conversion is complete; records that it is used."""
    try:
        os.utime(folder / SUMMARY)
    except FileNotFoundError:
        return False
    except OSError:  # a cache that only others may write to
        return (folder / SUMMARY).is_file()
    return True


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a complete conversion."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return summary


@contextmanager
def writing_to_cache() -> Iterator[None]:
    """Explains where the cache is, and how to move it, when it cannot be written to.

    Raises:
        ResourceError: instead of any error of writing.
    """
    try:
        yield
    except (OSError, ResourceError) as error:
        cause = files.system_error(error) or error
        reason = getattr(cause, "strerror", None) or cause
        raise ResourceError(
            f"cannot write converted annotations to {cache_folder()}: {reason}. Free space there, fix "
            "its permissions, or choose another folder with the environment variable CODETR_CACHE"
        ) from error


def write_json(path: Path, table: Any) -> None:
    """Writes a JSON file atomically."""
    files.write_text(path, json.dumps(table))
