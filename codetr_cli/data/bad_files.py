"""Image files that cannot be read, where the settings say to go on without them.

A scan of all headers before a training finds those that are missing, cut short or no images. Damage that shows only in
decoding is met on the way: then a training image is replaced by another one, chosen by seed, epoch and index alone,
and an image of an evaluation becomes a blank one that is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codetr_cli.data.batch import Batch
from codetr_cli.data.checks.files import HEADER_THREADS
from codetr_cli.data.formats.intermediate import MAX_SHARE
from codetr_cli.data.headers import ImageFileError, read_header
from codetr_cli.errors import DatasetError

MET = "bad_files"
"""Key of a target: the files that could not be read in its place, if there were any."""

BLANK = np.full((64, 64, 3), 114, np.uint8)
"""Stands for an image that an evaluation leaves out."""

CHUNK = 256
SHOWN = 5


class BadFile(NamedTuple):
    """A file and why it cannot be read, a phrase."""

    path: str
    reason: str


def find_bad_files(images_dir: Path, names: Sequence[str], *, max_pixels: int) -> list[BadFile]:
    """Reads the headers of image files, some 60,000 a second from a warm cache.

    Args:
        images_dir: folder that the names are relative to.
        names: of the files.
        max_pixels: those with more are bad.

    Returns:
        the bad ones, in the order of their names here.
    """
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        found = pool.map(partial(_bad_of, images_dir, max_pixels), chunks)
        return [bad for chunk in found for bad in chunk]


def _bad_of(images_dir: Path, max_pixels: int, names: Sequence[str]) -> list[BadFile]:
    found = ((name, _problem(os.path.join(images_dir, name), max_pixels)) for name in names)  # noqa: PTH118 (fast)
    return [BadFile(str(images_dir / name), problem) for name, problem in found if problem]


def _problem(path: str, max_pixels: int) -> str:
    """What a header says against a file, empty if nothing."""
    try:
        height, width = read_header(path).size
    except ImageFileError as error:
        return str(error)
    if not height or not width:
        return "it has no pixels"
    if height * width > max_pixels:
        return f"{width} x {height} pixels, more than data.max_pixels = {max_pixels}"
    return ""


def take_met(batch: Batch) -> list[BadFile]:
    """Takes out of the targets of a batch which files could not be read on the way to it."""
    return [BadFile(*bad) for target in batch.targets for bad in target.pop(MET, ())]


def check_share(bad: Sequence[BadFile], images: int, what: str) -> None:
    """Makes sure that most images can be read.

    Args:
        bad: files, each once.
        images: how many there should be.
        what: whose they are, for the message.

    Raises:
        DatasetError: too large a share is bad.
    """
    if len(bad) > MAX_SHARE * images:
        raise DatasetError(
            f"{len(bad):,} of {images:,} images of {what} cannot be read, more than the {MAX_SHARE:.0%} that "
            f"data.bad_files=skip goes on without: {listed_bad(bad)}. Check that the folder is the right one and that "
            "the disk is sound; `codetr prepare DIR --deep` lists all"
        )


def listed_bad(bad: Sequence[BadFile]) -> str:
    """The first few with their reasons."""
    more = f" and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    return ", ".join(f"{path} ({reason})" for path, reason in bad[:SHOWN]) + more
