"""The files of a sharded state: one safetensors file for each process, in which every tensor has consecutive rows.

A process writes the rows of each tensor that it holds: its shard along the first dimension. The header says at which
row they start and how many the whole tensor has. Any number of processes can read them; the rows of all files must make
whole tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from codetr_cli.errors import CheckpointError
from codetr_cli.reading import parse_json
from codetr_cli.weights.safetensors_header import check_header

SUFFIX = ".safetensors"
ROWS = "rows"  # key of the header: name -> [first row, rows of the whole tensor]
MAX_FILES = 1 << 16
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """The rows of a tensor that one process holds.

    Attributes:
        rows: (n, ...) tensor.
        start: row of the whole tensor that comes first.
        total: rows of the whole tensor.
    """

    rows: Tensor
    start: int
    total: int


@dataclass(frozen=True)
class StoredRows:
    """Rows of a tensor in one file.

    Attributes:
        start: row of the whole tensor that comes first.
        count: number of rows.
        read: the rows from one to before another, counted from `start`.
    """

    start: int
    count: int
    read: Callable[[int, int], Tensor]


@dataclass(frozen=True)
class StoredTensor:
    """A whole tensor in the files.

    Attributes:
        parts: all of its rows, in their order.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[StoredRows, ...]

    def copy_into(self, target: Tensor, start: int) -> None:
        """Fills a tensor with the rows from `start` on."""
        for part in self.parts:
            first, last = max(part.start, start), min(part.start + part.count, start + len(target))
            if first < last:
                target[first - start : last - start].copy_(part.read(first - part.start, last - part.start))


def join_parts(name: str, shape: tuple[int, ...], dtype: torch.dtype, parts: Iterable[StoredRows]) -> StoredTensor:
    """A tensor of its rows in any order.

    Raises:
        CheckpointError: rows are missing, or more than once there.
    """
    ordered, end = tuple(sorted((part for part in parts if part.count), key=lambda part: part.start)), 0
    for part in ordered:
        if part.start != end:
            raise CheckpointError(
                f"rows {min(part.start, end)} to {max(part.start, end)} of {name} are missing or double"
            )
        end += part.count
    if end != shape[0]:
        raise CheckpointError(f"{name} has {end} of {shape[0]} rows")
    return StoredTensor(shape, dtype, ordered)


def write_shards(folder: Path, shards: Mapping[str, Shard], number: int, processes: int) -> None:
    """Writes what one of several processes holds, synced to disk.

    Args:
        folder: exists.
        shards: by name.
        number: of the process, from 0.
        processes: number of files that there will be.
    """
    rows = {name: [shard.start, shard.total] for name, shard in shards.items()}
    tensors = {name: shard.rows.contiguous() for name, shard in shards.items()}
    path = folder / _name(number, processes)
    save_file(tensors, path, {ROWS: json.dumps(rows, separators=(",", ":"))})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def is_written_here(folder: Path) -> bool:
    """Whether a folder has files of this form."""
    return any(path.suffix == SUFFIX for path in folder.iterdir())


def read_index(folder: Path, wanted: Container[str]) -> dict[str, StoredTensor]:
    """The tensors in a folder; their numbers are read later.

    Args:
        folder: with the files of all processes.
        wanted: names; others are not described.

    Raises:
        CheckpointError: a file is missing or damaged, or the rows do not make whole tensors.
    """
    names = {path.name for path in folder.iterdir() if path.suffix == SUFFIX}
    expected = [_name(number, len(names)) for number in range(min(len(names), MAX_FILES))]
    if names != set(expected):
        raise CheckpointError(f"it should have the files {expected[0]} to {expected[-1]}")
    found: dict[str, tuple[tuple[int, ...], torch.dtype, list[StoredRows]]] = {}
    for name in expected:
        for key, shape, dtype, rows in _read_header(folder / name, wanted):
            first = found.setdefault(key, (shape, dtype, []))
            if first[:2] != (shape, dtype):
                raise CheckpointError(f"{key} has another shape or type in {name} than in other files")
            first[2].append(rows)
    return {key: join_parts(key, *values) for key, values in found.items()}


def _name(number: int, processes: int) -> str:
    return f"{number:05d}-of-{processes:05d}{SUFFIX}"


def _read_header(path: Path, wanted: Container[str]) -> list[tuple[str, tuple[int, ...], torch.dtype, StoredRows]]:
    """Name, shape of the whole tensor, type and rows of each wanted tensor of a file."""
    try:
        check_header(path)
    except ValueError as error:
        raise CheckpointError(f"{path.name} is damaged: {error}") from error
    opened: Any = safe_open(path, framework="pt", device="cpu")  # maps the file as long as something refers to it
    rows = parse_json((opened.metadata() or {}).get(ROWS, "null"))
    names = list(opened.keys())
    if not isinstance(rows, dict) or sorted(rows) != sorted(names):
        raise CheckpointError(f"{path.name} does not say which rows it has")
    return [_described(path.name, name, opened.get_slice(name), rows[name]) for name in names if name in wanted]


def _described(file: str, name: str, stored: Any, rows: Any) -> tuple[str, tuple[int, ...], torch.dtype, StoredRows]:
    shape, dtype = stored.get_shape(), DTYPES.get(stored.get_dtype())
    if not isinstance(rows, list) or [type(number) for number in rows] != [int, int] or not shape or dtype is None:
        raise CheckpointError(f"{file} has a wrong description of {name}")
    start, total = rows
    if not 0 <= start <= start + shape[0] <= total:
        raise CheckpointError(f"{file} has rows of {name} that do not exist")
    return name, (total, *shape[1:]), dtype, StoredRows(start, shape[0], lambda first, last: stored[first:last])
