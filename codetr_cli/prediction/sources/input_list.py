"""The inputs of a prediction: a list of a million images in the memory of their names."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from codetr_cli.weights.urls import shown_url

Kind = Literal["file", "url", "archive", "url archive"]


@dataclass(frozen=True)
class InputImage:
    """One image to predict.

    Attributes:
        path: the file, or the archive that has it; its name if it is at an address.
        name: unique among the images of a call; relative to the folder that was given.
        image_id: the number in the file's name, as in COCO, if all names are different numbers below 2**53; else 1,
            2, ... Results have the name, too, which decides where ids of annotations are others.
        url: its address, or that of the archive that has it; empty if the bytes are in a local file.
        member: its name in an archive; empty if it is not in one.
        start: of its bytes in the archive.
        size: of its bytes in the archive.
    """

    path: Path
    name: str
    image_id: int
    url: str = ""
    member: str = ""
    start: int = 0
    size: int = 0

    @property
    def is_file(self) -> bool:
        """Whether it is a local file of its own."""
        return not (self.url or self.member)

    @property
    def file(self) -> str:
        """Where it is, for results and messages; without credentials."""
        place = shown_url(self.url) if self.url else str(self.path)
        return f"{place}/{self.member}" if self.member else place

    @property
    def local_files(self) -> list[Path]:
        """The files whose content decides the result; empty for an address, whose content is trusted to stay."""
        return [] if self.url else [self.path]


class TextTable(Sequence[str]):
    """Texts as bytes one after the other: a string of Python's has 50 bytes more."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("Q", [0])

    def append(self, text: str) -> None:
        """Adds a text; lone surrogates are kept."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")

    def __len__(self) -> int:
        return len(self._ends) - 1


class InputList(Sequence[InputImage]):
    """Images by their number; each is made when it is asked for.

    A place is a root and the rest of the name: a folder and a file in it, an archive and its member.
    """

    def __init__(self) -> None:
        self._roots: list[tuple[str, Kind]] = []
        self._numbers: dict[tuple[str, Kind], int] = {}
        self._root, self._rest = array("L"), TextTable()
        self._start, self._size = array("q"), array("q")
        self._names: dict[int, str] = {}
        self._ids: array[int] | None = None

    def append(
        self, kind: Kind, root: str, rest: str, *, name: str | None = None, start: int = 0, size: int = 0
    ) -> None:
        """Adds an image.

        Args:
            kind: what the root is: a folder, an address, or an archive that is a file or at an address.
            root: of the place; a folder or an address ends with a slash, unless it is empty.
            rest: of the place.
            name: that the image has, if it is not the usual one.
            start: of the bytes in an archive.
            size: of the bytes in an archive.
        """
        number = self._numbers.setdefault((root, kind), len(self._roots))
        if number == len(self._roots):
            self._roots.append((root, kind))
        index = len(self)
        self._root.append(number)
        self._rest.append(rest)
        if self._start or "archive" in kind:
            self._start.extend([0] * (index - len(self._start)))
            self._size.extend([0] * (index - len(self._size)))
            self._start.append(start)
            self._size.append(size)
        if name is not None and name != self._usual_name(index):
            self._names[index] = name

    def _usual_name(self, index: int) -> str:
        root, kind = self._roots[self._root[index]]
        return f"{root.rpartition('/')[2]}/{self._rest[index]}" if "archive" in kind else self._rest[index]

    def name(self, index: int) -> str:
        """The name of an image."""
        return self._names[index] if index in self._names else self._usual_name(index)

    def rename(self, names: Sequence[str]) -> None:
        """Gives all images a name."""
        self._names = {index: name for index, name in enumerate(names) if name != self._usual_name(index)}

    def number(self, ids: Sequence[int]) -> None:
        """Gives all images an id."""
        self._ids = array("q", ids)

    @overload
    def __getitem__(self, index: int) -> InputImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[InputImage]: ...

    def __getitem__(self, index: int | slice) -> InputImage | list[InputImage]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        rest = self._rest[index]
        index %= len(self)
        root, kind = self._roots[self._root[index]]
        name, image_id = self.name(index), self._ids[index] if self._ids else index + 1
        if kind == "file":
            return InputImage(Path(root + rest), name, image_id)
        if kind == "url":
            return InputImage(Path(name), name, image_id, url=root + rest)
        path, url = (Path(root), "") if kind == "archive" else (Path(name), root)
        return InputImage(path, name, image_id, url, rest, self._start[index], self._size[index])

    def __iter__(self) -> Iterator[InputImage]:
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._rest)


def digest_of(images: Sequence[InputImage]) -> str:
    """A name of the places, names and ids of images; not of their content."""
    here, digest = os.path.join(os.getcwd(), ""), hashlib.sha256()  # noqa: PTH109, PTH118 (a Path a file is slow)
    for image in images:
        path = str(image.path)
        place = image.url or (path if path.startswith("/") else here + path)
        parts = (place, image.member, image.name, str(image.image_id), str(image.start), str(image.size))
        digest.update("\0".join(parts).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
