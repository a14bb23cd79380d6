"""Image headers read from the first and last bytes of a file, without decoding a pixel.

One open and one or two reads a file, so that COCO can be checked in seconds and a 20000 x 20000 image needs no RAM. The
result is what will be decoded: formats are detected by content, never by file extension, and the EXIF rotation is
reported with the stored size. Nothing in a file makes reading its header slow: walks are limited in steps, tags in
number and sum, and only bytes that exist are read.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from codetr_cli.images.image_files import FORMAT_SUFFIXES
from codetr_cli.images.image_header import BYTES_PER_PIXEL, MAX_CHUNKS, MAX_EXTRA_BYTES, MAX_PARTS, FileBytes
from codetr_cli.images.image_header import ImageFileError as ImageFileError
from codetr_cli.images.image_header import ImageHeader as ImageHeader
from codetr_cli.images.rare_headers import read_rare
from codetr_cli.images.tiff_header import exif_orientation, read_tiff
from codetr_cli.reading import open_descriptor


def read_header(path: str | Path) -> ImageHeader:
    """Reads an image's header and checks that the file is complete.

    Raises:
        ImageFileError: the file is missing, empty, truncated, not an image, not a regular file, far larger than its
            pixels, or of a format OpenCV cannot read.
    """
    return _read(path)[0]


def decoded_bytes(path: str | Path) -> int:
    """Bytes of an image's 8-bit RGB pixels by its header, before it is decoded; 0 if it cannot be read."""
    try:
        height, width = read_header(path).size
    except (ImageFileError, OSError, ValueError):
        return 0
    return 3 * height * width


def read_header_and_start(path: str | Path) -> tuple[ImageHeader, int, int]:
    """As `read_header`, with the size of the file in bytes and a checksum of its start, by which files differ.

    Raises:
        ImageFileError: as `read_header`.
    """
    header, source = _read(path)
    return header, source.size, zlib.crc32(source.head)


def _read(path: str | Path) -> tuple[ImageHeader, FileBytes]:
    try:
        descriptor, size = open_descriptor(path)
        try:
            source = FileBytes.of_file(descriptor, size)
            return _parse(source), source
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise ImageFileError("missing", "no such file") from error
    except OSError as error:
        raise ImageFileError("unreadable", error.strerror or str(error)) from error


def header_of(content: bytes) -> ImageHeader:
    """As `read_header`, for a file whose content is in RAM."""
    return _parse(FileBytes.of_content(content))


def _parse(source: FileBytes) -> ImageHeader:
    if not source.head:
        raise ImageFileError("empty", "the file has zero bytes")
    try:
        header = _by_format(source)
    except (struct.error, IndexError) as error:
        raise ImageFileError("truncated", "the header is cut short or broken") from error
    if source.size > MAX_EXTRA_BYTES:
        height, width = header.stored_size
        if source.size > MAX_EXTRA_BYTES + BYTES_PER_PIXEL * height * width:
            pages = " in its first page: save the others as files of their own" if header.format == "tiff" else ""
            raise ImageFileError("unsupported", f"{source.size:,} bytes for {width} x {height} pixels{pages}")
    return header


def _by_format(source: FileBytes) -> ImageHeader:
    head = source.head
    if head[:3] == b"\xff\xd8\xff":
        return _jpeg(source)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(source)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(source)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return _gif(source)
    if head[:2] == b"BM" and (head[6:10] == b"\0\0\0\0" or head[14:18] in _BMP_HEADERS):
        return _bmp(source)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return read_tiff(source)
    if not any(head):
        raise ImageFileError("not_an_image", "it contains only zero bytes")
    header = read_rare(source)
    if header is None:
        raise ImageFileError("not_an_image", _what(head))
    import cv2

    # Which formats OpenCV has is decided when it is built; asking for a reader would open the file again.
    if not cv2.haveImageWriter(f"image{FORMAT_SUFFIXES[header.format][0]}"):
        raise ImageFileError("unsupported", f"{header.format.upper()}, which this OpenCV cannot read")
    return header


def _jpeg(source: FileBytes) -> ImageHeader:
    """Walks the segments up to the frame header (ITU-T T.81, annex B)."""
    offset, orientation, head = 2, None, source.head
    for _ in range(MAX_PARTS):
        segment = head[offset : offset + 20]
        if len(segment) < 20:
            segment = source.at(offset, 20)
        if len(segment) < 4:
            raise ImageFileError("truncated", "the JPEG ends within its header")
        if segment[0] != 0xFF:
            raise ImageFileError("truncated", f"the JPEG's header is broken at byte {offset}")
        marker = segment[1]
        if marker == 0xFF:  # fill bytes before a marker
            fill = source.at(offset, 4096)
            offset += max(1, len(fill) - len(fill.lstrip(b"\xff")) - 1)
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that stand alone
            offset += 2
            continue
        if marker in (0xD9, 0xDA):
            raise ImageFileError("truncated", "the JPEG's header has no size")
        length = (segment[2] << 8) | segment[3]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            break
        if orientation is None and marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            orientation = exif_orientation(source, offset + 10, length - 8)
        offset += 2 + length
    else:
        raise ImageFileError("unsupported", f"the JPEG's header has more than {MAX_PARTS:,} segments")
    bits, height, width, components = struct.unpack(">BHHB", segment[4:10])
    _check_end(source, offset, b"\xff\xd9", "the JPEG has no end marker")
    return ImageHeader("jpeg", (height, width), orientation or 1, {1: "grey", 4: "cmyk"}.get(components, "rgb"), bits)


def _png(source: FileBytes) -> ImageHeader:
    """Reads IHDR and the chunks before the pixels, and for the orientation those after them (RFC 2083)."""
    if source.head[12:16] != b"IHDR":
        raise ImageFileError("truncated", "the PNG does not start with its header chunk")
    width, height, bits, colour = struct.unpack(">IIBB", source.head[16:26])
    offset, orientation = 33, None
    for _ in range(MAX_CHUNKS):
        chunk = source.at(offset, 8)
        if len(chunk) < 8:
            raise ImageFileError("truncated", "the PNG ends within its header")
        length = int.from_bytes(chunk[:4], "big")
        if offset + 12 + length > source.size:
            raise ImageFileError("truncated", "a chunk of the PNG is beyond the end of the file")
        if chunk[4:] in (b"IDAT", b"IEND"):
            break
        if orientation is None and chunk[4:] == b"eXIf":
            orientation = exif_orientation(source, offset + 8, length)
        offset += 12 + length
    else:
        raise ImageFileError("unsupported", f"the PNG's header has more than {MAX_CHUNKS:,} chunks")
    _check_end(source, offset, b"IEND\xaeB`\x82", "the PNG has no end chunk")
    if orientation is None:
        orientation = _late_png_orientation(source, offset)
    kind = {0: "grey", 3: "palette", 4: "alpha", 6: "alpha"}.get(colour, "rgb")
    return ImageHeader("png", (height, width), orientation or 1, kind, bits)


def _late_png_orientation(source: FileBytes, offset: int) -> int | None:
    """The orientation that a chunk at or after the first of the pixels has; None if none has it."""
    for _ in range(MAX_CHUNKS):
        chunk = source.at(offset, 8)
        if len(chunk) < 8 or chunk[4:] == b"IEND" or not chunk[4:].isalpha():
            break
        length = int.from_bytes(chunk[:4], "big")
        if chunk[4:] == b"eXIf":
            return exif_orientation(source, offset + 8, length)
        offset += 12 + length
    return None


def _check_end(source: FileBytes, start: int, end: bytes, what: str) -> None:
    """Checks that the end marker is anywhere after `start`: cameras and editors append data of their own to it."""
    if source.tail(len(end)) != end and not source.contains(end, start):
        raise ImageFileError("truncated", f"{what}: the end of the file is missing")


def _webp(source: FileBytes) -> ImageHeader:
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


def _webp_orientation(source: FileBytes) -> int:
    offset = 12
    for _ in range(MAX_PARTS):
        chunk = source.at(offset, 14)
        if len(chunk) < 8:
            return 1
        length = int.from_bytes(chunk[4:8], "little")
        if chunk[:4] == b"EXIF":
            prefix = 6 if chunk[8:] == b"Exif\0\0" else 0
            return exif_orientation(source, offset + 8 + prefix, length - prefix) or 1
        offset += 8 + length + (length & 1)
    raise ImageFileError("unsupported", f"the WebP has more than {MAX_PARTS:,} chunks")


def _gif(source: FileBytes) -> ImageHeader:
    width, height = struct.unpack("<HH", source.head[6:10])
    if b"\0;" not in source.tail(64):
        raise ImageFileError("truncated", "the GIF has no trailer: the end of the file is missing")
    return ImageHeader("gif", (height, width), 1, "palette")


def _bmp(source: FileBytes) -> ImageHeader:
    pixels_at, header_size = struct.unpack("<II", source.head[10:18])
    if header_size == 12:
        width, height, _, bits = struct.unpack("<HHHH", source.head[18:26])
        compressed = 0
    else:
        width, height, _, bits, compressed = struct.unpack("<iiHHI", source.head[18:34])
    width, height = abs(width), abs(height)  # negative: stored from the top
    row_bytes = (width * bits + 31) // 32 * 4
    if compressed in (0, 3) and pixels_at + row_bytes * height > source.size:
        raise ImageFileError(
            "truncated", f"the BMP needs {pixels_at + row_bytes * height:,} bytes: {source.size:,} found"
        )
    return ImageHeader("bmp", (height, width), 1, "palette" if bits <= 8 else "rgb")


_BMP_HEADERS = frozenset(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))
_LOOKS_LIKE = {
    b"version https://git-lfs": "a Git LFS pointer instead of the image: run 'git lfs pull' there",
    b"<!doctype html": "a web page, probably the error page of a failed download",
    b"<html": "a web page, probably the error page of a failed download",
    b"<?xml": "an XML text",
    b"pk\x03\x04": "a zip archive",
}


def _what(head: bytes) -> str:
    """What a file is that is no image, as far as its beginning shows it."""
    for signature, what in _LOOKS_LIKE.items():
        if head.lstrip()[: len(signature)].lower() == signature:
            return what
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head[:64]):
        return f"text: {(head[:24].decode('ascii').splitlines() or [''])[0]!r}"
    return f"no known image format starts with the bytes {head[:4].hex(' ')}"
