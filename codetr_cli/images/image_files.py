"""Image files of a folder, by the endings of their names: what is read, and what is skipped and why."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from codetr_cli.errors import DatasetError, listed
from codetr_cli.result_files import RECORD_NAME, OwnResults

FORMAT_SUFFIXES = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo"),
    "png": (".png", ".apng"),
    "webp": (".webp",),
    "gif": (".gif",),
    "bmp": (".bmp", ".dib"),
    "tiff": (".tif", ".tiff"),
    "avif": (".avif",),
    "jpeg2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "ppm": (".ppm", ".pgm", ".pbm", ".pnm", ".pxm", ".pfm"),
    "sun": (".ras", ".sr"),
}
"""The endings of every format that is decoded, by the names that `headers` gives them; the usual one first."""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMAT_SUFFIXES.values() for suffix in suffixes)

UNREADABLE_SUFFIXES = frozenset(
    (
        *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".wdp", ".svg", ".svgz", ".eps", ".psd", ".psb"),
        *(".xcf", ".ico", ".cur", ".icns", ".tga", ".pcx", ".dds", ".xpm", ".xbm", ".pam", ".hdr"),
        *(".exr", ".dcm", ".dicom", ".nef", ".nrw", ".raw", ".dng", ".cr2", ".cr3", ".crw", ".arw"),
        *(".srf", ".sr2", ".srw", ".orf", ".rw2", ".raf", ".pef", ".x3f"),
    )
)
"""Endings of pictures in formats that are not decoded: in a folder of images they are counted, not read."""

MAX_FOLDERS = 200_000
DEBRIS = frozenset(("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"))
"""Files and folders that systems leave among those of users, in lower case."""


@dataclass
class Skipped:
    """What was found in a folder of images and is not read; names are relative to it, with forward slashes.

    Attributes:
        unreadable: pictures in formats that are not decoded.
        links: to folders.
        results: images that codetr has drawn.
        debris: files and folders that are never data.
    """

    unreadable: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    debris: list[str] = field(default_factory=list)

    def extend(self, other: Skipped) -> None:
        """Adds what was found in another folder."""
        self.unreadable += other.unreadable
        self.links += other.links
        self.results += other.results
        self.debris += other.debris

    def sentences(self) -> list[str]:
        """What was skipped and why, one sentence for each kind."""
        found = [unreadable_sentence(self.unreadable)] if self.unreadable else []
        if self.links:
            found.append(
                f"{_count(len(self.links), 'linked folder')} not searched: {listed(sorted(self.links))}. Give the "
                "folder that is meant"
            )
        if self.results:
            found.append(
                f"{_count(len(self.results), 'image')} drawn by codetr itself not used: {listed(sorted(self.results))}"
            )
        return found


def is_debris(name: str) -> bool:
    """Whether a file or folder is never data, by its own name: hidden ones, and what systems leave behind.

    Hidden ones are copies of Jupyter (.ipynb_checkpoints), of macOS (._photo.jpg), and of editors.
    """
    return name.startswith(".") or name.lower() in DEBRIS


def suffix_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; empty without one."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path a file is slow)


def unreadable_images(names: Iterable[str]) -> list[str]:
    """Those of some names that are pictures in formats that are not decoded."""
    return [name for name in names if suffix_of(name) in UNREADABLE_SUFFIXES]


def unreadable_sentence(names: Sequence[str]) -> str:
    """How many pictures cannot be read, by their formats, and the first of them; `names` is not empty."""
    counts = Counter(map(suffix_of, names)).most_common()
    formats = listed([f"{suffix} {count:,}" for suffix, count in counts], 6)
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{_count(len(names), 'file')} {verb} of formats that cannot be read ({formats}), first: "
        f"{listed(sorted(names)[:3])}. Save them as JPEG or PNG to use them"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def list_images(
    folder: Path, *, follow_links: bool = False, debris: bool = False, skipped: Skipped | None = None
) -> Iterator[str]:
    """Names of the image files in a folder and its subfolders, relative to it, with forward slashes.

    What codetr has drawn is skipped, see `result_files.OwnResults`, and debris, see `is_debris`. Links to folders are
    not followed, or lead only to folders that were not searched yet, so that no loop is possible.

    Args:
        folder: where to search.
        follow_links: whether to search linked folders, too.
        debris: whether it is data, too.
        skipped: collects what is not read.

    Raises:
        DatasetError: a folder that cannot be read, or more than `MAX_FOLDERS` of them.
    """
    skipped = Skipped() if skipped is None else skipped
    own = OwnResults(folder)
    pending, links, visited = [""], deque[str](), 0
    searched: set[tuple[int, int]] = set()
    while pending or links:
        prefix = pending.pop() if pending else links.popleft()  # by its own name, a folder is searched first
        visited += 1
        if visited > MAX_FOLDERS:
            raise DatasetError(
                f"{folder} has more than {MAX_FOLDERS:,} folders in it, as a link to a whole disk has. Give the folder "
                "of the images"
            )
        try:
            if follow_links:
                status = (folder / prefix).stat()
                if (status.st_dev, status.st_ino) in searched:
                    continue
                searched.add((status.st_dev, status.st_ino))
            with os.scandir(folder / prefix) as found:
                entries = list(found)
            if prefix and any(entry.name == RECORD_NAME for entry in entries):
                own.enter(prefix)
            for entry in entries:
                if is_debris(entry.name) and not debris:
                    skipped.debris.append(prefix + entry.name)
                    continue
                suffix = suffix_of(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                elif entry.is_symlink() and os.path.isdir(entry):  # noqa: PTH112 (False for loops)
                    (links if follow_links else skipped.links).append(f"{prefix}{entry.name}/")
                elif suffix in UNREADABLE_SUFFIXES:
                    skipped.unreadable.append(prefix + entry.name)
                elif suffix in IMAGE_SUFFIXES:
                    if own.holds(prefix + entry.name):
                        skipped.results.append(prefix + entry.name)
                    else:
                        yield prefix + entry.name
        except OSError as error:
            raise DatasetError(
                f"cannot read the folder {folder / prefix}: {error.strerror}. Check its permissions, or move it away"
            ) from error
