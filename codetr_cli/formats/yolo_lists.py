"""Lists of images of a YOLO data set: one path a line, as it was on the computer where the list was made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

from codetr_cli.annotations.data_files import MAX_COUNTED, is_file, read_lines
from codetr_cli.annotations.encodings import decode_text
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError, counted, listed
from codetr_cli.formats.intermediate import SHOWN
from codetr_cli.images.image_files import IMAGE_SUFFIXES


class ListReader:
    """Reads lists of the images in a folder.

    A line is relative to the list, else to further folders. If there is no such file, it is the image whose path ends
    as the line does, see `ImageNames`: other systems' slashes, and paths of other computers.

    Args:
        survey: of the folder.
        names: what lines may lead to.

    Attributes:
        notes: on the lines that were read, phrases.
    """

    def __init__(self, survey: Survey, names: NameRule) -> None:
        self._survey, self._names = survey, names
        self._stated: dict[Path, list[str]] = {}
        self.notes: list[str] = []

    @cached_property
    def _known(self) -> ImageNames:
        return ImageNames(self._survey.images, self._stated_names)

    def _stated_names(self) -> Iterator[tuple[str, str]]:
        return ((_as_text(line), self._folder_of(path)) for path, lines in self._stated.items() for line in lines)

    def read(self, path: Path, bases: list[str]) -> list[Path]:
        """The images of a list, each once.

        Raises:
            DatasetError: the list cannot be read, or has lines that lead out of the folder or to no image.
        """
        lines = [line for line in read_lines(path) if line]
        self._stated[path] = lines
        different = dict.fromkeys(lines)
        if len(different) < len(lines):
            repeated = len(lines) - len(different)
            verb = "is" if repeated == 1 else "are"
            self.notes.append(f"{path.name} repeats {counted(repeated, 'line')}, which {verb} read once")
        bases = [str(path.parent), *bases]
        found: dict[Path, None] = {}
        absent: list[str] = []
        outside: list[str] = []
        moved: list[str] = []
        for line in different:
            place = self._place(line, bases)
            if place is not None:
                found[place] = None
            elif self._exists_outside(line, bases):
                outside.append(line)
            elif (name := self._known.find(_as_text(line), self._folder_of(path))) is not None:
                found[self._survey.folder / name] = None
                moved.append(line)
            else:
                absent.append(line)
            if max(len(absent), len(outside)) >= MAX_COUNTED:
                break
        self._names.refuse(outside, str(path))
        if absent:
            number = "1 image that is" if len(absent) == 1 else f"{len(absent):,} images that are"
            if len(absent) >= MAX_COUNTED:
                number = f"{len(absent):,} or more images that are"
            raise DatasetError(f"{path} lists {number} missing: {listed(absent, SHOWN)}. Copy them there")
        if moved:
            are, their = ("is another path", "its") if len(moved) == 1 else ("are other paths", "their")
            self.notes.append(
                f"{path.name} has {counted(len(moved), 'line')} that {are} here, found by {their} last parts: "
                f"{listed(moved, 1)}"
            )
        return list(found)

    def _folder_of(self, path: Path) -> str:
        folder = path.parent
        return folder.relative_to(self._survey.folder).as_posix() if folder.is_relative_to(self._survey.folder) else ""

    def _place(self, line: str, bases: list[str]) -> Path | None:
        """The file of a line that may be followed."""
        for base in bases:
            if self._names.allow_outside or self._names.is_inside(line, base):
                path = joined(base, line)
                if is_file(path):
                    return Path(path)
        return None

    def _exists_outside(self, line: str, bases: list[str]) -> bool:
        """Whether a line leads to a file that may not be followed; another computer's path leads nowhere."""
        return any(not self._names.is_inside(line, base) and is_file(joined(base, line)) for base in bases)


def _as_text(line: str) -> str:
    """A line whose bytes are not UTF-8, in the encoding that they have."""
    try:
        return decode_text(os.fsencode(line)) if not line.isprintable() else line
    except ValueError:
        return line


def lists_images(survey: Survey, name: str) -> bool:
    """Whether a text file is a list of images, by its first lines."""
    lines = [line.strip() for line in islice(survey.head(name).splitlines(), 20) if line.strip()]
    return bool(lines) and all(os.path.splitext(line)[1].lower() in IMAGE_SUFFIXES for line in lines)  # noqa: PTH122


def joined(base: str, name: str) -> str:
    """A name below a folder, `..` resolved by text: the file that is opened is the one that was checked."""
    return os.path.normpath(os.path.join(base, name))  # noqa: PTH118 (resolves `..`)
