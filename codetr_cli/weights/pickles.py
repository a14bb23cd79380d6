"""Reads `.pth` files, which are pickles, without executing code from them.

`torch_files` refuses every global that is not in its vocabulary. Published checkpoints and those of mmengine contain
some that weights do not need: log histories, configurations, numpy scalars. These are replaced by stubs that do nothing
and discard their arguments. The real mmengine or numpy object is never imported, even if it is installed.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import IO, Any, TypeGuard

import torch
from torch import Tensor

from codetr_cli.errors import CheckpointError, listed
from codetr_cli.reading import open_file
from codetr_cli.weights import torch_files
from codetr_cli.weights.torch_vocabulary import VOCABULARY
from codetr_cli.weights.unpickler import MAX_NAME_BYTES, LimitError, global_name
from codetr_cli.weights.zip_files import ZIP_MAGIC, open_zip

# Of the pickles of a file; forbidden names behind that are not listed, but refused.
MAX_LISTED_BYTES, MAX_LISTED_OPERATIONS, MAX_LISTED_NAMES = 16 << 20, 300_000, 100
LEGACY_PICKLES = 5  # magic number, protocol, system information, object, storage keys
TENSOR_BUILDERS = "torch._utils._rebuild_"


def read_pickle(path: Path) -> Any:
    """Reads a file written by `torch.save`, zip or legacy format, into tensors, numbers, text and containers.

    Args:
        path: the file; tensors of a zip file are mapped from it, not copied.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or with globals that may be harmful (listed).
    """
    try:
        with open_file(path) as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from error
    try:
        return torch_files.load(path, mapped=True)
    except Exception as error:  # a hostile or damaged file can make the reader fail in any way
        raise CheckpointError(_refusal(path, head, error)) from error


def is_plain_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a tensor with all its numbers in memory; an expanded one could claim any size."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def forbidden_globals(path: Path) -> list[str]:
    """Sorted names of the globals in the pickles of a file that do not belong in a checkpoint, at most 100 of them.

    The pickles are disassembled; nothing is loaded or executed. Of a damaged file, only the names before the damage are
    found. This explains why a file was refused; `unpickler` decides what is refused.
    """
    names: set[str] = set()
    damage = suppress(OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile)
    with damage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what looks like an escape sequence
        left = iter(range(MAX_LISTED_OPERATIONS))
        for stream in _pickle_streams(path):
            for name in _globals(zip(left, pickletools.genops(stream), strict=False)):
                if name.strip(".") and name not in VOCABULARY:
                    names.add(name)
                if len(names) == MAX_LISTED_NAMES:
                    return sorted(names)
    return sorted(names)


def _pickle_streams(path: Path) -> Iterator[IO[bytes]]:
    """The pickles of a zip checkpoint; any other file as many times as a legacy checkpoint has pickles in sequence."""
    with open_file(path) as file:
        is_zip, size = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC, file.seek(0, io.SEEK_END)
        file.seek(0)
        if not is_zip:
            yield from repeat(io.BytesIO(file.read(min(size, MAX_LISTED_BYTES))), LEGACY_PICKLES)
            return
        with open_zip(file) as archive:
            left = MAX_LISTED_BYTES
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl") and entry.file_size <= left:
                    left -= entry.file_size
                    yield io.BytesIO(archive.read(entry))


def _globals(operations: Iterable[tuple[int, tuple[pickletools.OpcodeInfo, Any, int | None]]]) -> Iterator[str]:
    """Dotted names of the globals of one pickle, shortened, from its numbered operations."""
    words: list[str] = []  # the start of each string in the order in which they are pushed on the stack
    memo: dict[int, str] = {}
    for _, (opcode, argument, _) in operations:
        if opcode.name in ("GLOBAL", "INST"):
            yield global_name(*str(argument).split(" ", 1))[:MAX_NAME_BYTES]
        elif opcode.name == "STACK_GLOBAL" and len(words) > 1:
            yield global_name(words[-2], words[-1])[:MAX_NAME_BYTES]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = words[-1] if words else ""
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument in memo:
            words.append(memo[argument])
        elif isinstance(argument, str):
            words.append(argument[:MAX_NAME_BYTES])


def _refusal(path: Path, head: bytes, error: Exception) -> str:
    """Why a file was refused and what to do, without torch's advice to load it unsafely."""
    graph = {".bin": path.with_suffix(".xml"), ".data": path.with_suffix("")}.get(path.suffix)
    if graph is not None and graph.is_file():
        return f"{path} is no checkpoint: it has the weights of the exported file {graph}. Give that one."
    names = forbidden_globals(path) or re.findall(r"GLOBAL (\w[\w.]*)", str(error))
    if names and all(name.startswith(TENSOR_BUILDERS) for name in names):
        return (
            f"{path} is refused: it has tensors of a kind that detectors do not have ({listed(names, 8)}): sparse, "
            "quantized or without data. Convert them to dense tensors and save the file again."
        )
    if names:
        return (
            f"{path} is refused: besides weights it contains {listed(names, 8)}, which could execute any code. "
            "None of it was executed. Use the publisher's original file, or ask someone who trusts this file to save "
            "its weights alone: torch.save({'state_dict': checkpoint['state_dict']}, 'weights.pth')."
        )
    if isinstance(error, LimitError):
        return f"{path} is refused: {error}. Use the publisher's original file, or save its weights alone."
    if head and head.isascii() and head.decode().isprintable():
        return f"{path} is not a checkpoint but text, {head.decode()[:30]!r} ...: download or copy the file again."
    if isinstance(error, MemoryError):
        return f"{path} needs more memory than this machine has: it is damaged, or too large."
    what = "is empty" if not head else "cannot be read as a checkpoint: it is damaged, cut short, or something else"
    return f"{path} {what}. Download or copy the file again and compare its size."
