"""The directory of tags of a TIFF file, which is also the content of an EXIF block (TIFF 6.0; BigTIFF).

Only the numbers that are needed are read, each with its own limit. The sum of what all tags declare is compared with
the size of the file before a decoder reads them: tags that overlap make gigabytes of a few kilobytes.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from operator import add

from codetr_cli.images.image_header import FileBytes, ImageFileError, ImageHeader

WIDTH, HEIGHT, BITS, COMPRESSION, COLOUR, ORIENTATION, CHANNELS = 256, 257, 258, 259, 262, 274, 277
PLANES, COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 284, 320, 338, 339
STRIP_OFFSETS, STRIP_BYTES, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 273, 279, 322, 323, 324, 325
_WANTED = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, COLOUR, ORIENTATION, CHANNELS, SAMPLE_FORMAT, STRIP_OFFSETS, STRIP_BYTES}
    | {PLANES, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES}
)
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, INKS, DIFFERENCES = 0, 1, 2, 5, 6
"""Of `COLOUR`."""
JPEG = 7
"""Of `COMPRESSION`."""
SEPARATE = 2
"""Of `PLANES`: channel after channel."""
TARGET_PRINTER = 337
"""A text that means nothing for pixels; decoders warn about tags that they do not know."""
COLOURS = {0: "grey", 1: "grey", 3: "palette", INKS: "cmyk"}
IN_PARTS = frozenset((WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, 3, INKS, DIFFERENCES))
"""Of `COLOUR`: grey, RGB, palettes, inks, and brightness with two colour differences."""
UNSPECIFIED = 0
"""Of `EXTRA_SAMPLES`."""
FLOATING = 3
"""Of `SAMPLE_FORMAT`."""

MAX_TAGS = 4096
"""Of a TIFF; files have a few dozen, libtiff rejects more."""
MAX_STRIPS = 200_000
"""Strips or tiles; each takes some microseconds, however small."""
SLACK_BYTES = 1 << 20
"""Tags may declare this much more than the file has: a few share their values."""

_OF_PLANES = frozenset((STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES))
"""Tags whose numbers are those of one plane after the other."""
_LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class Directory:
    """The first directory of a TIFF or an EXIF block.

    Args:
        at: returns `count` bytes from an offset, fewer where the block ends.
        size: of the block in bytes.

    Attributes:
        tags: number of all tags.
        declared_bytes: sum of the lengths of their values.

    Raises:
        struct.error: it is cut short.
    """

    def __init__(self, at: Callable[[int, int], bytes], size: int) -> None:
        self._at = at
        self._mark = "<" if at(0, 2) == b"II" else ">"
        big = struct.unpack(self._mark + "H", at(2, 2))[0] == 43
        start = self._number("Q", at(8, 8)) if big else self._number("I", at(4, 4))
        self.tags = self._number("Q", at(start, 8)) if big else self._number("H", at(start, 2))
        self._inline = 8 if big else 4
        entry = struct.Struct(self._mark + ("HHQ8s" if big else "HHI4s"))
        first = start + (8 if big else 2)
        self.tags = min(self.tags, 65_536, max(0, size - first) // entry.size)
        self.declared_bytes = 0
        self._wanted: dict[int, tuple[str, int, bytes]] = {}
        for tag, kind, number, value in entry.iter_unpack(at(first, self.tags * entry.size)):
            self.declared_bytes += min(number * _BYTES.get(kind, 1), size)
            if tag in _WANTED and kind in _LETTERS and number:
                self._wanted.setdefault(tag, (_LETTERS[kind], number, value))  # as libtiff does

    def first(self, tag: int, default: int) -> int:
        """The first number of a tag."""
        numbers = self.numbers(tag, 1)
        return numbers[0] if numbers else default

    def numbers(self, tag: int, limit: int = MAX_STRIPS) -> array[int]:
        """The first `limit` numbers of a tag; fewer where there are not so many or the block ends."""
        if tag not in self._wanted:
            return array("Q")
        letter, number, value = self._wanted[tag]
        size = struct.calcsize("=" + letter)
        length = min(number, limit) * size
        if number * size > self._inline:
            value = self._at(self._number("Q" if self._inline == 8 else "I", value), length)
        numbers = array(letter, value[: min(length, len(value)) // size * size])
        if (self._mark == "<") != (sys.byteorder == "little"):
            numbers.byteswap()
        return numbers

    def count(self, tag: int) -> int:
        """How many numbers a tag declares."""
        return self._wanted[tag][1] if tag in self._wanted else 0

    def _number(self, letter: str, data: bytes) -> int:
        number: int = struct.unpack(self._mark + letter, data)[0]
        return number


def read_tiff(source: FileBytes) -> ImageHeader:
    """The header of a TIFF file.

    Raises:
        ImageFileError: it is truncated, or OpenCV cannot read it.
        struct.error: its directory is cut short.
    """
    tags = Directory(source.at, source.size)
    if tags.tags > MAX_TAGS or tags.declared_bytes > source.size + SLACK_BYTES:
        raise ImageFileError(
            "unsupported",
            f"the TIFF's {tags.tags:,} tags declare {tags.declared_bytes:,} bytes, the file has {source.size:,}",
        )
    height, width, bits = tags.first(HEIGHT, 0), tags.first(WIDTH, 0), tags.first(BITS, 1)
    is_float = tags.first(SAMPLE_FORMAT, 1) == FLOATING
    if bits > 32 or (bits > 16) != is_float:
        kind = "floating-point numbers of " if is_float else ""
        raise ImageFileError("unsupported", f"a TIFF with {kind}{bits} bits per sample; up to 16, or 32 of floats")
    ends = [
        max(map(add, tags.numbers(offsets), tags.numbers(lengths)), default=0)
        for offsets, lengths in ((STRIP_OFFSETS, STRIP_BYTES), (TILE_OFFSETS, TILE_BYTES))
    ]
    if not any(ends) or max(ends) > source.size:
        raise ImageFileError("truncated", "the TIFF's pixels are beyond the end of the file")
    tile_height, tile_width = tags.first(TILE_HEIGHT, 0), tags.first(TILE_WIDTH, 0)
    if tile_height * tile_width > 4 * height * width + (4096 << 12):
        raise ImageFileError(
            "unsupported", f"a TIFF with tiles of {tile_width} x {tile_height} pixels for {width} x {height}"
        )
    channels, strips = tags.first(CHANNELS, 1), max(tags.count(STRIP_OFFSETS), tags.count(TILE_OFFSETS))
    if channels > 16 or strips > MAX_STRIPS:
        raise ImageFileError("unsupported", f"a TIFF with {channels} channels and {strips:,} strips or tiles")
    photometric, marked_grey = tags.first(COLOUR, RGB), False
    if photometric == BLACK_IS_ZERO and channels > 2:  # how GDAL stores three bands of 16 bits
        photometric, marked_grey = RGB, True
    colour = COLOURS.get(photometric, "rgb")
    if photometric == RGB and channels == 4:
        colour = "alpha"
    # OpenCV darkens by alpha, rounds 16 bits up, and takes floats for 0 to 255.
    as_stored = (
        photometric in (BLACK_IS_ZERO, RGB) and channels <= 4 and (bits in (16, 32) or channels == 4 or marked_grey)
    )
    if is_float and not as_stored:
        raise ImageFileError("unsupported", "a TIFF of floating-point numbers that is neither grey nor RGB")
    memory = max(1.0, (channels * max(bits, 8) / 8 + 3) / 12)
    in_parts = photometric in IN_PARTS and channels <= 4 and tags.first(SAMPLE_FORMAT, 1) in (1, FLOATING)
    in_parts = in_parts and bits in ((1, 2, 4, 8) if photometric == WHITE_IS_ZERO else (1, 2, 4, 8, 16, 32))
    orientation = _orientation(tags)
    if photometric in (INKS, DIFFERENCES) and tags.first(COMPRESSION, 1) != JPEG:
        in_parts = in_parts and orientation == 1  # GDAL has libtiff convert these, which turns each strip or tile
    planes = channels if as_stored and tags.first(PLANES, 1) == SEPARATE else 1
    return ImageHeader("tiff", (height, width), orientation, colour, bits, memory, as_stored, in_parts, planes)


def colour_table(source: FileBytes, header: ImageHeader) -> list[tuple[int, int, int]]:
    """The 8-bit RGB colours of the numbers in a TIFF: its palette, or grey with few bits or white as zero.

    Empty where the numbers are colours themselves.
    """
    tags = Directory(source.at, source.size)
    if header.colour == "palette":
        numbers = tags.numbers(COLOUR_MAP)
        third = len(numbers) // 3
        shift = 8 if max(numbers, default=0) > 255 else 0  # some writers give 8 bits, which libtiff takes as such
        red, green, blue = (numbers[at : at + third] for at in (0, third, 2 * third))
        return [(r >> shift, g >> shift, b >> shift) for r, g, b in zip(red, green, blue, strict=True)]
    inverted = tags.first(COLOUR, RGB) == WHITE_IS_ZERO
    if header.colour != "grey" or header.bits > 8 or (header.bits == 8 and not inverted):
        return []
    most = (1 << header.bits) - 1
    greys = [255 * (most - number if inverted else number) // most for number in range(most + 1)]
    return [(grey, grey, grey) for grey in greys]


def for_opencv(content: bytes, header: ImageHeader) -> bytes:
    """A TIFF file whose pixels OpenCV returns as they are stored.

    It turns images itself, but mirrors tiles one by one. Of an image that is decoded as stored: a fourth channel that
    is marked as alpha makes libtiff darken the other three, and three that are marked as grey make OpenCV return the
    grey of them.
    """
    content = _with_number(content, ORIENTATION, 1)
    if header.as_stored and header.colour in ("rgb", "alpha"):
        content = _with_number(_with_number(content, EXTRA_SAMPLES, UNSPECIFIED), COLOUR, RGB)
    return content


def plane(content: bytes, number: int, planes: int) -> bytes:
    """A TIFF file of one channel: one of the planes of a file that has channel after channel.

    OpenCV reads 16 bits and floats as if the channels of a pixel followed one another, whatever the file says.
    """
    mark, big, entries = _entries(content)
    word, inline, value_at = ("Q", 8, 12) if big else ("I", 4, 8)
    changed = bytearray(content)
    for entry in entries:
        tag, kind = struct.unpack_from(mark + "HH", content, entry)
        place = entry + value_at
        if tag in (CHANNELS, COLOUR, PLANES):
            struct.pack_into(mark + "H", changed, place, 1)  # `BLACK_IS_ZERO`, all channels together
        elif tag == EXTRA_SAMPLES:
            struct.pack_into(mark + "HH" + word, changed, entry, TARGET_PRINTER, 2, 1)
            changed[place] = 0
        elif tag in _OF_PLANES:
            count, size = _number_at(content, mark, big, entry + 4), _BYTES.get(kind, 1)
            own = count // planes * size
            start = place if count * size <= inline else _number_at(content, mark, big, place)
            start = min(start + number * own, len(content))
            value = content[start : start + own] if own <= inline else struct.pack(mark + word, start)
            changed[place : place + inline] = value.ljust(inline, b"\0")
            struct.pack_into(mark + word, changed, entry + 4, count // planes)
    return bytes(changed)


def _number_at(content: bytes, mark: str, big: bool, place: int) -> int:
    return int(struct.unpack_from(mark + ("Q" if big else "I"), content, place)[0])


def _entries(content: bytes) -> tuple[str, bool, range]:
    """The mark of the byte order of a TIFF file, whether it is a BigTIFF, and where entries of its directory are."""
    mark, big = "<" if content[:2] == b"II" else ">", content[2:4] in (b"+\0", b"\0+")
    start = _number_at(content, mark, big, 8 if big else 4)
    number = int(struct.unpack_from(mark + ("Q" if big else "H"), content, start)[0])
    first, size = (start + 8, 20) if big else (start + 2, 12)
    return mark, big, range(first, first + min(number, (len(content) - first) // size) * size, size)


def _with_number(content: bytes, wanted: int, value: int) -> bytes:
    """A TIFF file with another first number of a tag of 16-bit numbers, if it has this tag."""
    mark, big, entries = _entries(content)
    for entry in entries:
        tag, kind = struct.unpack_from(mark + "HH", content, entry)
        at = entry + (12 if big else 8)
        if tag == wanted and kind == 3 and struct.unpack_from(mark + "H", content, at)[0] != value:
            return content[:at] + struct.pack(mark + "H", value) + content[at + 2 :]
    return content


def exif_orientation(source: FileBytes, offset: int, length: int) -> int | None:
    """The orientation 1..8 of an EXIF block (a small TIFF), 1 if it has none; None for a block that is broken."""
    length = min(length, source.size - offset)

    def at(start: int, count: int) -> bytes:
        return source.at(offset + start, min(count, length - start)) if start < length else b""

    if at(0, 2) not in (b"II", b"MM"):
        return None
    try:
        return _orientation(Directory(at, length))
    except struct.error:
        return None


def _orientation(tags: Directory) -> int:
    value = tags.first(ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1
