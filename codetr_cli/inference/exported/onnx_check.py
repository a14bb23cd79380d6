"""What an ONNX file holds, read before any library opens it: its metadata, and which other files it names.

ONNX is protobuf: messages of numbered fields, which are skipped by their length here, so that weights are never read.
A file of unknown origin must not make a library read files elsewhere, or allocate what the file does not have.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from codetr_cli.errors import CheckpointError
from codetr_cli.inference.exported.metadata import MAX_METADATA, METADATA_KEY
from codetr_cli.reading import check_regular, open_file

MAX_FIELDS = 5_000_000
"""More than ten times those of the largest network; a file with more takes long to read."""
MAX_DEPTH = 16
"""Graphs within graphs."""
PACKING = 8
"""Bytes that a value may have in memory for each byte in the file: zeros of an int64 take one."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}
"""Of the data types of tensors; the others have a byte at most."""

Part = tuple[int, int]
"""Start and end of a field's bytes."""


@dataclass(frozen=True)
class OnnxSummary:
    """What a file holds.

    Attributes:
        metadata: the text of codetr's metadata; None if there is none.
        data_files: names of the files with weights, beside this one.
    """

    metadata: str | None
    data_files: tuple[str, ...]


def check_onnx(path: Path) -> OnnxSummary:
    """Reads the structure of a file.

    Raises:
        CheckpointError: it is missing or no ONNX file, its weights are in files elsewhere, or it declares more weights
            than it has.
    """
    try:
        with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _Scan(content)
            found.read_model()
            size = len(content)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}. Check the path.") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not an ONNX file that codetr can use ({error}): it is truncated, damaged, or of another type. "
            "Copy or export it again."
        ) from error
    names = tuple(sorted(found.locations))
    held = size + sum(_data_file(path, name) for name in names)
    if found.declared > held * PACKING:
        raise CheckpointError(
            f"{path} declares weights of {found.declared:,} bytes and has {held:,}: it is damaged. Export it again."
        )
    return OnnxSummary(found.metadata, names)


def _data_file(path: Path, name: str) -> int:
    """The size of a file with weights.

    Raises:
        CheckpointError: it is not a file in the folder of the model, or is missing.
    """
    if not name or name in (".", "..") or any(character in name for character in "/\\:\0"):
        raise CheckpointError(
            f"{path} names weights in another folder ({name[:200]!r}), which codetr does not write: a file of unknown "
            "origin could read any file so. Export it again, with the weights in the same folder."
        )
    place = path.parent / name
    try:
        size = check_regular(place).st_size
    except OSError as error:
        raise CheckpointError(
            f"{path} has its weights in {place}, which cannot be read: {error.strerror or error}. Copy both files."
        ) from error
    if place.is_symlink():
        raise CheckpointError(f"{path} has its weights in {place}, which is a link: copy the file itself.")
    return size


@dataclass
class _Scan:
    """Reads a model; positions are those of the file. Methods raise ValueError for what is not ONNX."""

    content: mmap.mmap
    metadata: str | None = None
    locations: set[str] = field(default_factory=set)
    declared: int = 0
    fields: int = 0

    def read_model(self) -> None:
        graphs = 0
        for number, part in self._parts((0, len(self.content))):
            if number == 7:
                graphs += 1
                self._read_graph(part, 0)
            elif number == 14:
                self._read_property(part)
            elif number == 25:  # functions
                for inner, node in self._parts(part):
                    if inner == 7:
                        self._read_node(node, 0)
        if graphs != 1:
            raise ValueError(f"it has {graphs} graphs")

    def _read_property(self, part: Part) -> None:
        entry = dict(self._parts(part))
        if 1 in entry and self._text(entry[1], limit=100) == METADATA_KEY and 2 in entry:
            self.metadata = self._text(entry[2], limit=4 * MAX_METADATA)

    def _read_graph(self, part: Part, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError("its graphs are nested too deeply")
        for number, inner in self._parts(part):
            if number == 1:
                self._read_node(inner, depth)
            elif number == 5:
                self._read_tensor(inner)
            elif number == 15:
                self._read_sparse(inner)

    def _read_node(self, part: Part, depth: int) -> None:
        for number, attribute in self._parts(part):
            if number != 5:
                continue
            for kind, inner in self._parts(attribute):
                if kind in (5, 10):
                    self._read_tensor(inner)
                elif kind in (6, 11):
                    self._read_graph(inner, depth + 1)
                elif kind in (22, 23):
                    self._read_sparse(inner)

    def _read_sparse(self, part: Part) -> None:
        for number, inner in self._parts(part):
            if number in (1, 2):
                self._read_tensor(inner)

    def _read_tensor(self, part: Part) -> None:
        elements, data_type = 1, 1
        for number, kind, value in self._fields(part):
            if number == 1 and kind == VARINT and isinstance(value, int):
                elements *= value
            elif number == 1 and isinstance(value, tuple):
                for size in self._packed(value):
                    elements *= size
            elif number == 2 and isinstance(value, int):
                data_type = value
            elif number == 13 and isinstance(value, tuple):
                entry = dict(self._parts(value))
                if 1 in entry and self._text(entry[1], limit=100) == "location":
                    self.locations.add(self._text(entry[2], limit=4096) if 2 in entry else "")
        if len(self.locations) > 1000:
            raise ValueError("its weights are in more than a thousand files")
        self.declared += elements * ITEM_BYTES.get(data_type, 1)
        if self.declared >= 2**63:
            raise ValueError("a tensor has an impossible size")

    def _parts(self, part: Part) -> Iterator[tuple[int, Part]]:
        """Numbers and places of the fields that are messages, texts or bytes."""
        for number, _, value in self._fields(part):
            if isinstance(value, tuple):
                yield number, value

    def _fields(self, part: Part) -> Iterator[tuple[int, int, int | Part]]:
        """(number, kind, value or place) of each field."""
        position, end = part
        while position < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            tag, position = self._varint(position, end)
            number, kind = tag >> 3, tag & 7
            if kind == VARINT:
                value, position = self._varint(position, end)
                yield number, kind, value
                continue
            if kind == BYTES:
                length, position = self._varint(position, end)
            elif kind in (FIXED32, FIXED64):
                length = 4 if kind == FIXED32 else 8
            else:
                raise ValueError("it is not protobuf")
            if number == 0 or length > end - position:
                raise ValueError("a field is longer than the file")
            yield number, kind, (position, position + length)
            position += length

    def _packed(self, part: Part) -> Iterator[int]:
        position, end = part
        if end - position > 1000:
            raise ValueError("a tensor has too many dimensions")
        while position < end:
            value, position = self._varint(position, end)
            yield value

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 70:
            byte = self.content[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, position
            shift += 7
        raise ValueError("it ends within a number")

    def _text(self, part: Part, *, limit: int) -> str:
        if part[1] - part[0] > limit:
            raise ValueError(f"a text has more than {limit:,} bytes")
        return self.content[part[0] : part[1]].decode("utf-8")
