"""The images of files, folders and glob patterns, and the names of their results."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from codetr_cli.errors import DatasetError
from codetr_cli.files import MAX_NAME_BYTES, OwnResults
from codetr_cli.images.image_files import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, Skipped, list_images, suffix_of
from codetr_cli.reading import check_regular

MAX_ID = 2**53 - 1
"""Largest image id from a file name: many readers of JSON round larger numbers."""
MAX_DIGITS = 16
"""Of the largest image id, leading zeros included."""


@dataclass(frozen=True)
class InputImage:
    """One image to predict.

    Attributes:
        path: the file.
        name: unique among the images of a call; relative to the folder that was given.
        image_id: the number in the file's name, as in COCO, if all names are different numbers below 2**53; else 1,
            2, ... Results have the name, too, which decides where ids of annotations are others.
    """

    path: Path
    name: str
    image_id: int


def find_images(inputs: Sequence[str], *, skipped: Skipped | None = None) -> list[InputImage]:
    """All images of files, folders (with their subfolders) and glob patterns, each once, in order.

    Args:
        inputs: files, folders and patterns. A file that is named is an input whatever it is; what codetr has drawn is
            none where a folder or a pattern is searched.
        skipped: collects what is found and not read.

    Raises:
        DatasetError: an input that does not exist or is not a regular file, a pattern that matches nothing, a folder
            that cannot be read or has no images.
    """
    images: dict[str, tuple[Path, str]] = {}
    skipped = Skipped() if skipped is None else skipped
    for text in inputs:
        here = Skipped()
        try:
            for path, name in _expand(text, here):
                images.setdefault(_place(path), (path, name))
        except OSError as error:
            raise DatasetError(f"cannot read {text}: {error.strerror}. Pass an image, a folder or a pattern") from error
        skipped.extend(here)
    paths = [path for path, _ in images.values()]
    names = unique_names([name for _, name in images.values()])
    ids = _image_ids([path.stem for path in paths])
    return [InputImage(path, name, image_id) for path, name, image_id in zip(paths, names, ids, strict=True)]


def _place(path: Path) -> str:
    """One text for a file however it is named; a link is a file of its own, beside the one that it leads to."""
    return os.path.join(_real_folder(str(path.parent)), path.name)  # noqa: PTH118 (a Path a file is slow)


@lru_cache(maxsize=1000)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _image_ids(stems: Sequence[str]) -> list[int]:
    """The numbers that are the stems if all are different ones that an image id can be, else 1, 2, ..."""
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdecimal() and len(stem) <= MAX_DIGITS]
    if len(set(numbers)) != len(stems) or max(numbers, default=0) > MAX_ID:
        return list(range(1, len(stems) + 1))
    return numbers


def _expand(text: str, skipped: Skipped) -> list[tuple[Path, str]]:
    """(file, name) of every image of one input."""
    path = Path(text)
    if path.is_dir():
        names = sorted(list_images(path, skipped=skipped))
        if not names:
            raise DatasetError(
                f"the folder {path} contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}) at any depth"
                f"{_but(skipped)}"
            )
        return [(path / name, name) for name in names]
    if os.path.lexists(path):
        check_regular(path)
        return [(path, path.name)]
    if glob.has_magic(text):
        files = sorted(_matches(path, skipped))
        if not files:
            raise DatasetError(
                f"no image matches {text!r}: check the pattern, and quote it so that the shell does not expand it"
                f"{_but(skipped)}"
            )
        return [(file, file.name) for file in files]
    near = next(parent for parent in path.absolute().parents if parent.is_dir())
    raise DatasetError(f"there is no image or folder {path}: the nearest folder that exists is {near}")


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
    suffix = path.suffix if suffix is None else suffix
    end = (f"_{number}" if number > 1 else "") + suffix
    stem = path.stem
    while len(os.fsencode(stem + end)) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return path.with_name(stem + end).as_posix()
