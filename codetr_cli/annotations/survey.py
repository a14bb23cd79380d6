"""What is in the folder of a data set, listed once, for all that ask: which layout it has, and where its files are."""

from __future__ import annotations

import bisect
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from codetr_cli.annotations.encodings import decode_text
from codetr_cli.errors import DatasetError
from codetr_cli.images.image_files import IMAGE_SUFFIXES, MAX_FOLDERS, is_debris
from codetr_cli.reading import open_file
from codetr_cli.result_files import RECORD_NAME, OwnResults

MAX_FILES = 5_000_000
HEAD_BYTES = 1 << 16
"""What is read of a file to see what it is."""


@dataclass
class Survey:
    """The files of a folder and its subfolders, by their names relative to it with forward slashes, in order.

    Debris is skipped, see `image_files.is_debris`, and what `predict`, `eval` and `bench` have written, see
    `result_files.OwnResults`. Links to folders are not followed.

    Attributes:
        folder: the one that was searched.
        names: of all files.
        linked: of links to folders.
        debris: number of files and folders that were skipped.
        chosen: the file that the user gave instead of the folder, which describes what is in it; "" if none.
        results: of codetr's own results that were skipped.
    """

    folder: Path
    names: list[str]
    linked: list[str] = field(default_factory=list)
    debris: int = 0
    chosen: str = ""
    results: list[str] = field(default_factory=list)
    _by_suffix: dict[str, list[str]] = field(default_factory=dict, repr=False)
    _heads: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, folder: Path) -> Survey:
        """Lists a folder.

        Raises:
            DatasetError: a folder cannot be read, or there are more than `MAX_FILES` files or `MAX_FOLDERS` folders.
        """
        survey, own = cls(folder, []), OwnResults(folder)
        pending, visited = deque([""]), 0
        while pending:
            prefix, visited = pending.popleft(), visited + 1
            if visited > MAX_FOLDERS or len(survey.names) > MAX_FILES:
                raise DatasetError(
                    f"{folder} has more than {MAX_FOLDERS:,} folders or {MAX_FILES:,} files in it, as a whole disk "
                    "has. Give the folder of one data set"
                )
            try:
                with os.scandir(folder / prefix) as found:
                    entries = list(found)
                if prefix and any(entry.name == RECORD_NAME for entry in entries):
                    own.enter(prefix)
                for entry in entries:
                    if is_debris(entry.name):
                        survey.debris += 1
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(f"{prefix}{entry.name}/")
                    elif entry.is_symlink() and os.path.isdir(entry):  # noqa: PTH112 (False for loops)
                        survey.linked.append(prefix + entry.name)
                    elif own.holds(prefix + entry.name):
                        survey.results.append(prefix + entry.name)
                    else:
                        survey.names.append(prefix + entry.name)
            except OSError as error:
                raise DatasetError(
                    f"cannot read the folder {folder / prefix}: {error.strerror}. Check its permissions, or move it "
                    "away"
                ) from error
        survey.names.sort()
        survey.linked.sort()
        return survey

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The names that end in one of some suffixes (".xml"), in any case."""
        if not self._by_suffix:
            for name in self.names:
                suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path a file is slow)
                self._by_suffix.setdefault(suffix, []).append(name)
        found = [name for suffix in suffixes for name in self._by_suffix.get(suffix, ())]
        return sorted(found) if len(suffixes) > 1 else found

    @property
    def images(self) -> list[str]:
        """The names of images, by their suffixes."""
        return self.with_suffix(*sorted(IMAGE_SUFFIXES))

    def below(self, name: str) -> Survey:
        """The part of the survey in a subfolder."""
        prefix = f"{name}/"
        return Survey(
            self.folder / name,
            [each.removeprefix(prefix) for each in self._in(prefix)],
            [each.removeprefix(prefix) for each in self.linked if each.startswith(prefix)],
        )

    def subfolders(self, limit: int = 50) -> list[str]:
        """Names of the first folders directly in this one that have files at any depth."""
        tops = dict.fromkeys(name.partition("/")[0] for name in self.names if "/" in name)
        return list(islice(tops, limit))

    def head(self, name: str) -> str:
        """The start of a file as text; empty if it cannot be read or is no text."""
        if name not in self._heads:
            try:
                with open_file(self.folder / name) as file:
                    content = file.read(HEAD_BYTES)
            except OSError:
                content = b""
            self._heads[name] = _start_of_text(content)
        return self._heads[name]

    def first_with_head(self, names: list[str], holds: Callable[[str], bool], tries: int = 20) -> str | None:
        """The first of some files, of not more than a few, whose start has a property."""
        return next((name for name in names[:tries] if holds(self.head(name))), None)

    def _in(self, prefix: str) -> Iterator[str]:
        start = bisect.bisect_left(self.names, prefix)
        for name in islice(self.names, start, None):
            if not name.startswith(prefix):
                return
            yield name


def folder_of(name: str) -> str:
    """The folder of a name, "" for the top one."""
    return name.rpartition("/")[0]


def stem_of(name: str) -> str:
    """A name without its suffix; its folders stay."""
    return os.path.splitext(name)[0]  # noqa: PTH122 (a Path a file is slow)


def _start_of_text(content: bytes) -> str:
    for cut in range(4):  # the last character may be cut in the middle
        try:
            return decode_text(content[: len(content) - cut])
        except ValueError:
            continue
    return content.decode("latin-1") if b"\0" not in content else ""
