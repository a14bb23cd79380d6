"""The cache of converted annotations: one folder a conversion, and where each came from, for messages.

A conversion is a COCO file a split and a summary, which is written last. The summary holds the state of these files and
a digest of itself: a conversion that was damaged or changed is not used but made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli import files
from codetr_cli.errors import ResourceError
from codetr_cli.files import make_way
from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.receipts import FileState, describe_file, is_unchanged

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
MAX_SUMMARY_BYTES = 64 << 20
IMAGES = "images"
"""The folder of images that were inside the files of a data set."""
_IMAGES = re.compile(r"images|\.images(\.before)?\.([0-9a-f]{8}-)?\d+\.tmp")
OWN_FILES = re.compile(
    r"summary\.json|instances_\w+\.json|\.(summary|instances_\w+)\.json\.([0-9a-f]{8}-)?\d+\.tmp|" + _IMAGES.pattern
)
"""Names of the files that a conversion has; others in its folder are not deleted."""

Shape = Any
"""What a value of JSON must be: a type, a list with the shape of its elements, or a table with that of its values, by
key or for all keys (`str`)."""
COMMON = {"images_dir": str, "folders": [str], "names": {str: str}, "files": {str: {str: object}}}
"""The shape of every summary."""


@dataclass(frozen=True)
class Source:
    """Where the annotations of a file come from: the file, or for one in the cache the folders that it was made of.

    `folders` are those of the data sets, for `codetr prepare`, or an annotation file under any name.
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
        with suppress(OSError, ValueError, KeyError):
            summary = _read_summary(annotations_path.parent, COMMON)
            split = annotations_path.stem.removeprefix("instances_")
            return Source(summary["names"][split], tuple(Path(folder) for folder in summary["folders"]))
    is_inside = annotations_path.parent.name == "annotations"
    return Source(str(annotations_path), (annotations_path.parent.parent if is_inside else annotations_path,))


def content_digest(path: Path) -> str:
    """SHA-256 of a file, 16 hexadecimal digits: identifies its content, whenever it was written."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@dataclass(frozen=True)
class CacheEntry:
    """One conversion in the cache; `sources` are the folders it was made of, none for an unfinished or damaged one.

    `problem` is what makes it unusable, empty for a usable one.
    """

    folder: Path
    sources: tuple[str, ...]
    size_bytes: int
    last_used: float
    problem: str = ""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name


def cache_folder() -> Path:
    """The folder of all conversions."""
    return files.cache_dir() / "datasets"


def cache_entries() -> list[CacheEntry]:
    """All conversions, the last used one first; links are not followed."""
    try:
        found = [_entry(path) for path in cache_folder().iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
    return sorted(found, key=lambda entry: (-entry.last_used, entry.name))


def clear_cache() -> list[CacheEntry]:
    """Deletes all conversions and returns them; each is made again when it is needed.

    Files that no conversion has stay, and so do their folders.

    Raises:
        ResourceError: a file cannot be deleted.
    """
    entries = cache_entries()
    try:
        for entry in entries:
            (entry.folder / SUMMARY).unlink(missing_ok=True)  # first: an interrupted deletion leaves no conversion
            delete_conversion(entry.folder)
        for lock in cache_folder().glob("*.lock"):  # of earlier versions
            lock.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot delete converted annotations in {cache_folder()}: {error.strerror or error}. Check the "
            "permissions of that folder"
        ) from error
    return entries


def delete_conversion(folder: Path) -> None:
    """Deletes the files of a conversion, and its folder if nothing else is in it.

    Raises:
        OSError: a file cannot be deleted.
    """
    for path in folder.iterdir():
        if OWN_FILES.fullmatch(path.name):
            make_way(path)
    with suppress(OSError):  # it holds something else
        folder.rmdir()


def _entry(folder: Path) -> CacheEntry:
    size_bytes, last_used = 0, folder.lstat().st_mtime
    with suppress(OSError):  # another process may be deleting it
        size_bytes = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        summary = _read_summary(folder, COMMON)
        last_used = (folder / SUMMARY).stat().st_mtime
        sources, problem = tuple(summary["folders"]), _changed_file(folder, summary)
    except FileNotFoundError:
        sources, problem = (), "unfinished"
    except (OSError, ValueError) as error:
        sources, problem = (), f"{SUMMARY}: {getattr(error, 'strerror', None) or error}"
    return CacheEntry(folder, sources, size_bytes, last_used, problem)


# ----------------------------------------------------------------------------------------------------- reading, writing


def find_conversion(folder: Path, shape: Mapping[str, Shape]) -> dict[str, Any] | None:
    """The summary of a complete conversion, whose use is recorded; None if there is none that can be used.

    A conversion that was damaged or changed since it was made is logged and counts as none.

    Args:
        folder: of the conversion.
        shape: of its summary, besides `COMMON`.

    Raises:
        ResourceError: a damaged conversion cannot be deleted.
    """
    try:
        summary = _read_summary(folder, {**COMMON, **shape})
        problem = _changed_file(folder, summary)
    except (FileNotFoundError, NotADirectoryError):
        problem = ""
    except (OSError, ValueError) as error:
        problem = f"{SUMMARY}: {getattr(error, 'strerror', None) or error}"
    else:
        if not problem:
            with suppress(OSError):  # a cache that only others may write to
                os.utime(folder / SUMMARY)
            return summary
    with writing_to_cache():
        if problem:
            logger.warning("the conversion in the cache, %s, is damaged (%s): it is made again", folder, problem)
        _prepare(folder)
    return None


def _prepare(folder: Path) -> None:
    """Deletes the summary, and what is in the place of a file or folder. Files stay: others may be writing them now."""
    if folder.is_symlink() or not folder.is_dir():  # a link would lead elsewhere
        make_way(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        is_misplaced = not path.is_file() and not _IMAGES.fullmatch(path.name)
        if path.name == SUMMARY or (OWN_FILES.fullmatch(path.name) and is_misplaced):
            make_way(path)


def finish_conversion(folder: Path, names: Iterable[str], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the summary, after the files.

    Args:
        folder: of the conversion.
        names: of its files.
        summary: the summary without the state of the files.

    Returns:
        the summary, complete.
    """
    states = {name: describe_file(folder / name).as_json() for name in names}
    complete = {**summary, "files": states}
    write_json(folder / SUMMARY, {**complete, "digest": _summary_digest(complete)})
    return complete


def _read_summary(folder: Path, shape: Mapping[str, Shape]) -> dict[str, Any]:
    """The summary of a complete conversion; its files are not compared.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is damaged, changed, or of another version.
    """
    summary = parse_json(read_bytes(folder / SUMMARY, MAX_SUMMARY_BYTES))
    if not has_shape(summary, {**shape, "digest": str}):
        raise ValueError("it is not a summary of this version")
    if summary.pop("digest") != _summary_digest(summary):
        raise ValueError("it was changed")
    return dict(summary)


def _summary_digest(summary: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def _changed_file(folder: Path, summary: Mapping[str, Any]) -> str:
    """The first file of a conversion that is not as it was written, for a message; empty if all are."""
    if not {f"instances_{split}.json" for split in summary["names"]} <= set(summary["files"]):
        return "a file is missing in its summary"
    for name, table in summary["files"].items():
        state = FileState.parse(table)
        if not OWN_FILES.fullmatch(name) or state is None or not is_unchanged(folder / name, state):
            return f"{name} is missing or has changed"
    return ""


def has_shape(value: object, shape: Shape) -> bool:
    """Whether a value of JSON has a shape; tables may have more keys than those that are named."""
    if isinstance(shape, list):
        return isinstance(value, list) and all(has_shape(element, shape[0]) for element in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(has_shape(element, shape[str]) for element in value.values())
        return all(key in value and has_shape(value[key], part) for key, part in shape.items())
    return isinstance(value, shape)


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


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Writes a text file atomically, piece by piece."""
    with files.replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def write_json(path: Path, table: Any) -> None:
    """Writes a JSON file atomically."""
    files.write_text(path, json.dumps(table))
