"""Where drawn images go: names that any file system can have side by side, and that replace no file of others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

from codetr_cli.files import real_path
from codetr_cli.inference.draw_options import ImageFormat
from codetr_cli.prediction.inputs import numbered_name
from codetr_cli.prediction.sources.input_list import InputImage
from codetr_cli.result_files import ResultRecord, folded

DRAWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMAT_SUFFIXES = {"jpg": ((".jpg", ".jpeg"), ".jpg"), "png": ((".png",), ".png"), "webp": ((".webp",), ".webp")}
"""Format -> suffixes of images that have it, and the suffix of the others."""


def drawing_request(request: str, number: int) -> str:
    """The request of a drawing in the record of its folder: of one image, so that no other one replaces it."""
    return f"{request[:16]}/{number}"


def drawn_names(
    images: Sequence[InputImage],
    reserved: Sequence[str],
    folder: Path,
    *,
    request: str,
    force: bool,
    image_format: ImageFormat = "same",
) -> list[Path]:
    """Names of the drawn images in the output folder: that of the image, or of a PNG file if its format is not written.

    No two of them are one file, nor one of them the folder of another, also where a file system does not distinguish
    small and capital letters or composed and decomposed ones: then the later one gets a number. So do names of files
    that may not be replaced, see `result_files.ResultRecord`. Names of images that can be kept come first.

    Args:
        images: their names are relative to the folder.
        reserved: other files and folders in the output folder.
        folder: the output folder.
        request: name of the request, whose earlier drawings keep their names.
        force: own drawings of other requests are replaced, unless they are inputs.
        image_format: of the drawn images; images of another one have its suffix instead of their own.
    """
    written, other = (DRAWN_SUFFIXES, ".png") if image_format == "same" else FORMAT_SUFFIXES[image_format]
    record, inputs = ResultRecord(folder), _InputFiles(images)

    def is_free(number: int, name: str) -> bool:
        path = folder / name
        if not os.path.lexists(path):
            return True
        return path not in inputs and record.may_write(path, force=force, request=drawing_request(request, number))

    found = _Names(reserved, folder)
    names = [image.name for image in images]
    kept = [number for number, name in enumerate(names) if name.lower().endswith(written)]
    others = [number for number, name in enumerate(names) if not name.lower().endswith(written)]
    drawn = {number: found.add(names[number], partial(is_free, number)) for number in kept}
    drawn |= {number: found.add(names[number], partial(is_free, number), other) for number in others}
    return [Path(drawn[number]) for number in range(len(images))]


class _InputFiles:
    """The files of the inputs, found by any path that leads to them."""

    def __init__(self, images: Sequence[InputImage]) -> None:
        self._images = images

    def __contains__(self, path: Path) -> bool:
        return real_path(path) in self._paths

    @cached_property
    def _paths(self) -> set[Path]:
        return {real_path(path) for image in self._images for path in image.local_files}


class _Names:
    """Names in a folder that any file system can have side by side."""

    def __init__(self, reserved: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self._files = {folded(name) for name in reserved}
        self._folders: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._renamed: dict[str, str] = {}  # folders that would have the name of a file

    def add(self, name: str, is_free: Callable[[str], bool], suffix: str | None = None) -> str:
        """The name, with another suffix if one is given, changed if it must be."""
        folder, slash, last = name.rpartition("/")
        wanted = self._parent(folder) + slash + last
        found = wanted if suffix is None else numbered_name(wanted, 1, suffix)
        first = key = folded(found)
        number = self._numbers.get(first, 1)
        while key in self._files or key in self._folders or not is_free(found):
            number += 1
            found = numbered_name(wanted, number, suffix)
            key = folded(found)
        self._numbers[first] = number
        self._files.add(key)
        return found

    def _parent(self, folder: str) -> str:
        """The folder, whose name is changed where it is that of a file."""
        if folder and folder not in self._renamed:
            upper, slash, last = folder.rpartition("/")
            found = wanted = self._parent(upper) + slash + last
            number = 1
            while folded(found) in self._files or self._is_file(found):
                number += 1
                found = numbered_name(wanted, number)
            self._folders.add(folded(found))
            self._renamed[folder] = found
        return self._renamed.get(folder, folder)

    def _is_file(self, name: str) -> bool:
        return os.path.lexists(self._folder / name) and not (self._folder / name).is_dir()


def misplaced(folder: Path, drawn: Sequence[Path]) -> str | None:
    """Why results must not be written into a folder, and what to do instead, a sentence; None if they may.

    Args:
        folder: of the results.
        drawn: names of the drawn images in it.
    """
    place = real_path(folder)
    for parent in {name.parent for name in drawn}:
        if not real_path(folder / parent).is_relative_to(place):
            return (
                f"drawing into {folder / parent} would follow a symbolic link out of {folder}: use --no-draw or "
                "another --out"
            )
    return None
