"""Reads the files of `torch.save` without executing anything from them, and without torch's own reader.

`torch.load(weights_only=True)` of torch before 2.10 can be made to corrupt memory (CVE-2026-24747): it applies item
assignments to any object and trusts the declared sizes of storages. Here `unpickler` builds records of tensors, and
tensors are built once their sizes were compared with the file.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from codetr_cli.reading import open_file
from codetr_cli.weights.torch_vocabulary import MAX_DIMENSIONS, VOCABULARY, StorageRecord, StorageType, TensorRecord
from codetr_cli.weights.unpickler import BASE_BYTES, PLAIN, Budget, LimitError, UnpickledStub, Unpickler
from codetr_cli.weights.zip_files import ZIP_MAGIC, member_start, open_zip

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
READ_BYTES = 1 << 20
MAX_NUMBER = 2**63 - 1  # of a tensor, as in torch
MAX_PICKLE_BYTES = 1 << 31  # the log history of 200,000 steps has 400 MB
MAX_ITEMS = 1 << 24  # of all containers, with those that are in several counted each time
MAX_DEPTH = 100  # of containers
MAX_CLAIM = 1 << 20  # bytes of a tensor that has more numbers than its storage
MAPPED_ALIGNMENT = 16  # bytes; a tensor at another offset of the file is copied
INCOMPLETE = object()


def load(source: Path | IO[bytes], *, mapped: bool = False, base: int = BASE_BYTES) -> Any:
    """Reads what `torch.save` wrote, in the zip or the legacy format.

    Args:
        source: a file or a seekable stream.
        mapped: map the tensors of an uncompressed zip file from it rather than copy them; `source` is a path.
        base: memory that its pickles may need whatever the size of the file is.

    Returns:
        dicts, lists, tuples, numbers, text and CPU tensors that need no gradient.

    Raises:
        UnpicklingError: a global or an operation that weights do not need; the message has "GLOBAL name".
        Exception: anything else; a hostile or damaged file can make the reader fail in any way.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_file(source)) if isinstance(source, Path) else source
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if not is_zip:
            return _load_legacy(file, Budget(min(size, MAX_PICKLE_BYTES), base))
        archive = stack.enter_context(open_zip(file))
        return _ZipStorages(archive, file, source if mapped and isinstance(source, Path) else None).load(base)


class _TorchUnpickler(Unpickler):
    """An unpickler of records of tensors and storages.

    Args:
        file: at the start of a pickle.
        budget: of the file.
    """

    def __init__(self, file: IO[bytes], budget: Budget) -> None:
        super().__init__(file, VOCABULARY, budget)
        self.dtypes: dict[str, torch.dtype] = {}  # of storages, which the bytes of legacy files do not have

    def persistent_load(self, pid: Any) -> StorageRecord:
        """The record of a storage."""
        if type(pid) is not tuple or len(pid) not in (5, 6):  # before it is copied; the legacy format has a view, too
            raise pickle.UnpicklingError("an unknown kind of storage")
        kind, storage, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(storage, StorageType) or type(numel) is not int or any(view):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if type(key) not in (str, int):
            raise pickle.UnpicklingError("an unknown kind of storage")
        self.budget.spend(TensorRecord.memory_bytes)
        record = StorageRecord(storage.dtype, str(key), numel)
        self.dtypes.setdefault(record.key, record.dtype)
        return record


# -------------------------------------------------------------------------------------------------------------- tensors


class _Storages:
    """Turns records of tensors into tensors; subclasses read the storages."""

    def __init__(self) -> None:
        self._storages: dict[str, Tensor] = {}  # bytes by key
        # By id of what the pickle built, which lives as long as this object: the copy, and how many items it has.
        self._resolved: dict[int, Any] = {}
        self._counts: dict[int, int] = {}
        self._count = self._depth = 0

    def storage(self, record: StorageRecord) -> Tensor:
        """The bytes (N,) uint8 of a storage; its declared size is compared by the caller."""
        raise NotImplementedError

    def resolve(self, value: Any) -> Any:
        """A copy of a structure in which the records are tensors, and what weights do not need is a stub.

        Refuses what is nested too deeply, or would have too many items when its shared parts were written out.
        """
        if not isinstance(value, (dict, list, tuple, set, frozenset, TensorRecord)):
            self._count += 1
            return value if isinstance(value, PLAIN) else UnpickledStub()
        known, before = id(value), self._count
        if known not in self._resolved:
            self._resolved[known] = INCOMPLETE
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise LimitError("its containers are nested too deeply")
            self._resolved[known] = self._copy(value)
            self._depth -= 1
            self._counts[known] = self._count + 1 - before
        if self._resolved[known] is INCOMPLETE:
            raise pickle.UnpicklingError("a container contains itself")
        self._count = before + self._counts[known]
        if self._count > MAX_ITEMS:
            raise LimitError("its containers have too many items")
        return self._resolved[known]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, TensorRecord):
            return self._tensor(value)
        if isinstance(value, dict):
            return type(value)([(self.resolve(key), self.resolve(item)) for key, item in value.items()])
        return type(value)([self.resolve(item) for item in value])

    def _tensor(self, record: TensorRecord) -> Tensor:
        storage = record.storage
        numbers = (record.offset, storage.numel, *record.size, *record.stride)
        if len(record.size) != len(record.stride) or len(record.size) > MAX_DIMENSIONS:
            raise pickle.UnpicklingError("a tensor of impossible size")
        if any(type(number) is not int or not 0 <= number <= MAX_NUMBER for number in numbers):
            raise pickle.UnpicklingError("a tensor of impossible size")
        if storage.key not in self._storages:
            self._storages[storage.key] = self.storage(storage)
        data = self._storages[storage.key]
        if len(data) != storage.numel * storage.dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {storage.key} has another size than declared")
        last = record.offset + sum((size - 1) * stride for size, stride in zip(record.size, record.stride, strict=True))
        if math.prod(record.size) and (last + 1) * record.dtype.itemsize > len(data):
            raise pickle.UnpicklingError(f"a tensor exceeds storage {storage.key}")
        if math.prod(record.size) * record.dtype.itemsize > max(len(data), MAX_CLAIM):
            raise LimitError("one of its tensors has more numbers than are stored")
        if not math.prod(record.size):
            return torch.empty(record.size, dtype=record.dtype)
        empty = torch.empty(0, dtype=record.dtype)
        return empty.set_(data.untyped_storage(), record.offset, record.size, record.stride)


class _ZipStorages(_Storages):
    """The zip format: `NAME/data.pkl` and one stored member `NAME/data/KEY` for each storage.

    Args:
        archive: opened.
        file: of the archive.
        mapped: path of the same file to map storages from, or None to copy them.
    """

    def __init__(self, archive: zipfile.ZipFile, file: IO[bytes], mapped: Path | None) -> None:
        super().__init__()
        self._archive, self._file = archive, file
        self._map: Any = None
        if mapped is not None:
            self._map = torch.UntypedStorage.from_file(str(mapped), shared=False, nbytes=mapped.stat().st_size)
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            raise pickle.UnpicklingError("the archive has no data.pkl")
        self._prefix = names[0].removesuffix("data.pkl")

    def load(self, base: int) -> Any:
        """The content of the archive; `base` is the memory that its pickle may need whatever its size is."""
        order = f"{self._prefix}byteorder"
        if order in self._archive.namelist() and self._member(order).numpy().tobytes().decode() != sys.byteorder:
            raise pickle.UnpicklingError("the file was written on a machine of another byte order")
        name = f"{self._prefix}data.pkl"
        if (entry := self._archive.getinfo(name)).file_size > MAX_PICKLE_BYTES:
            raise LimitError("its pickle is too large")
        file = io.BytesIO(self._member(name).numpy().data)
        return self.resolve(_TorchUnpickler(file, Budget(entry.compress_size, base)).load())

    def storage(self, record: StorageRecord) -> Tensor:
        """A member of the archive."""
        name = f"{self._prefix}data/{record.key}"
        if self._archive.getinfo(name).file_size != record.numel * record.dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {record.key} has another size than declared")
        return self._member(name)

    def _member(self, name: str) -> Tensor:
        """The bytes of a member, compared with its CRC-32 where it has one."""
        entry = self._archive.getinfo(name)
        if not entry.file_size:
            return torch.empty(0, dtype=torch.uint8)
        if entry.compress_type != zipfile.ZIP_STORED:
            return torch.frombuffer(bytearray(self._archive.read(entry)), dtype=torch.uint8)
        start = member_start(self._file, entry)
        if self._map is not None and start % MAPPED_ALIGNMENT == 0:
            data = torch.empty(0, dtype=torch.uint8).set_(self._map[start : start + entry.file_size])
        else:
            self._file.seek(start)
            data = _read_bytes(self._file, entry.file_size)
        if entry.CRC and zlib.crc32(data.numpy().data) != entry.CRC:  # 0: torch can be configured not to write it
            raise zipfile.BadZipFile(f"bad CRC-32 of {entry.filename}")
        return data


class _LegacyStorages(_Storages):
    """The format before torch 1.6: a pickle, then the storages in the order of a list of their keys.

    Args:
        file: after the list of keys.
        keys: of the storages, in the order of their bytes.
        dtypes: key -> element type, of all storages that the pickle refers to.
    """

    def __init__(self, file: IO[bytes], keys: Any, dtypes: dict[str, torch.dtype]) -> None:
        super().__init__()
        if any(type(key) not in (str, int) for key in keys) or len(set(keys)) != len(keys):
            raise pickle.UnpicklingError("an unknown kind of storage")
        for key in map(str, keys):
            (numel,) = struct.unpack("<q", file.read(8))
            self._storages[key] = _read_bytes(file, numel * dtypes[key].itemsize)

    def storage(self, record: StorageRecord) -> Tensor:
        """Never called: all were read."""
        raise pickle.UnpicklingError(f"storage {record.key} is missing")


def _load_legacy(file: IO[bytes], budget: Budget) -> Any:
    def unpickle() -> Any:
        return _TorchUnpickler(file, budget).load()

    if unpickle() != LEGACY_MAGIC or unpickle() != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("not a checkpoint")
    if unpickle().get("little_endian") != (sys.byteorder == "little"):
        raise pickle.UnpicklingError("the file was written on a machine of another byte order")
    unpickler = _TorchUnpickler(file, budget)
    content = unpickler.load()
    return _LegacyStorages(file, unpickle(), unpickler.dtypes).resolve(content)


def _read_bytes(file: IO[bytes], count: int) -> Tensor:
    """Reads (count,) uint8; raises where the file ends before, without reserving memory for more than it has."""
    here = file.tell()
    left = file.seek(0, io.SEEK_END) - here
    file.seek(here)
    if not 0 <= count <= left:
        raise pickle.UnpicklingError("the file ends too early")
    if not count:
        return torch.empty(0, dtype=torch.uint8)
    data = bytearray(count)
    view = memoryview(data)
    done = 0
    while done < count:
        part = file.read(min(READ_BYTES, count - done))
        if not part:
            raise pickle.UnpicklingError("the file ends too early")
        view[done : done + len(part)] = part
        done += len(part)
    return torch.frombuffer(data, dtype=torch.uint8)
