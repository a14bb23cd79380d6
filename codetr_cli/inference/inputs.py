"""The images of files, folders and glob patterns, and the names of their results."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.data.image_files import IMAGE_SUFFIXES, list_images
from codetr_cli.errors import DatasetError


@dataclass(frozen=True)
class InputImage:
    """One image to predict.

    Attributes:
        path: the file.
        name: unique among the images of a call; relative to the folder that was given.
        image_id: the number in the file's name, as in COCO, if all names are different numbers; else 1, 2, ...
    """

    path: Path
    name: str
    image_id: int


def find_images(inputs: Sequence[str]) -> list[InputImage]:
    """All images of files, folders (with their subfolders) and glob patterns, each once, in order.

    Raises:
        DatasetError: an input that does not exist, a pattern that matches nothing, a folder without images.
    """
    images: dict[Path, str] = {}
    for text in inputs:
        for path, name in _expand(text):
            images.setdefault(path, name)
    names = _unique(list(images.values()))
    stems = [path.stem for path in images]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    if len(set(numbers)) != len(stems):
        numbers = list(range(1, len(stems) + 1))
    return [InputImage(path, name, image_id) for path, name, image_id in zip(images, names, numbers, strict=True)]


def _expand(text: str) -> list[tuple[Path, str]]:
    """(file, name) of every image of one input."""
    path = Path(text)
    if path.is_file():
        return [(path, path.name)]
    if path.is_dir():
        names = sorted(list_images(path))
        if not names:
            raise DatasetError(
                f"the folder {path} contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}) at any depth"
            )
        return [(path / name, name) for name in names]
    if glob.has_magic(text):
        matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207 - absolute patterns too
        files = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise DatasetError(
                f"no image matches {text!r}: check the pattern, and quote it so that the shell does not expand it"
            )
        return [(file, file.name) for file in files]
    near = next(parent for parent in path.absolute().parents if parent.is_dir())
    raise DatasetError(f"there is no image or folder {path}: the nearest folder that exists is {near}")


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with _2, _3, ... before the suffix of those that occur earlier in the list."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            path = Path(name)
            candidate = path.with_name(f"{path.stem}_{number}{path.suffix}").as_posix()
        taken.add(candidate)
        unique.append(candidate)
    return unique
