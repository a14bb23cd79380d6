"""The files of an image folder, for names of an annotation file that no file has exactly.

A name means the only file with a similar one that no other entry names or means: with slashes of another system,
escapes of URLs, blanks, other case or accents, or in another folder, see `ImageNames`. The folder is listed once, at
the first such name, so that reading the others costs nothing.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.annotations.survey import stem_of
from codetr_cli.errors import DatasetError
from codetr_cli.images.image_files import list_images

MAX_PARTS = 32
"""Folders in a name; others are not searched, which would take long."""
_LOCK = threading.Lock()


class ImageFolder:
    """The image files that a name of an annotation file may mean.

    Args:
        folder: that names are relative to.
        names: all of the annotation file; files that have one of them exactly are no other's.
        rule: what names may lead to; of merged data sets, the folders of these are searched.
    """

    def __init__(self, folder: Path, names: Sequence[str], rule: NameRule) -> None:
        self.folder, self.names, self.rule = folder, names, rule
        self._others: ImageNames | None = None
        self._meant: dict[str, str | None] | None = None
        self._listed: set[str] = set()

    def find(self, name: str) -> str | None:
        """The file that a name means which is no file's; None if there is none or several, or if others mean it too."""
        meant = self.meant()
        if name in meant:
            return meant[name]
        return None if _is_deep(name) else self._unnamed().find(name)

    def meant(self) -> dict[str, str | None]:
        """The files of all names that are no file's; None for those that `find` does not find."""
        others = self._unnamed()
        with _LOCK:
            if self._meant is None:
                found = {name: None if _is_deep(name) else others.find(name) for name in self._without_file()}
                counts = Counter(found.values())
                self._meant = {name: file if counts[file] == 1 else None for name, file in found.items()}
            return self._meant

    def hint(self, name: str) -> str:
        """What could help to correct a name that is no file's, a phrase in brackets; empty if nothing is known."""
        stem = None if _is_deep(name) else self._unnamed().find_stem(stem_of(name.replace("\\", "/").strip()))
        if stem is not None:
            return f" (on disk it is {stem})"
        if "\\" in name and os.sep == "/":
            return " (it was written on Windows: use / instead of \\)"
        return ""

    def inside(self, names: Sequence[str], where: str) -> tuple[list[str], str]:
        """The names, of the file `where`, with files inside the folder instead of names that lead out of it.

        Returns:
            the names, and a note on those that differ or lead outside and are allowed to; empty if there are none.

        Raises:
            DatasetError: some lead outside, which is not allowed, and have no counterpart inside.
        """
        if self.rule.allow_outside:
            return list(names), self.rule.check(names, self.folder, where)
        outside = set(self.rule.outside(names, self.folder))
        if not outside:
            return list(names), ""
        found = {name: self.find(name) for name in outside}
        self.rule.refuse((name for name in names if name in outside and found[name] is None), where)
        note = (
            f"{where}: {len(outside):,} image names lead out of the data set's folder; the files inside it with these "
            "names are read"
        )
        return [found.get(name) or name for name in names], note

    def _unnamed(self) -> ImageNames:
        """The image files that no entry names; none if the folder cannot be listed."""
        with _LOCK:
            if self._others is None:
                named = {os.path.normpath(name) for name in self.names}
                self._listed = set(self._files())
                unnamed = (name for name in self._listed if name not in named)
                self._others = ImageNames(unnamed, self._stated, self._listed)
            return self._others

    def _without_file(self) -> Iterator[str]:
        place = os.path.abspath(self.folder)  # noqa: PTH100
        for name in dict.fromkeys(self.names):
            if os.path.normpath(name) not in self._listed:
                may_look = self.rule.allow_outside or self.rule.is_inside(name, place)
                if not may_look or not os.path.isfile(os.path.join(place, name)):  # noqa: PTH113, PTH118 (behind links)
                    yield name

    def _stated(self) -> Iterator[tuple[str, str]]:
        return ((name, "") for name in self.names)

    def _files(self) -> list[str]:
        try:
            if not self.rule.roots:
                return list(list_images(self.folder))
            roots = [os.path.abspath(root) for root in self.rule.roots]  # noqa: PTH100
            return [f"{root}/{name}" for root in roots for name in list_images(Path(root))]
        except DatasetError:  # a whole disk, or a folder without permission
            return []

    def __getstate__(self) -> dict[str, object]:
        """Without the listing: another process lists the folder itself."""
        return {**vars(self), "_others": None, "_meant": None, "_listed": set()}


def _is_deep(name: str) -> bool:
    return name.count("/") + name.count("\\") > MAX_PARTS
