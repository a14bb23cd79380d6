"""Image headers read from the first and last bytes of a file, without decoding a pixel.

One open and one or two reads a file, so that COCO can be checked in seconds and a 20000 x 20000 image needs no RAM. The
result is what OpenCV will decode: formats are detected by content, never by file extension, and the EXIF rotation that
OpenCV applies is reported with the stored size.
"""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codetr_cli.data.targets import Size
from codetr_cli.errors import DatasetError

HEAD_BYTES = 2048
"""First read of every file: contains the size of nearly every photograph."""

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
        orientation: EXIF orientation 1..8 that OpenCV applies on reading; 1 for none.
        colour: how the pixels are stored: "rgb", "grey", "palette", "cmyk", "alpha".
        bits: bits per sample.
    """

    format: str
    stored_size: Size
    orientation: int = 1
    colour: str = "rgb"
    bits: int = 8

    @property
    def size(self) -> Size:
        """(height, width) in pixels as OpenCV returns the image: after the EXIF rotation."""
        if self.orientation < 5:
            return self.stored_size
        height, width = self.stored_size
        return width, height


def read_header(path: str | Path) -> ImageHeader:
    """Reads an image's header and checks that the file is complete.

    Raises:
        ImageFileError: the file is missing, empty, truncated, not an image, or of a format OpenCV cannot read.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (a Path a file is slow)
            return _parse(_FileBytes(file), path)
    except FileNotFoundError as error:
        raise ImageFileError("missing", "no such file") from error
    except OSError as error:
        raise ImageFileError("unreadable", error.strerror or str(error)) from error


def header_of(content: bytes, path: str | Path) -> ImageHeader:
    """As `read_header`, for a file whose content is in RAM; only rare formats are read from `path` again."""
    return _parse(_FileBytes(io.BytesIO(content)), path)


class _FileBytes:
    """Random access to a file's bytes; the head is read once."""

    def __init__(self, file: io.RawIOBase | io.BytesIO) -> None:
        self._file = file
        self.head = file.read(HEAD_BYTES) or b""
        self.size = len(self.head) if len(self.head) < HEAD_BYTES else file.seek(0, os.SEEK_END)

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer where the file ends."""
        if offset + count <= len(self.head):
            return self.head[offset : offset + count]
        self._file.seek(offset)
        return self._file.read(count) or b""

    def tail(self, count: int) -> bytes:
        """The last `count` bytes, fewer where the file is shorter."""
        return self.at(max(0, self.size - count), min(count, self.size))


def _parse(source: _FileBytes, path: str | Path) -> ImageHeader:
    head = source.head
    if not head:
        raise ImageFileError("empty", "the file has zero bytes")
    try:
        if head[:3] == b"\xff\xd8\xff":
            return _jpeg(source)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(source)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp(source)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            return _gif(source)
        if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
            return _bmp(source)
        if head[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(source)
        return _other(head, path)
    except (struct.error, IndexError) as error:
        raise ImageFileError("truncated", "the header is cut short or broken") from error


def _jpeg(source: _FileBytes) -> ImageHeader:
    """Walks the segments up to the frame header (ITU-T T.81, annex B)."""
    offset, orientation = 2, 1
    while True:
        segment = source.at(offset, 20)
        if len(segment) < 4:
            raise ImageFileError("truncated", "the JPEG ends within its header")
        if segment[0] != 0xFF:
            raise ImageFileError("truncated", f"the JPEG's header is broken at byte {offset}")
        marker = segment[1]
        if marker == 0xFF:  # fill byte before a marker
            offset += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that stand alone
            offset += 2
            continue
        if marker in (0xD9, 0xDA):
            raise ImageFileError("truncated", "the JPEG's header has no size")
        length = (segment[2] << 8) | segment[3]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            break
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            orientation = _exif_orientation(source.at(offset + 10, length - 8)) or orientation
        offset += 2 + length
    bits, height, width, components = struct.unpack(">BHHB", segment[4:10])
    if source.tail(2) != b"\xff\xd9" and not _ends_later(source, offset, b"\xff\xd9"):
        raise ImageFileError("truncated", "the JPEG has no end marker: the end of the file is missing")
    return ImageHeader("jpeg", (height, width), orientation, {1: "grey", 4: "cmyk"}.get(components, "rgb"), bits)


def _png(source: _FileBytes) -> ImageHeader:
    """Reads IHDR and the chunks before the pixels (RFC 2083)."""
    if source.head[12:16] != b"IHDR":
        raise ImageFileError("truncated", "the PNG does not start with its header chunk")
    width, height, bits, colour = struct.unpack(">IIBB", source.head[16:26])
    offset, orientation = 33, 1
    while True:
        chunk = source.at(offset, 8)
        if len(chunk) < 8:
            raise ImageFileError("truncated", "the PNG ends within its header")
        if chunk[4:] in (b"IDAT", b"IEND"):
            break
        length = int.from_bytes(chunk[:4], "big")
        if chunk[4:] == b"eXIf":
            orientation = _exif_orientation(source.at(offset + 8, length)) or orientation
        offset += 12 + length
    end = b"IEND\xaeB`\x82"
    if source.tail(8) != end and not _ends_later(source, offset, end):
        raise ImageFileError("truncated", "the PNG has no end chunk: the end of the file is missing")
    kind = {0: "grey", 3: "palette", 4: "alpha", 6: "alpha"}.get(colour, "rgb")
    return ImageHeader("png", (height, width), orientation, kind, bits)


def _webp(source: _FileBytes) -> ImageHeader:
    head = source.head
    size = int.from_bytes(head[4:8], "little") + 8
    if size > source.size + 1:  # an odd last chunk may lack its padding byte
        raise ImageFileError("truncated", f"the WebP declares {size:,} bytes and has {source.size:,}")
    if head[12:16] == b"VP8X":
        width, height = (int.from_bytes(head[i : i + 3], "little") + 1 for i in (24, 27))
        colour = "alpha" if head[20] & 0x10 else "rgb"
        return ImageHeader("webp", (height, width), _webp_orientation(source) if head[20] & 0x08 else 1, colour)
    if head[12:16] == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        colour = "alpha" if packed >> 28 & 1 else "rgb"
        return ImageHeader("webp", ((packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1), 1, colour)
    width, height = struct.unpack("<HH", head[26:30])
    return ImageHeader("webp", (height & 0x3FFF, width & 0x3FFF))


def _webp_orientation(source: _FileBytes) -> int:
    offset = 12
    while len(chunk := source.at(offset, 8)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"EXIF":
            data = source.at(offset + 8, length)
            return _exif_orientation(data.removeprefix(b"Exif\0\0")) or 1
        offset += 8 + length + (length & 1)
    return 1


def _gif(source: _FileBytes) -> ImageHeader:
    width, height = struct.unpack("<HH", source.head[6:10])
    if b"\0;" not in source.tail(64):
        raise ImageFileError("truncated", "the GIF has no trailer: the end of the file is missing")
    return ImageHeader("gif", (height, width), 1, "palette")


def _bmp(source: _FileBytes) -> ImageHeader:
    pixels_at, header_size = struct.unpack("<II", source.head[10:18])
    if header_size == 12:
        width, height, _, bits = struct.unpack("<HHHH", source.head[18:26])
        compressed = 0
    else:
        width, height, _, bits, compressed = struct.unpack("<iiHHI", source.head[18:34])
    height = abs(height)  # negative: stored from the top
    row_bytes = (width * bits + 31) // 32 * 4
    if compressed in (0, 3) and pixels_at + row_bytes * height > source.size:
        raise ImageFileError(
            "truncated", f"the BMP needs {pixels_at + row_bytes * height:,} bytes: {source.size:,} found"
        )
    return ImageHeader("bmp", (height, width), 1, "palette" if bits <= 8 else "rgb")


def _tiff(source: _FileBytes) -> ImageHeader:
    tags = _read_ifd(source.at)
    size, bits = (tags.get(257, [0])[0], tags.get(256, [0])[0]), tags.get(258, [1])[0]
    ends = [a + b for o, c in ((273, 279), (324, 325)) for a, b in zip(tags.get(o, []), tags.get(c, []), strict=False)]
    if bits > 16:
        raise ImageFileError("unsupported", f"a TIFF with {bits} bits per sample; OpenCV reads at most 16")
    if not ends or max(ends) > source.size:
        raise ImageFileError("truncated", "the TIFF's pixels are beyond the end of the file")
    colour = {0: "grey", 1: "grey", 3: "palette", 5: "cmyk"}.get(tags.get(262, [2])[0], "rgb")
    return ImageHeader("tiff", size, _orientation(tags) or 1, colour, bits)


def _other(head: bytes, path: str | Path) -> ImageHeader:
    """Rare formats, which both OpenCV and Pillow must support."""
    if not any(head):
        raise ImageFileError("not_an_image", "it contains only zero bytes")
    for signature, what in _LOOKS_LIKE.items():
        if head.lstrip()[: len(signature)].lower() == signature:
            raise ImageFileError("not_an_image", what)
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif"):
        raise ImageFileError("unsupported", "a HEIC photograph, which OpenCV cannot read")
    import cv2
    from PIL import Image, UnidentifiedImageError

    if cv2.haveImageReader(str(path)):
        # Pillow rejects large images by a process-wide limit. Nothing is decoded here; our own limit applies.
        with _PILLOW_LOCK:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                with Image.open(path) as image:
                    return ImageHeader((image.format or "other").lower(), (image.height, image.width))
            except (UnidentifiedImageError, ValueError, SyntaxError) as error:
                raise ImageFileError("unsupported", "its header cannot be parsed") from error
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head[:64]):
        raise ImageFileError("not_an_image", f"text: {head[:24].decode('ascii').splitlines()[0]!r}")
    raise ImageFileError("not_an_image", f"no known image format starts with the bytes {head[:4].hex(' ')}")


_PILLOW_LOCK = threading.Lock()
_LOOKS_LIKE = {
    b"version https://git-lfs": "a Git LFS pointer instead of the image: run 'git lfs pull' there",
    b"<!doctype html": "a web page, probably the error page of a failed download",
    b"<html": "a web page, probably the error page of a failed download",
    b"<?xml": "an XML text",
    b"pk\x03\x04": "a zip archive",
}


def _ends_later(source: _FileBytes, start: int, end: bytes) -> bool:
    """Whether the end marker is anywhere after `start`: cameras and editors append data of their own to it."""
    return end in source.at(start, source.size - start)


def _exif_orientation(data: bytes) -> int | None:
    """The orientation tag 1..8 of an EXIF block (a small TIFF), None when it is absent or broken."""
    if data[:2] not in (b"II", b"MM"):
        return None
    try:
        return _orientation(_read_ifd(lambda offset, count: data[offset : offset + count]))
    except (struct.error, IndexError):
        return None


def _orientation(tags: dict[int, list[int]]) -> int | None:
    value = tags.get(274, [1])[0]
    return value if 1 <= value <= 8 else None


def _read_ifd(at: Callable[[int, int], bytes]) -> dict[int, list[int]]:
    """Integer tags of the first TIFF directory; `at` returns `count` bytes from an offset."""
    mark = "<" if at(0, 2) == b"II" else ">"
    start = struct.unpack(mark + "I", at(4, 4))[0]
    count = struct.unpack(mark + "H", at(start, 2))[0]
    tags: dict[int, list[int]] = {}
    entries = at(start + 2, count * 12)
    for i in range(count):
        tag, kind, number = struct.unpack_from(mark + "HHI", entries, i * 12)
        letter = {1: "B", 3: "H", 4: "I"}.get(kind)
        if letter is None or number > 1_000_000:
            continue
        length = number * struct.calcsize(letter)
        value = entries[i * 12 + 8 : i * 12 + 12]
        data = value if length <= 4 else at(struct.unpack(mark + "I", value)[0], length)
        tags[tag] = list(struct.unpack(f"{mark}{number}{letter}", data[:length]))
    return tags
