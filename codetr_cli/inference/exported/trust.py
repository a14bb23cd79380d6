"""Which exported files may run their own code.

A package of PyTorch (`.pt2`) and an engine of TensorRT contain compiled code: to load one is to run a program. `codetr`
loads those that it has made for this user on this machine, and those whose digest the user gives in the environment.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from codetr_cli.errors import CheckpointError
from codetr_cli.models.torch_compile import private_cache
from codetr_cli.reading import open_file

logger = logging.getLogger(__name__)

VARIABLE = "CODETR_TRUST"
"""Environment variable with SHA-256 digests of files that may run their code, separated by commas."""

LIST_NAME = "own-packages"
"""File of the private cache: a digest a line."""

MAX_LIST = 2**20
"""Bytes of the list that count, the newest: 16,000 digests."""


def remember(path: Path) -> None:
    """Adds a file that codetr has made to the list of its own; does nothing where no private folder can be had.

    A list that cannot be written is no reason to lose a file that took minutes: a warning names what is to be done.
    """
    folder = private_cache()
    if folder is None:
        return
    digest = file_digest(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(folder / LIST_NAME, flags, 0o600)
        try:
            os.write(descriptor, f"{digest}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning(
            "%s cannot be listed in %s (%s): to load it, set the environment variable %s=%s",
            *(path.name, folder / LIST_NAME, error.strerror or error, VARIABLE, digest),
        )


def check_trusted(path: Path) -> None:
    """Refuses a file whose code may not run here.

    Args:
        path: nothing of it has been executed yet.

    Raises:
        CheckpointError: codetr has not made it here, and the environment does not name its digest.
    """
    digest = file_digest(path)
    if digest in _given() or digest in _own():
        return
    raise CheckpointError(
        f"{path} contains compiled code, which runs when the file is loaded, and codetr has not made this file for "
        f"this user on this machine. If you trust its origin, set the environment variable {VARIABLE}={digest}; "
        "otherwise export the checkpoint again here, or use another format, such as ONNX."
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _given() -> set[str]:
    return set(re.findall(r"[0-9a-f]{64}", os.environ.get(VARIABLE, "").lower()))


def _own() -> set[str]:
    folder = private_cache()
    if folder is None:
        return set()
    try:
        with open_file(folder / LIST_NAME) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LIST))
            content = file.read(MAX_LIST)
    except OSError:
        return set()
    return set(content.decode("ascii", "replace").split())  # part of a digest at the start equals none
