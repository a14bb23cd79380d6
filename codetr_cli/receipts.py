"""Recognises files of the cache that have changed since they were written: by size and times, else by their content.

Times alone would condemn a cache that was copied; the content alone would cost seconds for every gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codetr_cli.errors import ResourceError
from codetr_cli.files import replace_file
from codetr_cli.reading import check_regular, open_file, parse_json, read_bytes

RECEIPT_BYTES = 32_000


@dataclass(frozen=True)
class FileState:
    """A file as it was written: size in bytes, times of the last change of content and status, digest of the content.

    The second time is the one that programs cannot set.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @classmethod
    def parse(cls, table: object) -> FileState | None:
        """The state in a JSON table; None if that is something else."""
        if not isinstance(table, Mapping) or set(table) != set(cls.__dataclass_fields__):
            return None
        state = cls(**table)
        numbers = (state.size, state.mtime_ns, state.ctime_ns)
        fits = all(type(number) is int for number in numbers) and isinstance(state.sha256, str)
        return state if fits else None

    def as_json(self) -> dict[str, Any]:
        """The table that `parse` reads."""
        return asdict(self)


def describe_file(path: Path) -> FileState:
    """The present state of a file.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open_file(path) as file:
        status = os.fstat(file.fileno())  # of the file that is read, before: a change on the way shows in its times
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest)


def is_unchanged(path: Path, state: FileState) -> bool:
    """Whether a file still has the content of a state; a file that cannot be read has not."""
    try:
        status = check_regular(path)
        if status.st_size != state.size:
            return False
        if (status.st_mtime_ns, status.st_ctime_ns) == (state.mtime_ns, state.ctime_ns):
            return True
        return describe_file(path).sha256 == state.sha256
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------------------ receipts


def receipt_path(path: Path) -> Path:
    """Where the state of a file is kept: beside it."""
    return path.with_name(f".{path.name}.receipt")


def write_receipt(path: Path, **notes: str) -> None:
    """Keeps the present state of a file, with notes; nothing is kept in a folder that cannot be written."""
    with suppress(OSError, ResourceError):
        table = {"state": describe_file(path).as_json(), "notes": notes}
        with replace_file(receipt_path(path)) as temporary:
            temporary.write_text(json.dumps(table), encoding="utf-8")


def read_receipt(path: Path) -> tuple[FileState, dict[str, str]] | None:
    """The kept state of a file, and the notes; None without a receipt."""
    try:
        table = parse_json(read_bytes(receipt_path(path), RECEIPT_BYTES))
        state, notes = FileState.parse(table["state"]), table["notes"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if state is None or not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        return None
    return state, notes


def has_changed(path: Path) -> bool | None:
    """Whether a file has changed since its receipt was written; None without a receipt."""
    receipt = read_receipt(path)
    if receipt is None:
        return None
    state, notes = receipt
    if not is_unchanged(path, state):
        return True
    if path.stat().st_ctime_ns != state.ctime_ns:
        write_receipt(path, **notes)  # copied: the next time, its content need not be read
    return False
