"""SHA-256 of every file of a checkpoint, stored beside them: a checkpoint that a disk or a copy damaged is not used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from codetr_cli.errors import CheckpointError
from codetr_cli.files import write_text
from codetr_cli.reading import check_regular, parse_json, read_bytes, stays_inside
from codetr_cli.weights.checkpoint import file_sha256

SUMS = "sums.json"
MAX_SUMS_BYTES = 1 << 24


def write_sums(folder: Path, files: Mapping[str, Path]) -> None:
    """Writes the SHA-256 of each file of a checkpoint, synced to disk.

    Args:
        folder: of the checkpoint.
        files: name within the folder -> path of the file now, which may be a temporary name.
    """
    sums = {name: file_sha256(path) for name, path in files.items()}
    write_text(folder / SUMS, json.dumps({"sha256": sums}, indent=2) + "\n")


def check_sums(folder: Path) -> None:
    """Compares every file with its checksum; a checkpoint without them, from an earlier version, passes.

    Raises:
        CheckpointError: a file is missing or changed, or the checksums cannot be read.
    """
    path = folder / SUMS
    try:
        sums = parse_json(read_bytes(path, MAX_SUMS_BYTES))["sha256"]
        expected = {str(name): str(digest) for name, digest in sums.items()}
        for name in expected:
            _check_name(name)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: it does not hold the checksums of a checkpoint ({error})") from error
    found: dict[tuple[int, int], str] = {}
    for name, digest in expected.items():
        try:
            status = check_regular(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from error
        if any(path.is_symlink() for path in (folder / name, (folder / name).parent) if path != folder):
            raise CheckpointError(f"{folder / name} is a link, not a file of the checkpoint")
        file = (status.st_dev, status.st_ino)  # hashed once under all its names
        if file not in found:
            found[file] = file_sha256(folder / name)
        if found[file] != digest:
            raise CheckpointError(f"{folder / name} is damaged: it does not have the SHA-256 that {path} gives")


def _check_name(name: str) -> None:
    """Refuses names outside the checkpoint, and a second spelling of one: each file is read once."""
    parts = name.split("/")
    if len(parts) > 2 or not all(parts) or {".", ".."} & set(parts) or not stays_inside(name):
        raise ValueError(f"{name!r} is not the name of a file of a checkpoint")
