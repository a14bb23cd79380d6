"""Counts what is in the folder of a data set and is not used, after all its splits were checked."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from codetr_cli.annotations.findings import Findings
from codetr_cli.data.writers.folder import RECEIPT
from codetr_cli.errors import DatasetError
from codetr_cli.files import real_path
from codetr_cli.images.image_files import IMAGE_SUFFIXES, Skipped, is_debris, list_images
from codetr_cli.result_files import RECORD_NAME

OWN_NAMES = (RECORD_NAME, RECEIPT)
"""Hidden files that codetr has written beside data."""


@dataclass
class _Folder:
    where: str
    used: set[str] = field(default_factory=set)
    is_complete: bool = True


class Leftovers:
    """Collects the images that are used of each folder, then compares them with its files."""

    def __init__(self) -> None:
        self._folders: dict[Path, _Folder] = {}

    def add(self, folder: Path, where: str, used: Iterable[str], *, is_complete: bool) -> None:
        """Adds images of a split.

        Args:
            folder: of the images; several splits may share it.
            where: its name in messages.
            used: names of the images, relative to the folder.
            is_complete: whether all that use the folder are added, so that its other images are used by none.
        """
        known = self._folders.setdefault(folder, _Folder(where))
        known.used.update(posixpath.normpath(name) if "./" in name or "//" in name else name for name in used)
        known.is_complete &= is_complete

    def report_beside(self, root: Path, findings: Findings) -> None:
        """Adds findings about images in the data set's folder that are in none of the folders of images."""
        known = {real_path(folder) for folder in self._folders}
        root = real_path(root)
        if known and not any(root == folder or folder in root.parents for folder in known):
            try:
                for name in sorted(_images_beside(root, "", known)):
                    findings.add("unlisted_file", f"{root.name}/", name)
            except (DatasetError, OSError) as error:
                findings.add("unlistable_folder", f"{root.name}/", str(error))

    def report(self, findings: Findings) -> None:
        """Adds findings about files that are not used; lists each folder once."""
        reported = {finding.kind for finding in findings.sorted()}  # by the parser of the layout, for its whole folder
        for folder, known in self._folders.items():
            if not folder.is_dir():
                continue
            skipped = Skipped()
            try:
                unlisted = sorted(set(list_images(folder, skipped=skipped)) - known.used)
            except DatasetError as error:
                findings.add("unlistable_folder", known.where, str(error))
                continue
            for name in unlisted if known.is_complete else ():
                findings.add("unlisted_file", known.where, name)
            entered = {f"{parent}/" for parent in {name.rpartition("/")[0] for name in known.used}}
            for kind, names in (
                ("unreadable_format", [name for name in skipped.unreadable if name not in known.used]),
                ("linked_folder", [name for name in skipped.links if not _is_entered(name, entered)]),
                ("own_drawing", skipped.results),
            ):
                for name in () if kind in reported else sorted(names):
                    findings.add(kind, known.where, name.rstrip("/"))
            for name in sorted(skipped.debris):
                if name.rpartition("/")[2] not in OWN_NAMES:
                    findings.add("debris", known.where, name)


def _is_entered(link: str, folders: set[str]) -> bool:
    """Whether any of the folders, which end in "/", is a linked one or in it."""
    return any(folder.startswith(link) for folder in folders)


def _images_beside(folder: Path, prefix: str, known: set[Path]) -> Iterator[str]:
    """Names of the images in a folder, except those in known folders, which are not listed again."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if is_debris(entry.name) or path in known:
                continue
            if not entry.is_dir(follow_symlinks=False):
                if not entry.is_symlink() and path.suffix.lower() in IMAGE_SUFFIXES:
                    yield prefix + entry.name
            elif any(path in each.parents for each in known):
                yield from _images_beside(path, f"{prefix}{entry.name}/", known)
            else:
                yield from (f"{prefix}{entry.name}/{name}" for name in list_images(path))
