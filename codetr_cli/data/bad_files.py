"""Unreadable image files, where the settings allow skipping them.

A scan of all headers before a training finds files that are missing, truncated or not images. Damage that only decoding
shows is found later: then a training image is replaced by another one, chosen by seed, epoch and index alone, and an
evaluation image by a blank one that is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np

from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.data.batch import Batch
from codetr_cli.data.checks.files import HEADER_THREADS
from codetr_cli.errors import DatasetError, listed
from codetr_cli.formats.intermediate import MAX_SHARE, SHOWN
from codetr_cli.images.headers import ImageFileError, read_header

BAD_FILES_KEY = "bad_files"
"""Key of a target: the unreadable files that it replaces, if there were any."""

BLANK = np.full((64, 64, 3), 114, np.uint8)
"""Replaces an image that an evaluation skips."""


class BadFile(NamedTuple):
    """A file and why it cannot be read, a phrase."""

    path: str
    reason: str


def find_bad_files(folder: ImageFolder, names: Sequence[str], *, max_pixels: int) -> list[BadFile]:
    """Reads the headers of image files, about 60,000 a second from a warm cache.

    Returns:
        the files that cannot be used or have more than `max_pixels`, in the order of `names`, relative to the folder.
    """
    with ThreadPool(HEADER_THREADS) as pool:
        problems = pool.map(partial(_problem, folder, max_pixels), names, chunksize=256)
    return [
        BadFile(str(folder.folder / name), problem) for name, problem in zip(names, problems, strict=True) if problem
    ]


def _problem(folder: ImageFolder, max_pixels: int, name: str) -> str:
    try:
        header = read_header(os.path.join(folder.folder, name))  # noqa: PTH118 (a Path a file is slow)
    except ImageFileError as error:
        if error.problem != "missing":
            return str(error)
        found = folder.find(name)
        return _problem(folder, max_pixels, found) if found else f"{error}{folder.hint(name)}"
    return header.excess(max_pixels) if all(header.size) else "it has no pixels"


def pop_bad_files(batch: Batch) -> list[BadFile]:
    """Removes the unreadable files from the targets of a batch and returns them."""
    return [BadFile(*bad) for target in batch.targets for bad in target.pop(BAD_FILES_KEY, ())]


def check_share(bad: Sequence[BadFile], images: int, what: str) -> None:
    """Checks that most images can be read.

    Raises:
        DatasetError: too many of the `images` of a data set, named `what`, are bad.
    """
    if len(bad) > MAX_SHARE * images:
        raise DatasetError(
            f"{len(bad):,} of {images:,} images of {what} cannot be read, more than the {MAX_SHARE:.0%} that "
            f"data.bad_files=skip allows: {listed_bad(bad)}. Check that the folder is the right one and that the disk "
            "works; `codetr prepare DIR --deep` lists all"
        )


def listed_bad(bad: Sequence[BadFile]) -> str:
    """The first few with their reasons."""
    return listed([f"{path} ({reason})" for path, reason in bad], SHOWN)
