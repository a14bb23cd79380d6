"""Tar archives of images, as WebDataset divides data into: which members are images, and where their bytes are.

Nothing is extracted. A member is a name and a range of bytes; links, devices and sparse files are no images.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from typing import IO, Any, cast

from codetr_cli.errors import DatasetError
from codetr_cli.files import MAX_NAME_BYTES
from codetr_cli.images.image_files import IMAGE_SUFFIXES, is_debris, suffix_of
from codetr_cli.reading import stays_inside

ARCHIVE_SUFFIXES = (".tar",)
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
MAX_MEMBERS = 10_000_000
MAX_HEADER_BYTES = 1 << 20
"""Of a long name, or of further attributes of a member."""
MAX_SIZE = 1 << 62
"""Bytes of a member."""
MAX_EMPTY_READS = 10
MAX_PADDING = 1 << 16
"""Bytes behind the end of an archive in which the begin of another one is looked for."""
MAGIC_START = 257
"""Of the word that each header has."""
MAX_EXPANDED = 100_000
MAX_SUFFIX = 32
"""Characters of an ending; what is longer is a part of the name."""
MAX_PARTS, MAX_CHARACTERS = 64, 1000
"""Of a name with folders: of a longer one only the last part is kept."""
_DIGITS = re.compile(rb"\d{300}")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Member:
    """An image in an archive.

    Attributes:
        name: as the archive has it.
        shown: name without parts that lead out of a folder.
        start: of its bytes.
        size: their number.
    """

    name: str
    shown: str
    start: int
    size: int


class _ShortReads:
    """A file whose headers are read and whose content is not: a header that claims to be large is refused.

    So is one that continues after the end of the file, where `tarfile` would read for ever, and one of so many digits
    in a row that its search for attributes, which is quadratic in them, would take hours.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._empty = file, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        content = self._file.read(size)
        self._empty = 0 if content else self._empty + 1
        if self._empty > MAX_EMPTY_READS or _DIGITS.search(content):
            raise tarfile.ReadError("a header without end")
        return content


def members(file: IO[bytes], name: str) -> Iterator[Member]:
    """The images in an archive, in its order.

    Args:
        file: open for reading, at its start; one that can be searched.
        name: of the archive, for messages.

    Raises:
        DatasetError: it is not a tar archive, is damaged, or has too many members.
    """
    try:
        with tarfile.open(fileobj=cast(Any, _ShortReads(file)), mode="r:", errorlevel=1) as archive:
            count, end = 0, -1
            while (found := archive.next()) is not None:
                cast(Any, archive).members.clear()  # or it would keep all
                count, before, end = count + 1, end, archive.offset
                if count > MAX_MEMBERS:
                    raise DatasetError(f"{name} has more than {MAX_MEMBERS:,} members: divide it into several archives")
                if not 0 <= found.size <= MAX_SIZE or end <= before:
                    raise tarfile.ReadError(f"a member of {found.size:,} bytes")
                if found.isreg() and not found.issparse() and _is_image(found.name):
                    yield Member(found.name, shown_name(found.name), found.offset_data, found.size)
            _check_end(file, archive.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{name} is not a whole tar archive: {error}. Replace it, or remove it from the inputs"
        ) from error


def _check_end(file: IO[bytes], offset: int) -> None:
    """Ensures that an archive ends where no more members were found: `tarfile` stops at a damaged header, too.

    Raises:
        tarfile.ReadError: members may be missing.
    """
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"a damaged header at byte {offset:,}")
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it was cut off at byte {offset:,}, without the empty blocks at its end")
    rest = file.read(MAX_PADDING)
    if any(rest[start : start + 5] == b"ustar" for start in range(MAGIC_START, len(rest), tarfile.BLOCKSIZE)):
        raise tarfile.ReadError("another one follows its end")


def _is_image(name: str) -> bool:
    last = name.rpartition("/")[2]
    return suffix_of(last) in IMAGE_SUFFIXES and not is_debris(last)


def shown_name(name: str) -> str:
    """A name that a file below any folder can have: the last part of one that leads elsewhere, or is too long."""
    clean = PurePosixPath(name.replace("\0", "_")).as_posix()
    parts = clean.split("/")
    is_short = len(parts) <= MAX_PARTS and len(clean) <= MAX_CHARACTERS
    if stays_inside(name) and ".." not in parts and clean != "." and is_short and _longest(parts) <= MAX_NAME_BYTES:
        return clean
    return _shortened(PurePosixPath(parts[-1]).name.removeprefix("..")) or "image"


def _longest(parts: Sequence[str]) -> int:
    """The bytes of the longest of some names."""
    return max(len(os.fsencode(part)) for part in parts)


def _shortened(name: str) -> str:
    """A name that is not too long, with the same ending."""
    suffix = PurePosixPath(name).suffix
    suffix = suffix if len(suffix) <= MAX_SUFFIX else ""
    stem = name.removesuffix(suffix)[:MAX_NAME_BYTES]
    while len(os.fsencode(stem + suffix)) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix


def expand_braces(text: str) -> list[str]:
    """The texts that `{000..099}` and `{a,b}` stand for, as shells and WebDataset understand them.

    Raises:
        DatasetError: they are too many.
    """
    parts = _BRACES.split(text)
    choices: list[list[str] | _Numbers] = [
        _choices(part) if number % 2 else [part] for number, part in enumerate(parts)
    ]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > MAX_EXPANDED:
        raise DatasetError(f"{text} stands for {total:,} names, and the limit is {MAX_EXPANDED:,}")
    return ["".join(words) for words in product(*choices)]


def _choices(inside: str) -> list[str] | _Numbers:
    found = _RANGE.fullmatch(inside)
    if found:
        return _Numbers(found[1], found[2])
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


class _Numbers:
    """The numbers of a range, as wide as its first one."""

    def __init__(self, first: str, last: str) -> None:
        self._first, self._last, self._width = int(first), int(last), len(first)

    def __len__(self) -> int:
        return abs(self._last - self._first) + 1

    def __iter__(self) -> Iterator[str]:
        step = 1 if self._last >= self._first else -1
        return (f"{number:0{self._width}}" for number in range(self._first, self._last + step, step))
