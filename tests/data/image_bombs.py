"""Small image files that make readers without limits slow, or fill their memory."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def encoded(fmt: str, size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    """A file of one colour; `size` is (width, height)."""
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(stream, fmt, **options)
    return stream.getvalue()


def exif(tags: int, length: int, *, tag: int | None = None, pad: int = 0, orientation: int = 6) -> bytes:
    """An EXIF block whose tags all declare the same `length` bytes; padded, so that a reader finds them."""
    entries = struct.pack("<HHII", 0x112, 3, 1, orientation) + b"".join(
        struct.pack("<HHII", 1000 + i % 60_000 if tag is None else tag, 2, length, 0) for i in range(tags)
    )
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", tags + 1) + entries + bytes(4)
    return block + bytes(max(0, pad - len(block)))


def jpeg_segment(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(inserted: bytes, *, before: bytes = b"\xff\xe0") -> bytes:
    """A JPEG with bytes inserted before its first marker of a kind."""
    plain = encoded("JPEG")
    place = plain.index(before)
    return plain[:place] + inserted + plain[place:]


def scan_bomb(size: tuple[int, int], scans: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    plain = encoded("JPEG", size, progressive=True)
    place = plain.rindex(b"\xff\xda")
    return plain[:place] + plain[place:-2] * scans + plain[-2:]


def png_chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(inserted: bytes, *, before: bytes = b"IDAT") -> bytes:
    """A PNG with chunks inserted before its first chunk of a kind."""
    plain = encoded("PNG")
    place = plain.index(before) - 4
    return plain[:place] + inserted + plain[place:]


def webp_with(exif_block: bytes) -> bytes:
    return encoded("WEBP", exif=exif_block)


def tiff(entries: list[tuple[int, int, int, int]] | None = None, *, body: bytes = b"", big: bool = False) -> bytes:
    """A grey TIFF, 60 x 40; `entries` (tag, kind, number, value) replace its own, `body` follows the pixels."""
    pixels, start = bytes(60 * 40), 16 if big else 8
    own = {256: 60, 257: 40, 258: 8, 259: 1, 262: 1, 273: start, 277: 1, 278: 40, 279: len(pixels)}
    table = {tag: (4, 1, value) for tag, value in own.items()} | {tag: rest for tag, *rest in entries or []}
    place = start + len(pixels) + len(body)
    rows = sorted((tag, *rest) for tag, rest in table.items())
    if big:
        head = b"II+\0\x08\0\0\0" + struct.pack("<Q", place)
        directory = struct.pack("<Q", len(rows)) + b"".join(struct.pack("<HHQQ", *row) for row in rows) + bytes(8)
    else:
        head = b"II*\0" + struct.pack("<I", place)
        directory = struct.pack("<H", len(rows)) + b"".join(struct.pack("<HHII", *row) for row in rows) + bytes(4)
    return head + pixels + body + directory


def tiff_tag_bomb(tags: int, length: int) -> bytes:
    return tiff([(40_000 + i, 1, length, 8) for i in range(tags)], body=bytes(length))


def jpeg2000(size: tuple[int, int], *, block: int, precinct_bits: int | None = None) -> bytes:
    """A JPEG 2000 codestream; one with precincts cannot be decoded, they are only in its header."""
    plain = encoded("JPEG2000", size, codeblock_size=(block, block), no_jp2=True)
    if precinct_bits is None:
        return plain
    place = plain.index(b"\xff\x52")
    end = place + 2 + int.from_bytes(plain[place + 2 : place + 4], "big")
    precincts = bytes([precinct_bits << 4 | precinct_bits]) * (plain[place + 9] + 1)
    length = struct.pack(">H", end - place - 2 + len(precincts))
    return plain[: place + 2] + length + b"\1" + plain[place + 5 : end] + precincts + plain[end:]
