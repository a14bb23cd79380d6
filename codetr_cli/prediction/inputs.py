"""The images of files, folders, patterns, lists, archives and addresses, and the names of their results."""

from __future__ import annotations

import fnmatch
import glob
import os
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.files import MAX_NAME_BYTES, real_path
from codetr_cli.images.image_files import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, Skipped, list_images, suffix_of
from codetr_cli.prediction.sources.archives import (
    ARCHIVE_SUFFIXES,
    COMPRESSED_SUFFIXES,
    MAX_SUFFIX,
    expand_braces,
    members,
    shown_name,
)
from codetr_cli.prediction.sources.input_list import InputImage, InputList, Kind
from codetr_cli.prediction.sources.lists import LIST_SUFFIXES, TEXT_SUFFIXES, entries
from codetr_cli.prediction.sources.remote import check_package, file_name_of, filesystem, images_below, opened
from codetr_cli.reading import check_regular, open_file
from codetr_cli.result_files import OwnResults
from codetr_cli.weights.urls import is_url, shown_url

__all__ = ["InputImage", "InputList", "find_images", "numbered_name", "unique_names"]

MAX_LISTED = 50_000_000
"""Images of one list."""
MAX_ID = 2**53 - 1
"""Largest image id from a file name: many readers of JSON round larger numbers."""
MAX_DIGITS = 16
"""Of the largest image id, leading zeros included."""
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf",
     ".ogv", ".3gp", ".3g2", ".mxf", ".nut", ".vob", ".h264", ".h265", ".hevc", ".ivf")
)  # fmt: skip
"""Of files that are predicted frame by frame, see `prediction.video`."""


def find_images(inputs: Sequence[str], *, column: str | None = None, skipped: Skipped | None = None) -> InputList:
    """All images of files, folders (with their subfolders), patterns, lists, archives and addresses, each once.

    Args:
        inputs: in the order of the results. A file that is named is an input whatever it is, unless its ending is that
            of a list or of an archive; what codetr has drawn is none where a folder or a pattern is searched. Images
            that a list names need not exist.
        column: of the images, in lists that are tables; None: a usual one.
        skipped: collects what is found and not read.

    Raises:
        DatasetError: an input that does not exist or is not a regular file, a pattern that matches nothing, a folder,
            list or archive that cannot be read or has no images.
        ConfigError: a column that is not there, or an address of an unknown kind.
        ResourceError: a package is missing.
    """
    skipped = Skipped() if skipped is None else skipped
    found = _Inputs(column)
    for text in inputs:
        here = Skipped()
        try:
            found.expand(text, here)
        except OSError as error:
            raise DatasetError(f"cannot read {text}: {error.strerror}. Pass an image, a folder or a pattern") from error
        skipped.extend(here)
    if column is not None and not found.has_table:
        raise ConfigError(f"--column {column} is of no use here: no input is a CSV or Parquet table")
    images = found.images
    names = [images.name(index) for index in range(len(images))]
    images.number(_image_ids([os.path.splitext(name.rpartition("/")[2])[0] for name in names]))  # noqa: PTH122
    images.rename(unique_names(names))
    return images


class _Inputs:
    """Collects images, each once.

    Attributes:
        images: so far.
        has_table: whether one of the inputs was a table.
    """

    def __init__(self, column: str | None) -> None:
        self._column, self.has_table = column, False
        self.images = InputList()
        self._seen: set[str] = set()
        self._protocols: set[str] = set()  # of addresses so far

    def expand(self, text: str, skipped: Skipped) -> None:
        """Adds the images of one input."""
        if is_url(text):
            for url in expand_braces(text):
                self._expand_url(url)
            return
        path = Path(text)
        if path.is_dir():
            folder = os.path.join(str(path), "")  # noqa: PTH118
            for name in _images_in(path, skipped):
                self._add_file(folder, name)
        elif os.path.lexists(path):
            check_regular(path)
            self._expand_file(path)
        elif len(expanded := expand_braces(text)) > 1 or expanded[0] != text:
            for each in expanded:
                self.expand(each, skipped)
        elif glob.has_magic(text):
            for file in _matching(text, skipped):
                self._expand_file(file)
        else:
            near = next(parent for parent in path.absolute().parents if parent.is_dir())
            raise DatasetError(f"there is no image or folder {path}: the nearest folder that exists is {near}")

    def _expand_file(self, path: Path) -> None:
        folder = os.path.join(str(path.parent), "")  # noqa: PTH118
        if path.name.lower().endswith(COMPRESSED_SUFFIXES):
            raise DatasetError(f"{path} is compressed: images are read from .tar archives, or unpack it into a folder")
        if suffix_of(path.name) in LIST_SUFFIXES:
            with open_file(path) as file:
                self._add_list(file, path.name, str(path), folder)
        elif suffix_of(path.name) in ARCHIVE_SUFFIXES:
            with open_file(path) as file:
                self._add_archive(file, "archive", str(path), str(path))
        else:
            self._add_file("" if str(path.parent) == "." else folder, path.name)

    def _expand_url(self, url: str) -> None:
        shown, name = shown_url(url), file_name_of(url)
        if suffix_of(name) in LIST_SUFFIXES:
            with opened(url) as file:
                self._add_list(file, name, shown, url.rpartition("/")[0] + "/")
        elif suffix_of(name) in ARCHIVE_SUFFIXES:
            with opened(url) as file:
                self._add_archive(file, "url archive", url, shown)
        elif url.endswith("/") or "*" in name:
            for each in images_below(url):
                self._add_url(each, each.removeprefix(url) if url.endswith("/") and each.startswith(url) else None)
        else:
            filesystem(url)  # an address of an unknown kind is an error now
            self._add_url(url)

    def _add_list(self, file: IO[bytes], name: str, shown: str, folder: str) -> None:
        """Adds the images of a list, whose relative names are below a folder or an address."""
        self.has_table = self.has_table or suffix_of(name) not in TEXT_SUFFIXES
        count = 0
        for entry in entries(file, shown, self._column):
            count += 1
            if len(self.images) >= MAX_LISTED:
                raise DatasetError(f"{shown} has more than {MAX_LISTED:,} images: divide it into several lists")
            if entry.startswith("file://"):
                entry = url2pathname(urlsplit(entry).path)
            if is_url(entry) or is_url(folder):
                self._add_url(entry if is_url(entry) else folder + entry)
            elif entry.startswith("/") or Path(entry).is_absolute():
                self._add_file(*_divided(entry))
            elif shown_name(entry) == entry:
                self._add_file("" if folder == "./" else folder, entry)
            else:
                self._add_file(*_divided(os.path.normpath(folder + entry)))
        if not count:
            raise DatasetError(f"{shown} names no images: it needs one a line")

    def _add_archive(self, file: IO[bytes], kind: Kind, place: str, shown: str) -> None:
        count, root = 0, str(real_path(Path(place))) if kind == "archive" else place
        name = shown.rpartition("/")[2]
        for member in members(file, shown):
            count += 1
            if self._is_new(f"{root}\0{member.start}"):
                self.images.append(
                    kind, place, member.name, name=f"{name}/{member.shown}", start=member.start, size=member.size
                )
        if not count:
            raise DatasetError(f"{shown} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")

    def _add_file(self, folder: str, name: str) -> None:
        if self._is_new(_place(folder + name)):
            self.images.append("file", folder, name)

    def _add_url(self, url: str, name: str | None = None) -> None:
        protocol = url.partition("://")[0].lower()
        if protocol not in self._protocols:
            check_package(protocol)  # now, and not for each of a million images
            self._protocols.add(protocol)
        if self._is_new(url):
            root, slash, rest = url.rpartition("/")
            self.images.append("url", root + slash, rest, name=shown_name(name or file_name_of(url)) or "image")

    def _is_new(self, place: str) -> bool:
        if place in self._seen:
            return False
        self._seen.add(place)
        return True


def _divided(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    return folder + slash, name


def _place(path: str) -> str:
    """One text for a file however it is named; a link is a file of its own, beside the one that it leads to."""
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), name)  # noqa: PTH118 (a Path a file is slow)


@lru_cache(maxsize=1000)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder or ".")


def _image_ids(stems: Sequence[str]) -> Sequence[int]:
    """The numbers that are the stems if all are different ones that an image id can be, else 1, 2, ..."""
    numbers = array("Q")
    for stem in stems:
        if not (stem.isascii() and stem.isdecimal() and len(stem) <= MAX_DIGITS):
            return range(1, len(stems) + 1)
        numbers.append(int(stem))
    if len(set(numbers)) != len(stems) or max(numbers, default=0) > MAX_ID:
        return range(1, len(stems) + 1)
    return numbers


def _images_in(folder: Path, skipped: Skipped) -> list[str]:
    """The names of the images in a folder and those below it."""
    names = sorted(list_images(folder, skipped=skipped))
    if not names:
        hint = _but(skipped)
        if archive := next(folder.glob("*.tar"), None):
            hint += f". It has archives, such as {archive.name}: give them as '{folder / '*.tar'}'"
        if video := min((path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES), default=None):
            hint += f". It has videos, such as {video.name}: give them as '{folder / ('*' + video.suffix)}'"
        raise DatasetError(
            f"the folder {folder} contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}) at any depth{hint}"
        )
    return names


def _matching(text: str, skipped: Skipped) -> list[Path]:
    """The images that match a pattern; archives and lists where it ends as their names do."""
    if text.lower().endswith((*ARCHIVE_SUFFIXES, *LIST_SUFFIXES)):
        files = sorted(Path(match) for match in glob.iglob(text))  # noqa: PTH207
    else:
        files = sorted(_matches(Path(text), skipped))
    if not files:
        raise DatasetError(
            f"no image matches {text!r}: check the pattern, and quote it so that the shell does not expand it"
            f"{_but(skipped)}"
        )
    return files


def _but(skipped: Skipped) -> str:
    return "".join(f". {sentence}" for sentence in skipped.sentences())


def _matches(pattern: Path, skipped: Skipped) -> Iterable[Path]:
    """Files with the endings of images that match a pattern."""
    if "**" not in pattern.parts:
        return _images_of([Path(match) for match in glob.glob(str(pattern))], skipped)  # noqa: PTH207 - absolute, too
    # Not by glob, which follows every link to a folder: two that lead back make 2^40 paths.
    start = pattern.parts.index("**")
    start = next((index for index, part in enumerate(pattern.parts) if glob.has_magic(part)), start)
    folder, parts = Path(*pattern.parts[:start]), pattern.parts[start:]
    if not folder.is_dir():
        return ()
    hidden, found = any(part.startswith(".") for part in parts), Skipped()
    names = list(list_images(folder, follow_links=True, debris=hidden, skipped=found))
    for kind, others in ((skipped.unreadable, found.unreadable), (skipped.results, found.results)):
        kind += [str(folder / name) for name in others if _match(name.split("/"), parts)]
    return [folder / name for name in names if _match(name.split("/"), parts)]


def _images_of(files: Sequence[Path], skipped: Skipped) -> list[Path]:
    """Those of some files that are images and not drawn by codetr."""
    own: dict[Path, OwnResults] = {}
    images = []
    for file in files:
        suffix = suffix_of(file.name)
        if suffix in UNREADABLE_SUFFIXES and not file.is_dir():
            skipped.unreadable.append(str(file))
        elif suffix in IMAGE_SUFFIXES and not file.is_dir():
            if file.parent not in own:
                own[file.parent] = OwnResults(file.parent)
            if own[file.parent].holds(file.name):
                skipped.results.append(str(file))
            else:
                images.append(file)
    return images


def _match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; hidden files and folders match only patterns with a dot."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        hidden = next((index for index, name in enumerate(names) if name.startswith(".")), len(names))
        return any(_match(names[index:], patterns[1:]) for index in range(hidden + 1))
    if not names or (names[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    return fnmatch.fnmatch(names[0], patterns[0]) and _match(names[1:], patterns[1:])


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with _2, _3, ... before the suffix of those that occur earlier in the list.

    A name that gets a number is none of the list: each of the others is the name of its own file.
    """
    given, seen = set(names), set()
    numbers: dict[str, int] = {}
    unique = []
    for name in names:
        candidate = name
        while candidate in seen or (candidate != name and candidate in given):
            numbers[name] = numbers.get(name, 1) + 1
            candidate = numbered_name(name, numbers[name])
        seen.add(candidate)
        unique.append(candidate)
    return unique


def numbered_name(name: str, number: int, suffix: str | None = None) -> str:
    """A name with a number before its suffix, or before another one; not longer than a file name may be."""
    path = Path(name)
    stem, old = path.stem, path.suffix
    if len(old) > MAX_SUFFIX:
        stem, old = path.name, ""
    end = (f"_{number}" if number > 1 else "") + (old if suffix is None else suffix)
    stem = stem[:MAX_NAME_BYTES]
    while len(os.fsencode(stem + end)) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return path.with_name(stem + end).as_posix()
