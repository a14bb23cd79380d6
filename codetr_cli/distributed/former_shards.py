"""Reads sharded states in the form that earlier versions wrote: a folder of torch.distributed.checkpoint.

Its `.metadata` is a pickle with objects of that package, and each part of a tensor is a file of `torch.save` within a
`.distcp` file. Here the pickle gives records and no objects; what they say is compared with the files.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_cli.distributed.shard_files import StoredRows, StoredTensor, join_parts
from codetr_cli.errors import CheckpointError
from codetr_cli.reading import check_regular, open_file, read_bytes
from codetr_cli.weights import torch_files
from codetr_cli.weights.torch_vocabulary import DTYPES
from codetr_cli.weights.unpickler import Budget, Record, RecordKind, UnpickledStub, Unpickler, Vocabulary

METADATA = ".metadata"
PART = re.compile(r"\w{1,64}\.distcp")
# A part has 150 bytes of metadata and a thousand beside its numbers; the largest network in 64 processes has 21 MB.
MAX_METADATA_BYTES, BASE_METADATA_BYTES, METADATA_SHARE = 24 << 20, 1 << 20, 4
# Of the budget for each byte of it, beside what any pickle may need, and in all: the largest network needs 2.1 GB.
METADATA_COPIES, MAX_METADATA_COPIES = 64, 1 << 30
MAX_OVERHEAD = 1 << 16  # bytes of a part beside its numbers
PART_MEMORY = 1 << 17  # bytes that its pickle may need
MAX_DIMENSIONS = 8


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    if not isinstance(numbers, tuple) or len(numbers) > MAX_DIMENSIONS:
        raise CheckpointError("a tensor has too many dimensions")
    return numbers


PACKAGE = "torch.distributed.checkpoint"
RECORDS = {
    f"{PACKAGE}.{module}.{name}": RecordKind(name)
    for module, names in {
        "metadata": (
            *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex"),
            *("StorageMeta", "BytesStorageMetadata"),
        ),
        "filesystem": ("_StorageInfo",),
    }.items()
    for name in names
}
VOCABULARY = Vocabulary(
    {
        **RECORDS,
        f"{PACKAGE}.metadata._MEM_FORMAT_ENCODING": UnpickledStub,
        "torch.serialization._get_layout": UnpickledStub,
        "torch.Size": _size,
        **{str(dtype): dtype for dtype in DTYPES},
        **{
            f"{module}.{system}Path": UnpickledStub
            for module in ("pathlib", "pathlib._local")
            for system in ("Posix", "Windows")
        },
    }
)


def read_index(folder: Path, wanted: Container[str]) -> dict[str, StoredTensor]:
    """The tensors in a folder; their numbers are read later.

    Args:
        folder: with the metadata and the files of all processes.
        wanted: names; others are not described.

    Raises:
        CheckpointError: what the metadata says does not fit the files, or its parts do not make whole tensors.
        Exception: anything else; hostile or damaged metadata can make the reader fail in any way.
    """
    parts = sum(path.stat().st_size for path in folder.iterdir() if PART.fullmatch(path.name))
    content = read_bytes(folder / METADATA, min(MAX_METADATA_BYTES, BASE_METADATA_BYTES + parts // METADATA_SHARE))
    budget = Budget(min(METADATA_COPIES * len(content), MAX_METADATA_COPIES))
    metadata = _attributes(Unpickler(io.BytesIO(content), VOCABULARY, budget).load(), "Metadata")
    places = _places(folder, metadata["storage_data"])
    tensors = metadata["state_dict_metadata"]
    return {_text(name): _tensor(folder, name, value, places) for name, value in tensors.items() if name in wanted}


def _tensor(folder: Path, name: str, value: Any, places: dict[tuple[str, tuple[int, ...]], Any]) -> StoredTensor:
    described = _attributes(value, "TensorStorageMetadata")
    dtype = _state(described["properties"], "TensorProperties")[0]
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{name} has no type of numbers")
    shape = _numbers(described["size"])
    parts = []
    for chunk in described["chunks"]:
        at = _attributes(chunk, "ChunkStorageMetadata")
        offsets, sizes = _numbers(at["offsets"]), _numbers(at["sizes"])
        if len(offsets) != len(shape) or any(offsets[1:]) or sizes[1:] != shape[1:] or len(sizes) != len(shape):
            raise CheckpointError(f"{name} is not divided by rows")
        file, start, length = places[name, offsets]
        if length > math.prod(sizes) * dtype.itemsize + MAX_OVERHEAD:
            raise CheckpointError(f"a part of {name} has more bytes than numbers")
        read = partial(_read_part, folder / file, start, length, sizes, dtype)
        rows = (offsets or (0,))[0], (sizes or (1,))[0]
        parts.append(StoredRows(*rows, read))
    return join_parts(name, shape or (1,), dtype, parts)


def _read_part(
    path: Path, start: int, length: int, shape: tuple[int, ...], dtype: torch.dtype, first: int, last: int
) -> Tensor:
    """Rows of a part."""
    with open_file(path) as file:
        file.seek(start)
        found = torch_files.load(io.BytesIO(file.read(length)), base=PART_MEMORY)
    if not isinstance(found, Tensor) or tuple(found.shape) != shape or found.dtype != dtype:
        raise CheckpointError(f"{path.name} has another tensor than its metadata says")
    return found.view(1) if found.dim() == 0 else found[first:last]


def _places(folder: Path, found: dict[Any, Any]) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    """File, first byte and number of bytes of every part, by name of the tensor and offsets."""
    places: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]] = {}
    for key, value in found.items():
        index, info = _attributes(key, "MetadataIndex"), _attributes(value, "_StorageInfo")
        name, offsets = _text(index["fqn"]), _numbers(index["offset"])
        if (name, offsets) in places:
            raise CheckpointError(f"a part of {name} is there twice")
        file = _text(info["relative_path"])
        if not PART.fullmatch(file) or info.get("transform_descriptors"):
            raise CheckpointError(f"a part of {name} is not in a .distcp file of the folder")
        places[name, offsets] = file, *_numbers((info["offset"], info["length"]))  # type: ignore[assignment]
    _check_files(folder, sorted(places.values()))
    return places


def _check_files(folder: Path, places: list[tuple[str, int, int]]) -> None:
    """Compares places, sorted, with the sizes of the files, and refuses those that overlap."""
    before, end = "", 0
    sizes = {file: check_regular(folder / file).st_size for file in {place[0] for place in places}}
    for file, start, length in places:
        if (file == before and start < end) or start + length > sizes[file]:
            raise CheckpointError(f"the parts in {file} overlap or exceed it")
        before, end = file, start + length


def _attributes(value: Any, kind: str) -> dict[Any, Any]:
    state = _state(value, kind)
    if not isinstance(state, dict):
        raise CheckpointError(f"its metadata has a wrong {kind}")
    return state


def _state(value: Any, kind: str) -> Any:
    if not isinstance(value, Record) or value.kind != kind:
        raise CheckpointError(f"its metadata lacks a {kind}")
    return value.state


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(number) is int and 0 <= number < 1 << 62 for number in values):
        raise CheckpointError("its metadata has impossible numbers")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise CheckpointError("its metadata has a name that is no text")
    return value
