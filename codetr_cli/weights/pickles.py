"""Reads `.pth` files, which are pickles, without executing code from them.

`torch.load(weights_only=True)` refuses every global that is not on its allow-list. Published checkpoints and those of
mmengine contain some that weights do not need: log histories, configurations, numpy scalars. For these, the allow-list
is extended by stubs with the right names that do nothing and discard their arguments. The real mmengine or numpy object
is never imported, even if it is installed.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from codetr_cli.errors import CheckpointError, listed

MAX_LISTED_PICKLE_BYTES = 64 << 20  # forbidden names of a larger pickle are not listed; it is still rejected
READ_BYTES = 1 << 20
LEGACY_PICKLES = 5  # magic number, protocol, system information, object, storage keys
PYTHON_2_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "commands": "subprocess",
}  # written by protocol 2, which torch uses
ALLOWED_BY_TORCH = re.compile(
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(bytearray|set|complex)"
    r"|torch\.(_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2|nn\.parameter\.Parameter|serialization\._get_layout"
    r"|(storage\.)?\w*Storage|Size|Tensor|device|bool|half|double|long|[a-z]+[0-9]\w*)"
)


class UnpickledStub:
    """Replaces an object that weights do not need; discards its content."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stub_getattr(owner: Any, name: Any) -> UnpickledStub:
    """The only allowed use of `getattr`: a method of a stub.

    A log history (mmengine/logging/history_buffer.py) pickles its statistics as `getattr(HistoryBuffer, "mean")`.
    """
    if owner is not UnpickledStub:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr is used on an object other than a log history")
    return UnpickledStub()


def _plain_mapping(*args: Any) -> OrderedDict[Any, Any]:
    """Replaces a default dictionary; `args` has its factory of missing values."""
    return OrderedDict()


STUB_NAMES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    "mmengine.config.config.Config",
    "mmengine.config.lazy.LazyObject",
    "mmengine.config.lazy.LazyAttr",
    "mmcv.utils.config.Config",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "argparse.Namespace",
    "datetime.datetime",
    "datetime.timedelta",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib.PureWindowsPath",
    "builtins.int",
    "builtins.float",
    "builtins.list",
    "builtins.dict",
    "builtins.tuple",
    "builtins.slice",
    "builtins.range",
)
DEFAULT_DICT = "collections.defaultdict"
GETATTR = "builtins.getattr"
# torch sets the items of a mapping only if its type is exactly one of a few.
MAPPING_NAMES = ("mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict", "addict.addict.Dict")


def read_pickle(path: Path) -> Any:
    """Reads a file written by `torch.save`, zip or legacy format, into tensors, numbers, text and containers.

    Args:
        path: the file; tensors of a zip file are mapped from it, not copied.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or with globals that may be harmful (listed).
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from error
    try:
        mappable = _verify_zip(path)
        with torch.serialization.safe_globals(_stubs()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of other pickle protocols and of its own old storages
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)  # noqa: TID251
    except Exception as error:  # a hostile or damaged file can make the reader fail in any way
        raise CheckpointError(_refusal(path, head, error)) from error


def forbidden_globals(path: Path) -> list[str]:
    """Sorted names of all globals in the pickles of a file that do not belong in a checkpoint.

    The pickles are disassembled; nothing is loaded or executed. Of a damaged file, only the names before the damage are
    found. This explains why a file was refused; `torch.load` decides what is refused.
    """
    names: set[str] = set()
    with suppress(OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
        for stream in _pickle_streams(path):
            names.update(_globals(stream))
    names -= {*STUB_NAMES, *MAPPING_NAMES, DEFAULT_DICT, GETATTR}
    return sorted(name for name in names if name.strip(".") and not ALLOWED_BY_TORCH.fullmatch(name))


def _verify_zip(path: Path) -> bool:
    """Compares every member of a zip checkpoint with its CRC-32, which torch does not.

    Returns:
        whether tensors can be memory-mapped: a zip archive without compression.

    Raises:
        BadZipFile: a member is damaged.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            if entry.CRC and entry.compress_type == zipfile.ZIP_STORED:  # 0: torch can be configured not to write it
                with archive.open(entry) as member:
                    while member.read(READ_BYTES):
                        pass
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _stubs() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    return [
        *((UnpickledStub, name) for name in STUB_NAMES),
        *((OrderedDict, name) for name in MAPPING_NAMES),
        (_plain_mapping, DEFAULT_DICT),
        (_stub_getattr, GETATTR),
    ]


def _pickle_streams(path: Path) -> Iterator[IO[bytes]]:
    """The pickles of a zip checkpoint; any other file as many times as a legacy checkpoint has pickles in sequence."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                yield file
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl") and entry.file_size <= MAX_LISTED_PICKLE_BYTES:
                with archive.open(entry) as file:
                    yield file


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """Dotted names of the globals of one pickle."""
    words: list[str] = []  # strings in the order in which they are pushed on the stack
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield _modern(*str(argument).split(" ", 1))
        elif opcode.name == "STACK_GLOBAL" and len(words) > 1:
            yield _modern(words[-2], words[-1])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = words[-1] if words else ""
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument in memo:
            words.append(memo[argument])
        elif isinstance(argument, str):
            words.append(argument)


def _modern(module: str, name: str) -> str:
    return f"{PYTHON_2_MODULES.get(module, module)}.{name}"


def _refusal(path: Path, head: bytes, error: Exception) -> str:
    """Why a file was refused and what to do, without torch's advice to load it unsafely."""
    names = forbidden_globals(path) or re.findall(r"GLOBAL (\w[\w.]*)", str(error))
    if names:
        return (
            f"{path} is refused: besides weights it contains {listed(names, 8)}, which could execute any code. "
            "None of it was executed. Use the publisher's original file, or ask someone who trusts this file to save "
            "its weights alone: torch.save({'state_dict': checkpoint['state_dict']}, 'weights.pth')."
        )
    if head and head.isascii() and head.decode().isprintable():
        return f"{path} is not a checkpoint but text, {head.decode()[:30]!r} ...: download or copy the file again."
    if isinstance(error, MemoryError):
        return f"{path} needs more memory than this machine has: it is damaged, or too large."
    what = "is empty" if not head else "cannot be read as a checkpoint: it is damaged, cut short, or something else"
    return f"{path} {what}. Download or copy the file again and compare its size."
