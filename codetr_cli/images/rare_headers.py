"""Headers of image formats that are rare in data sets: AVIF, JPEG 2000, the PNM family and Sun raster.

Each is parsed here and not by a library: a general one opens dozens of formats, some of which start programs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import replace

from codetr_cli.images.image_header import MAX_PARTS, FileBytes, ImageFileError, ImageHeader, Size

BYTES_PER_PIXEL_OF_MEMORY = 12
"""What decoders of usual formats need at most, which `ImageHeader.memory_factor` is relative to."""

# Width, height and for most kinds the largest value, separated by white space and comments.
_PNM = re.compile(
    rb"P([1-7fF])(?:\s|#[^\n]*\n)+(\d{1,10})(?:\s|#[^\n]*\n)+(\d{1,10})(?:(?:\s|#[^\n]*\n)+([-+.\deE]{1,20}))?\s"
)
_SRGB, _GREY = (b"\1\0\0\0\0\0" + bytes([number]) for number in (16, 17))
"""Content of a box of JPEG 2000 that names a colour space."""
MAX_LAYERS = 256
"""Of quality, in a JPEG 2000 image; archives use up to 50."""
_AVIF_BRANDS = (b"avif", b"avis")
_AVIF_TURNS = {
    (1, None): 8, (2, None): 3, (3, None): 6, (0, 0): 4, (0, 1): 2,
    (1, 0): 5, (1, 1): 7, (2, 0): 2, (2, 1): 4, (3, 0): 7, (3, 1): 5,
}  # fmt: skip
"""EXIF orientation by the quarter turns against the clock and the axis of the mirror that follows."""


def read_rare(source: FileBytes) -> ImageHeader | None:
    """The header of a file of one of these formats, None for any other file.

    Raises:
        ImageFileError: it cannot be used.
        struct.error: the header is cut short.
    """
    head = source.head
    if head[4:8] == b"ftyp":
        return _isobmff(source)
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n":
        return _jp2(source)
    if head[:4] == b"\xff\x4f\xff\x51":
        return _codestream(source, 0)
    if head[:4] == b"\x59\xa6\x6a\x95":
        return _sun(source)
    return _pnm(source)


def meta_box(source: FileBytes) -> tuple[int, int] | None:
    """(start, end) of the box of an AVIF file that describes its items; None if there is none."""
    return next(((start, end) for kind, start, end in _boxes(source, 0, source.size) if kind == b"meta"), None)


def _isobmff(source: FileBytes) -> ImageHeader | None:
    """AVIF, whose primary item has a size and turns as properties (ISO/IEC 23008-12, AV1 image file format)."""
    head = source.head
    brands = head[8 : min(int.from_bytes(head[:4], "big"), 256)]
    if not any(brand in brands for brand in _AVIF_BRANDS):
        if head[8:11] in (b"hei", b"hev", b"mif"):
            raise ImageFileError("unsupported", "a HEIC photograph, which OpenCV cannot read")
        return None
    place = meta_box(source)
    if place is None:
        raise ImageFileError("truncated", "the AVIF describes no image")
    properties: list[tuple[bytes, int]] = []
    primary, associations, at = None, None, source.at
    for kind, start, end in _boxes(source, place[0] + 4, place[1]):
        if kind == b"pitm":
            wide = at(start, 1) != b"\0"
            primary = int.from_bytes(at(start + 4, 4 if wide else 2), "big")
        elif kind == b"iprp":
            for inner, inner_start, inner_end in _boxes(source, start, end):
                if inner == b"ipco":
                    properties = [(name, where) for name, where, _ in _boxes(source, inner_start, inner_end)]
                elif inner == b"ipma":
                    associations = (inner_start, inner_end)
    if primary is None or associations is None:
        raise ImageFileError("truncated", "the AVIF describes no image")
    size, turns, mirror = None, 0, None
    for index in _associated(source, *associations, primary):
        name, where = properties[index - 1] if 0 < index <= len(properties) else (b"", 0)
        if name == b"ispe":
            width, height = struct.unpack(">II", at(where + 4, 8))
            size = (height, width)
        elif name == b"irot":
            turns = at(where, 1)[0] & 3
        elif name == b"imir":
            mirror = at(where, 1)[0] & 1
    if size is None:
        raise ImageFileError("truncated", "the AVIF has no size")
    return ImageHeader("avif", size, _AVIF_TURNS.get((turns, mirror), 1), memory_factor=16 / BYTES_PER_PIXEL_OF_MEMORY)


def _associated(source: FileBytes, start: int, end: int, item: int) -> list[int]:
    """Numbers, from 1, of the properties of an item."""
    data = source.at(start, min(end - start, 1 << 20))
    version, wide = data[0], data[3] & 1
    offset = 8
    for _ in range(min(int.from_bytes(data[4:8], "big"), MAX_PARTS)):
        id_bytes = 4 if version else 2
        found, count = int.from_bytes(data[offset : offset + id_bytes], "big"), data[offset + id_bytes]
        offset += id_bytes + 1
        step = 2 if wide else 1
        if found == item:
            numbers = (data[offset + i * step : offset + (i + 1) * step] for i in range(count))
            return [int.from_bytes(number, "big") & (0x7FFF if wide else 0x7F) for number in numbers]
        offset += count * step
    return []


def _boxes(source: FileBytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the content of every box in a range."""
    for _ in range(MAX_PARTS):
        if start + 8 > end:
            return
        header = source.at(start, 16)
        if len(header) < 8:
            return
        length, kind, content = int.from_bytes(header[:4], "big"), header[4:8], 8
        if length == 1:
            length, content = int.from_bytes(header[8:16], "big"), 16
        stop = end if length == 0 else start + length
        if length and length < content:
            return
        yield kind, start + content, min(stop, end)
        start = stop
    raise ImageFileError("unsupported", f"it has more than {MAX_PARTS:,} boxes")


def _jp2(source: FileBytes) -> ImageHeader:
    space = b""
    for kind, start, end in _boxes(source, 0, source.size):
        if kind == b"jp2h":
            boxes = {name: source.at(where, 7) for name, where, _ in _boxes(source, start, end)}
            space = b"" if b"pclr" in boxes else boxes.get(b"colr", b"")
        if kind == b"jp2c":
            header = _codestream(source, start)
            fits = space == (_GREY if header.colour == "grey" else _SRGB)
            return replace(header, in_parts=header.in_parts and fits)
    raise ImageFileError("truncated", "the JPEG 2000 file ends before its pixels")


def _codestream(source: FileBytes, start: int) -> ImageHeader:
    """Size, tiles and block sizes of a JPEG 2000 codestream (ITU-T T.800, annex A).

    A decoder creates objects for all blocks and precincts first: small ones need a hundred times the memory.
    """
    right, bottom, left, top, tile_width, tile_height, _, _, channels = struct.unpack(">8IH", source.at(start + 8, 34))
    size = (bottom - top, right - left)
    if min(size) <= 0 or not tile_width or not tile_height or not channels:
        raise ImageFileError("truncated", "the JPEG 2000 header is broken")
    tiles = -(-right // tile_width) * -(-bottom // tile_height)
    if channels > 4 or tiles > MAX_PARTS:
        raise ImageFileError("unsupported", f"a JPEG 2000 image with {channels} channels and {tiles:,} tiles")
    needed = channels * (4 + max(_block_bytes(source, start + 2), default=0)) + 3
    bits = source.at(start + 42, 1)[0] % 128 + 1
    colour = {1: "grey", 2: "alpha", 4: "alpha"}.get(channels, "rgb")
    factor = max(1.0, needed / BYTES_PER_PIXEL_OF_MEMORY)
    in_parts = left == top == 0 and bits in (8, 16)
    return ImageHeader("jpeg2000", size, 1, colour, bits, factor, in_parts=in_parts)


def _block_bytes(source: FileBytes, offset: int) -> Iterator[float]:
    """Bytes of memory per sample for the blocks that each header declares: the main one, and those of tiles."""
    tile_end = 0
    for _ in range(3 * MAX_PARTS):
        marker = source.at(offset, 12)
        if len(marker) < 4 or marker[0] != 0xFF or marker[1] == 0xD9:
            return
        if marker[1] == 0x93:  # pixels until the end of this part of a tile
            if not tile_end:
                return
            offset = tile_end
            continue
        length = int.from_bytes(marker[2:4], "big")
        if marker[1] == 0x90:
            part = int.from_bytes(marker[6:10], "big")
            tile_end = offset + part if part >= 14 else 0
        elif marker[1] == 0x52:
            content = source.at(offset + 4, min(length, 64))
            layers = int.from_bytes(content[2:4], "big")
            if layers > MAX_LAYERS:
                raise ImageFileError("unsupported", f"a JPEG 2000 image with {layers:,} layers")
            yield _bytes_per_sample(content[5:], content[0] & 1, layers)
        elif marker[1] == 0x53:
            content = source.at(offset + 4, min(length, 64))
            yield _bytes_per_sample(content[2:], content[1] & 1, MAX_LAYERS)
        offset += 2 + length
    raise ImageFileError("unsupported", "its JPEG 2000 header has too many parts")


def _bytes_per_sample(style: bytes, has_precincts: int, layers: int) -> float:
    """Of code blocks, of precincts, and of the table of their layers, as measured with OpenJPEG 2.5."""
    levels = style[0]
    needed = 500 / (1 << ((style[1] & 15) + (style[2] & 15) + 4))
    densities = [
        0.25 ** (levels - index) / (1 << ((byte & 15) + (byte >> 4)))
        for index, byte in enumerate(style[5 : 6 + levels] if has_precincts else b"")
    ]
    return needed + 2500 * sum(densities) + 2 * layers * (levels + 1) * max(densities, default=0)


def _sun(source: FileBytes) -> ImageHeader:
    _, width, height, bits, _, kind, _, map_bytes = struct.unpack(">8I", source.head[:32])
    needed = 32 + map_bytes + (width * bits + 15) // 16 * 2 * height
    if kind in (0, 1, 3):
        _check_length("Sun raster image", needed, source)
    return ImageHeader("sun", (height, width))


def _pnm(source: FileBytes) -> ImageHeader | None:
    """The PNM family, and its form for floating-point numbers; the pixels follow without compression."""
    found = _PNM.match(source.head)
    if found is None:
        return None
    kind, limit = found[1], found[4]
    size: Size = (int(found[3]), int(found[2]))
    channels = 3 if kind in b"36F" else 1
    samples = size[0] * size[1] * channels
    if kind == b"7":
        raise ImageFileError("unsupported", "a PAM image")
    if kind in b"fF":
        needed = samples * 4
    elif kind in b"14":
        needed = samples if kind == b"1" else size[0] * ((size[1] + 7) // 8)
    elif not limit or not limit.isdigit():
        raise ImageFileError("truncated", "the header of the PNM image is broken")
    elif kind in b"23":
        needed = 2 * samples - 1
    else:
        needed = samples * (2 if int(limit) > 255 else 1)
    _check_length("PNM image", needed + 7, source)
    colour = "rgb" if channels == 3 else "grey"
    if kind in b"fF":
        return ImageHeader("ppm", size, 1, colour, 32, memory_factor=2.0, as_stored=True)
    return ImageHeader("ppm", size, 1, colour, 16 if limit and len(limit) > 3 else 8)


def _check_length(what: str, needed: int, source: FileBytes) -> None:
    if needed > source.size:
        raise ImageFileError("truncated", f"the {what} needs {needed:,} bytes: {source.size:,} found")
