"""The inside of part files: one part after the other, each with a header that has its units, size and checksum.

A file of many parts is read part by part; the headers say where each is, so that their contents need not be read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any

from codetr_cli.reading import open_file, parse_json

MAX_HEADER_BYTES = 1 << 20
MAX_CONTENT_BYTES = 1 << 30  # of the results of seconds
HEADER = {"units": list, "failed": bool, "inputs": str, "size": int, "checksum": int}


@dataclass(frozen=True)
class Part:
    """Results of some units of work.

    Attributes:
        units: numbers of the units, ascending.
        content: the results, as the command encodes them.
        failed: these units failed, e.g. their images cannot be read; a command that continues tries them again.
        inputs: state of their input files; filled in when the part is written.
    """

    units: list[int]
    content: bytes
    failed: bool = False
    inputs: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a part is in its file.

    Attributes:
        units: of the part.
        start: of its header, in bytes.
        end: of its content.
    """

    units: list[int]
    start: int
    end: int


def encode_part(part: Part) -> bytes:
    """A part as bytes of a file."""
    header = {
        "units": part.units,
        "failed": part.failed,
        "inputs": part.inputs,
        "size": len(part.content),
        "checksum": zlib.crc32(part.content),
    }
    return json.dumps(header).encode() + b"\n" + part.content


def frames(file: BufferedReader) -> Iterator[Frame]:
    """Where the parts of an open file are; their contents are not read.

    Raises:
        ValueError: what follows is nothing that this module has written, or is not complete.
    """
    size, start = os.fstat(file.fileno()).st_size, 0
    while start < size or not start:
        file.seek(start)
        header, length = _read_header(file)
        end = start + length + header["size"]
        if end > size:
            raise ValueError("it has another size than was written")
        yield Frame(header["units"], start, end)
        start = end


def read_part(file: BufferedReader, start: int) -> Part:
    """The part at an offset of an open file.

    Raises:
        ValueError: it is damaged.
    """
    file.seek(start)
    header, _ = _read_header(file)
    if header["size"] > os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError("it has another size than was written")
    content = file.read(header["size"])
    if header["checksum"] != zlib.crc32(content):
        raise ValueError("it has other content than was written")
    return Part(header["units"], content, header["failed"], header["inputs"])


def read_part_at(path: Path, start: int) -> Part:
    """As `read_part`, of a file that is not open.

    Raises:
        ValueError: it is damaged.
        OSError: the file cannot be read, or is not a regular file.
    """
    with open_file(path) as file:
        return read_part(file, start)


def _read_header(file: BufferedReader) -> tuple[dict[str, Any], int]:
    """The header at the position of an open file, and its length in bytes."""
    line = file.readline(MAX_HEADER_BYTES)
    header = parse_json(line)
    if not (isinstance(header, dict) and set(header) == set(HEADER)):
        raise ValueError("it has no whole header")
    if not all(type(header[name]) is kind for name, kind in HEADER.items()):
        raise ValueError("its header has values of other types")
    if not 0 <= header["size"] <= MAX_CONTENT_BYTES:
        raise ValueError("it has another size than was written")
    units = header["units"]
    if not all(type(unit) is int and unit >= 0 for unit in units) or any(a >= b for a, b in pairwise(units)):
        raise ValueError("it has no ascending numbers of units")
    return header, len(line)
