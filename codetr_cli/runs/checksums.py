"""SHA-256 of every file of a checkpoint, stored beside them: a checkpoint that a disk or a copy damaged is not used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from codetr_cli.errors import CheckpointError
from codetr_cli.files import write_text
from codetr_cli.weights.checkpoint import file_sha256

SUMS = "sums.json"


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
        sums = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        expected = {str(name): str(digest) for name, digest in sums.items()}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: it does not hold the checksums of a checkpoint ({error})") from error
    for name, digest in expected.items():
        if file_sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name} is damaged: it does not have the SHA-256 that {path} gives")
