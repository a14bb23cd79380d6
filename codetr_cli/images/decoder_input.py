"""The bytes of an image file as a decoder gets them: without what pixels do not need, and refused if it makes it slow.

OpenCV copies the text of every EXIF tag, which overlap in a hostile file: 65,000 tags of 7 MB each. The orientation is
known from the header, nothing else of EXIF matters. A progressive JPEG may have any number of scans, each of which is a
few bytes and costs as much time as a picture.
"""

from __future__ import annotations

import re
from itertools import islice

from codetr_cli.images.image_header import MAX_CHUNKS, FileBytes, ImageFileError, ImageHeader
from codetr_cli.images.rare_headers import meta_box
from codetr_cli.images.tiff_header import for_opencv

MAX_SCANS = 100
FREE_SCANS = 16
"""Encoders write about ten; a JPEG of any size may have these."""
MAX_SCANNED_PIXELS = 2_000_000_000
"""Pixels times scans for a JPEG with more scans: about 6 s on one core."""
ANCILLARY = 0x20
"""Bit of the first letter of a PNG chunk without which the image can be shown."""

_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")

_PROGRESSIVE = re.compile(rb"\xff\xc2\0[\x0b\x0e\x11\x14]")


def decoder_input(content: bytes, header: ImageHeader) -> bytes:
    """The content of an image file without its EXIF blocks, of a PNG also without all else that pixels do not need.

    Of a TIFF without the tags that change its pixels, see `tiff_header.for_opencv`.

    Raises:
        ImageFileError: decoding it could take minutes.
    """
    if header.format == "jpeg":
        _check_scans(content, header)
        return content.replace(b"Exif\0\0", b"\0\0\0\0\0\0")
    if header.format == "tiff" and _PROGRESSIVE.search(content):  # it may contain JPEGs
        _check_scans(content, header)
    if header.format == "tiff":
        return for_opencv(content, header)
    if header.format == "png":
        return _still_png(content)
    if header.format == "webp" and content[12:16] == b"VP8X" and content[20] & 0x08:
        return content[:20] + bytes([content[20] & ~0x08]) + content[21:]
    if header.format == "avif":
        start, end = meta_box(FileBytes.of_content(content)) or (0, 0)
        return content[:start] + content[start:end].replace(b"Exif", b"none") + content[end:]
    return content


def _check_scans(content: bytes, header: ImageHeader) -> None:
    scans = sum(1 for _ in islice(_SCAN.finditer(content), MAX_SCANS + 1))
    height, width = header.stored_size
    if scans > MAX_SCANS or (scans > FREE_SCANS and scans * height * width > MAX_SCANNED_PIXELS):
        counted = f"more than {MAX_SCANS}" if scans > MAX_SCANS else str(scans)
        raise ImageFileError(
            "unsupported", f"a {header.format.upper()} of {width} x {height} pixels with {counted} scans"
        )


def _still_png(content: bytes) -> bytes:
    """A PNG without the chunks that its pixels do not need: EXIF, texts, profiles, the frames of an animation.

    OpenCV allocates what a chunk declares before it reads it, and releases before 5 crash on broken animations.
    """
    kept: list[bytes] = []
    start, offset = 0, 8
    for _ in range(MAX_CHUNKS):
        header = content[offset : offset + 8]
        if len(header) < 8 or header[4:] == b"IEND":
            return b"".join((*kept, content[start:])) if start else content
        end = offset + 12 + int.from_bytes(header[:4], "big")
        if end > len(content):
            raise ImageFileError("truncated", f"a chunk of the PNG declares {end - len(content):,} bytes too many")
        if header[4] & ANCILLARY and header[4:] != b"tRNS":
            kept.append(content[start:offset])
            start = end
        offset = end
    raise ImageFileError("unsupported", f"a PNG with more than {MAX_CHUNKS:,} chunks")
