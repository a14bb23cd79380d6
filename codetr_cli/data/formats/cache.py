"""The cache of annotation files that codetr made itself, and what stands behind each, for messages.

Every conversion is a folder with a COCO file a split and a summary, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from codetr_cli.errors import ResourceError

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Source:
    """What a person knows an annotation file by.

    Args:
        name: the file, or for one in the cache the folders it was made of.
        folders: of the data sets; `codetr prepare` checks them.
    """

    name: str
    folders: tuple[Path, ...]

    @property
    def check(self) -> str:
        """The command that lists all that is wrong."""
        return " and ".join(f"`codetr prepare {shlex.quote(str(folder))}`" for folder in self.folders)


def cache_folder() -> Path:
    """Where conversions are kept: below `CODETR_CACHE`, else below ~/.cache/codetr."""
    told = os.environ.get("CODETR_CACHE")
    return (Path(told).expanduser() if told else Path.home() / ".cache" / "codetr") / "datasets"


def source_of(annotations_path: Path) -> Source:
    """What a person knows an annotation file by, whether it lies in the cache or not."""
    if annotations_path.is_relative_to(cache_folder()):
        summary = json.loads((annotations_path.parent / SUMMARY).read_text(encoding="utf-8"))
        split = annotations_path.stem.removeprefix("instances_")
        return Source(summary["names"][split], tuple(Path(folder) for folder in summary["folders"]))
    return Source(str(annotations_path), (annotations_path.parent.parent,))


def content_digest(path: Path) -> str:
    """SHA-256 of a file, 16 hexadecimal digits: whether annotations are those of before, whenever they were written."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def filling_cache() -> Iterator[None]:
    """Says where the cache is, and how to have it elsewhere, when nothing can be written there.

    Raises:
        ResourceError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"cannot keep converted annotations in {cache_folder()}: {error.strerror or error}. Make room there or "
            "allow writing, or name another folder with the environment variable CODETR_CACHE"
        ) from error


def write_json(path: Path, table: Any) -> None:
    """Writes a file that is there whole or not at all."""
    write_whole(path, lambda file: file.write(json.dumps(table)))


def write_whole(path: Path, write: Callable[[TextIO], object]) -> None:
    """Writes a text file piece by piece; it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
