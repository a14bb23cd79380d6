"""The images that a person means with files, folders and patterns, and the names their results get."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.data.image_files import IMAGE_SUFFIXES, list_images
from codetr_cli.errors import DatasetError


@dataclass(frozen=True)
class SourceImage:
    """One image to look at.

    Attributes:
        path: the file.
        name: unique among the images of a call; relative to the folder it was found in.
        image_id: the number that is the file's name, as COCO has it, when all files have such names; else 1, 2, ...
    """

    path: Path
    name: str
    image_id: int


def find_images(sources: Sequence[str]) -> list[SourceImage]:
    """All images of files, folders (with their subfolders) and glob patterns, each once, in order.

    Raises:
        DatasetError: a source that does not exist, a pattern that matches nothing, a folder without images.
    """
    found: dict[Path, str] = {}
    for source in sources:
        for path, name in _expand(source):
            found.setdefault(path, name)
    names = _unique(list(found.values()))
    stems = [path.stem for path in found]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    if len(set(numbers)) != len(stems):
        numbers = list(range(1, len(stems) + 1))
    return [SourceImage(path, name, image_id) for path, name, image_id in zip(found, names, numbers, strict=True)]


def _expand(source: str) -> list[tuple[Path, str]]:
    """(file, name) of everything one source stands for."""
    path = Path(source)
    if path.is_file():
        return [(path, path.name)]
    if path.is_dir():
        names = sorted(list_images(path))
        if not names:
            raise DatasetError(f"the folder {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) at any depth")
        return [(path / name, name) for name in names]
    if glob.has_magic(source):
        matches = sorted(Path(match) for match in glob.glob(source, recursive=True))  # noqa: PTH207 - absolute patterns too
        files = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise DatasetError(
                f"no image matches {source!r}: check the pattern, and quote it so that the shell leaves it"
            )
        return [(file, file.name) for file in files]
    near = next(parent for parent in path.absolute().parents if parent.is_dir())
    raise DatasetError(f"there is no image or folder {path}: the nearest folder that exists is {near}")


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with _2, _3, ... before the ending of those that came before in the list."""
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
