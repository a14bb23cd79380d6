"""Which files the names inside a data set may lead to: those in its folder, unless `data.allow_outside` is set.

Names in annotation files, lists and descriptions come from the author of the data set; followed anywhere, they could
read any file of this machine. The data set's folder is the one that the user gave, or one found in it, and any image
folder that the user named. Names are compared by their text: `a/../b` stays inside, and so does an absolute name that
leads into the folder, also by another name of it, through a link. Symbolic links inside the folder are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PureWindowsPath

from codetr_cli.annotations.annotation_json import MAX_FILE_NAME
from codetr_cli.annotations.data_files import MAX_COUNTED
from codetr_cli.errors import DatasetError, listed
from codetr_cli.reading import stays_inside

SHOWN = 5
"""Names listed in a message."""


@dataclass(frozen=True)
class NameRule:
    """The folders that names may lead into, absolute, and whether others are allowed, too (`data.allow_outside`).

    Messages name the first of them, or the data sets' folders `roots` where several were merged.
    """

    folders: tuple[str, ...]
    allow_outside: bool = False
    roots: tuple[str, ...] = ()
    _real: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Folders of absolute names that were looked up -> where their links lead."""

    @classmethod
    def of(cls, *folders: Path, allow_outside: bool = False) -> NameRule:
        """The rule of a data set with these folders, each by its name and by the place that links lead to."""
        places = [place for folder in folders for place in (_absolute(folder), os.path.realpath(folder))]
        return cls(tuple(dict.fromkeys(places)), allow_outside)

    def is_inside(self, name: str, base: str) -> bool:
        """Whether a name, relative to an absolute folder `base` inside the data set, stays inside the data set."""
        if ".." not in name and name[:1] not in ("/", "\\", "") and name[1:2] != ":":  # nearly all: be fast
            return True
        if "\\" in name or name[1:2] == ":":  # as Windows reads it, on every system
            if stays_inside(name):
                return True
            if PureWindowsPath(name).drive and os.name != "nt":
                return False
            name = name.replace("\\", "/")
        place = os.path.normpath(os.path.join(base, name))  # noqa: PTH118 (a Path a file is slow)
        if self._has(place):
            return True
        if not os.path.isabs(name) or ".." in name or len(name) > MAX_FILE_NAME:  # noqa: PTH117
            return False
        folder, file = os.path.split(place)
        if folder not in self._real:  # only of folders that exist: looking for the links in other names can take long
            self._real[folder] = os.path.realpath(folder) if os.path.isdir(folder) else folder  # noqa: PTH112
        return self._has(os.path.join(self._real[folder], file))  # noqa: PTH118

    def _has(self, place: str) -> bool:
        return any(place == folder or place.startswith(folder.rstrip(os.sep) + os.sep) for folder in self.folders)

    def outside(self, names: Iterable[str], base: Path) -> Iterator[str]:
        """The names, relative to `base`, that lead out of the data set."""
        place = _absolute(base)
        return (name for name in names if not self.is_inside(name, place))

    def check(self, names: Iterable[str], base: Path, where: str) -> str:
        """Checks names of the file or data set `where`.

        Returns:
            a note on those that lead outside and are allowed to, a sentence; empty if there are none.

        Raises:
            DatasetError: some lead outside, which is not allowed.
        """
        if self.allow_outside:
            count = sum(1 for _ in self.outside(names, base))
            return f"{where}: {self.note(count)}." if count else ""
        self.refuse(self.outside(names, base), where)
        return ""

    def refuse(self, outside: Iterable[str], where: str) -> None:
        """Raises a DatasetError with the first of the names that lead outside, and their number, if there are any."""
        found = list(islice(outside, MAX_COUNTED))
        if not found:
            return
        count = f"{len(found):,}{' or more' if len(found) == MAX_COUNTED else ''}"
        folder = " or ".join(self.roots) or self.folders[0]
        raise DatasetError(
            f"{where}: {count} {'name leads' if len(found) == 1 else 'names lead'} out of the data set's folder "
            f"{folder}: {listed(found, SHOWN)}. Copy the files into it and correct the names or, if you trust "
            "the data set, read them where they are with --set data.allow_outside=true"
        )

    @staticmethod
    def note(count: int) -> str:
        """A phrase on files outside that are read."""
        return (
            f"{count:,} {'image is' if count == 1 else 'images are'} read from outside the data set's folder "
            "(data.allow_outside)"
        )


def _absolute(folder: Path) -> str:
    return os.path.abspath(folder)  # noqa: PTH100 (resolves `..` by text)
