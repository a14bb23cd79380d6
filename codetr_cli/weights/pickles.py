"""Reads `.pth` files, which are pickles, without running anything that is in them.

`torch.load(weights_only=True)` refuses every global that is not on its allow-list. Published checkpoints and those that
mmengine writes name some that weights do not need: log histories, configurations, numpy scalars. For these the
allow-list is widened by stand-ins that have the right name and do nothing at all: whatever they are given is forgotten.
The real mmengine or numpy object is never looked up, even where it is installed.
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

MAX_LISTED_PICKLE_BYTES = 64 << 20  # a larger pickle is still refused, only its forbidden names are not listed
READ_BYTES = 1 << 20
LEGACY_PICKLES = 5  # magic number, protocol, system facts, object, storage keys
PYTHON_2_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "commands": "subprocess",
}  # protocol 2, torch's, writes these
ALLOWED_BY_TORCH = re.compile(
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(bytearray|set|complex)"
    r"|torch\.(_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2|nn\.parameter\.Parameter|serialization\._get_layout"
    r"|(storage\.)?\w*Storage|Size|Tensor|device|bool|half|double|long|[a-z]+[0-9]\w*)"
)


class UnpickledStub:
    """Takes the place of an object that weights do not need and keeps nothing of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _inert_getattr(owner: Any, name: Any) -> UnpickledStub:
    """The only use of `getattr` that is allowed: a method of something inert.

    A log history (mmengine/logging/history_buffer.py) pickles its statistics as `getattr(HistoryBuffer, "mean")`.
    """
    if owner is not UnpickledStub:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr is used on something else than a log history")
    return UnpickledStub()


def _plain_mapping(*args: Any) -> OrderedDict[Any, Any]:
    """A default dictionary as a plain one, to be filled; `args` holds what would make its missing values."""
    return OrderedDict()


INERT_NAMES = (
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
# torch fills a mapping item by item only when its type is exactly one of a few.
MAPPING_NAMES = ("mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict", "addict.addict.Dict")


def read_pickle(path: Path) -> Any:
    """Reads a file written by `torch.save`, zip or legacy format, into tensors, numbers, text and containers.

    Args:
        path: the file; tensors of a zip file are mapped from it, not copied.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or asking for globals that may not be harmless (named).
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from error
    try:
        _verify_checksums(path)
        with torch.serialization.safe_globals(_stand_ins()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of other pickle protocols and of its own old storages
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))  # noqa: TID251
    except Exception as error:  # a hostile or damaged file can make the reader fail in any way
        raise CheckpointError(_refusal(path, head, error)) from error


def forbidden_globals(path: Path) -> list[str]:
    """Names of all globals in the pickles of a file that have no business in a checkpoint, sorted.

    The pickles are only disassembled, nothing is loaded or run. A damaged file gives the names before the damage, one
    without pickles none. This finds the culprits of a refused file; what is refused is `torch.load`'s decision.
    """
    names: set[str] = set()
    with suppress(OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
        for stream in _pickle_streams(path):
            for name in _globals(stream):
                names.add(name)
    names -= {*INERT_NAMES, *MAPPING_NAMES, DEFAULT_DICT, GETATTR}
    return sorted(name for name in names if name.strip(".") and not ALLOWED_BY_TORCH.fullmatch(name))


def _verify_checksums(path: Path) -> None:
    """Compares every part of a zip checkpoint with its CRC-32, which torch does not.

    Raises:
        BadZipFile: a part is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.CRC and entry.compress_type == zipfile.ZIP_STORED:  # 0: torch can be told to leave it out
                with archive.open(entry) as part:
                    while part.read(READ_BYTES):
                        pass


def _can_be_mapped(path: Path) -> bool:
    """Whether tensors can be used where they lie in the file: a whole zip archive that is not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    return [
        *((UnpickledStub, name) for name in INERT_NAMES),
        *((OrderedDict, name) for name in MAPPING_NAMES),
        (_plain_mapping, DEFAULT_DICT),
        (_inert_getattr, GETATTR),
    ]


def _pickle_streams(path: Path) -> Iterator[IO[bytes]]:
    """The pickles of a zip checkpoint; of any other file its start as often as a legacy checkpoint has pickles."""
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
    """Dotted names of the globals that one pickle asks for."""
    words: list[str] = []  # texts in the order in which they reach the stack
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
    """Why a file was not read and what to do, without torch's advice to read it unsafely."""
    names = forbidden_globals(path) or re.findall(r"GLOBAL (\w[\w.]*)", str(error))
    if names:
        return (
            f"{path} is refused: besides weights it asks for {listed(names, 8)}, which could run any program. "
            "Nothing of it was run. Use the file its publisher gives, or have whoever trusts it save its weights "
            "alone: torch.save({'state_dict': checkpoint['state_dict']}, 'weights.pth')."
        )
    if head and head.isascii() and head.decode().isprintable():
        return f"{path} is not a checkpoint but text, {head.decode()[:30]!r} ...: download or copy the file again."
    if isinstance(error, MemoryError):
        return f"{path} asks for more memory than there is: it is damaged, or too large for this machine."
    what = "is empty" if not head else "cannot be read as a checkpoint: it is damaged, cut short, or something else"
    return f"{path} {what}. Download or copy the file again and compare its size."
