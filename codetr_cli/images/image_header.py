"""What the header of an image file contains, and the bytes it is read from: random access within limits."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from codetr_cli.errors import DatasetError

Size: TypeAlias = tuple[int, int]
"""(height, width); without the import of torch that `codetr_cli.boxes` needs, for `codetr prepare`."""

HEAD_BYTES = 2048
"""First read of every file: contains the size of nearly every photograph."""

MAX_PARTS = 10_000
"""Segments, chunks or boxes of a header; photographs have fewer than a hundred."""

MAX_CHUNKS = 1_000_000
"""Of a PNG, whose pixels may be in any number of them."""

MAX_EXTRA_BYTES = 256 << 20
"""A file may have this much beyond `BYTES_PER_PIXEL` for each pixel: metadata, further frames, appended data."""

MAX_SEARCHED_BYTES = 128 << 20
"""How far the end of a picture may be from its header where data follow it."""

BYTES_PER_PIXEL = 8
"""Of a file: four channels of 16 bits, not compressed."""

Problem = Literal["missing", "unreadable", "empty", "not_an_image", "truncated", "unsupported"]


class ImageFileError(DatasetError):
    """An image file that cannot be used: the kind of damage, and what exactly was found, without the file's name."""

    def __init__(self, problem: Problem, detail: str) -> None:
        super().__init__(detail)
        self.problem: Problem = problem


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The content of an image's header.

    Args:
        stored_size: (height, width) in pixels as stored.
        orientation: EXIF orientation 1..8 that is applied on reading; 1 for none.
        colour: how the pixels are stored: "rgb", "grey", "palette", "cmyk", "alpha".
        bits: bits per sample.
        memory_factor: memory that decoding a pixel needs, in units of what it needs for other formats.
        as_stored: it is decoded as stored and converted here: what OpenCV makes of it differs from other formats.
        in_parts: its pixels can be read in parts, see `large_images`.
        planes: it is decoded channel by channel, so many; 1: at once.
    """

    format: str
    stored_size: Size
    orientation: int = 1
    colour: str = "rgb"
    bits: int = 8
    memory_factor: float = 1.0
    as_stored: bool = False
    in_parts: bool = False
    planes: int = 1

    @property
    def size(self) -> Size:
        """(height, width) in pixels of the decoded image: after the EXIF rotation."""
        if self.orientation < 5:
            return self.stored_size
        height, width = self.stored_size
        return width, height

    def size_problem(self, listed: Size) -> Literal["", "rotation_differs", "size_differs"]:
        """How the size that an annotation file lists differs from the decoded image's; "" if it does not.

        "rotation_differs": it is the one before the EXIF rotation.
        """
        if self.size == tuple(listed):
            return ""
        return "rotation_differs" if self.orientation >= 5 and self.stored_size == tuple(listed) else "size_differs"

    def excess(self, max_pixels: int) -> str:
        """Why decoding needs too much memory, a phrase; "" if it does not."""
        height, width = self.size
        if self.limit_needed <= max_pixels:
            return ""
        counted = f", each counted {self.memory_factor:.1f} times for its memory" if self.memory_factor > 1 else ""
        return f"{width} x {height} pixels{counted}, more than data.max_pixels = {max_pixels}"

    @property
    def limit_needed(self) -> int:
        """The least `data.max_pixels` that allows the image."""
        return int(self.stored_size[0] * self.stored_size[1] * self.memory_factor)


class FileBytes:
    """Random access to a file's bytes; the head is read once.

    Args:
        read_at: returns at most a number of bytes from an offset; both as arguments, in the order of `os.pread`.
        size: of the file in bytes.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        self._read_at = read_at
        self.head = read_at(HEAD_BYTES, 0)
        self.size = size if size > HEAD_BYTES else len(self.head)

    @classmethod
    def of_file(cls, descriptor: int, size: int) -> FileBytes:
        """Of an open file."""
        return cls(partial(_pread, descriptor), size)

    @classmethod
    def of_content(cls, content: bytes) -> FileBytes:
        """Of a file that is in RAM."""
        return cls(lambda count, offset: content[offset : offset + count], len(content))

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer where the file ends; memory is needed only for bytes that exist."""
        if offset + count <= len(self.head):
            return self.head[offset : offset + count]
        count = min(count, self.size - offset)
        return self._read_at(count, offset) if count > 0 else b""

    def tail(self, count: int) -> bytes:
        """The last `count` bytes, fewer where the file is shorter."""
        return self.at(max(0, self.size - count), min(count, self.size))

    def contains(self, searched: bytes, start: int) -> bool:
        """Whether bytes occur in the `MAX_SEARCHED_BYTES` from an offset on."""
        step = 1 << 20
        return any(
            searched in self.at(offset, step + len(searched) - 1)
            for offset in range(start, min(self.size, start + MAX_SEARCHED_BYTES), step)
        )


def _seek_and_read(descriptor: int, count: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, count)


_pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)  # Windows has none
