"""Reads the header of a safetensors file within limits, before the library opens the file.

The file has eight bytes with the length of the header, the header as JSON, and the bytes of the tensors without gaps.
The library checks the same again, but needs memory and time for any header, and waits for ever at a named pipe.
"""

from __future__ import annotations

import math
import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

from codetr_cli.reading import open_file, parse_json

MAX_HEADER_BYTES = 8 << 20  # of the largest honest ones: a few hundred KB
MAX_ENTRIES, MAX_NAME, MAX_DIMENSIONS = 20_000, 1000, 16  # the library needs up to 80 us for each entry
MAX_NUMBER = 2**60  # of the elements of a tensor, also where a dimension is 0
LENGTH = struct.Struct("<Q")
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
METADATA = "__metadata__"


def check_header(path: Path) -> os.stat_result:
    """Checks that a file is a regular one with a complete header, and that its tensors are those bytes that follow.

    Returns:
        the state of the file that was checked.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: what is wrong with its content.
    """
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        start = file.read(LENGTH.size)
        if len(start) < LENGTH.size:
            raise ValueError("it is too short for a header")
        (length,) = LENGTH.unpack(start)
        left = status.st_size - LENGTH.size
        if length > left:
            raise ValueError("its header is longer than the file")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}")
        text = file.read(length)
    header = parse_json(text, unique_keys=True)
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__} instead of a table of entries")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not a table of texts")
    if len(header) > MAX_ENTRIES:
        raise ValueError(f"it has {len(header):,} entries; the limit is {MAX_ENTRIES:,}")
    places = sorted(_check_entry(name, entry) for name, entry in header.items())
    ends = [(0, 0), *places]
    if any(begin != before for (_, before), (begin, _) in pairwise(ends)) or ends[-1][1] != left - length:
        raise ValueError("its entries are not the bytes that follow the header")
    return status


def _check_entry(name: str, entry: Any) -> tuple[int, int]:
    """The first and the last byte, exclusive, of an entry's tensor after the header."""
    shown = f"the entry {name[:100]!r}"
    if len(name) > MAX_NAME:
        raise ValueError(f"{shown} has a name of {len(name):,} characters; the limit is {MAX_NAME:,}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"{shown} has the unknown dtype {str(dtype)[:20]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > MAX_NUMBER:
        raise ValueError(f"{shown} has no possible shape")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{shown} has other bytes than its shape needs")
    return offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_NUMBER for item in value)
