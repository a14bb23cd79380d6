"""What the pickles of `torch.save` may name: tensors as records, containers, and stubs for what weights do not need.

Tensors are built afterwards, by `torch_files`, once their sizes were compared with the file.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from codetr_cli.weights.unpickler import UnpickledStub, Vocabulary

TENSOR_CLASS = "a class of tensors"
MAX_DIMENSIONS = 64  # of a tensor, as in torch
MAX_ARGUMENTS = 16  # of a function that builds a tensor


@dataclass(frozen=True)
class StorageRecord:
    """A storage that a pickle refers to: its key in the file and its declared size."""

    dtype: torch.dtype  # uint8 for untyped storages
    key: str
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor that a pickle describes; nothing in it was compared with the file yet."""

    memory_bytes: ClassVar[int] = 1_500  # with the tensor that is built

    storage: StorageRecord
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class StorageType:
    """A class of storages by the type of its elements."""

    dtype: torch.dtype


STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
DTYPES = (
    *dict.fromkeys(STORAGE_DTYPES.values()),
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
"""What tensors may hold: nothing quantized and no parts of bytes."""
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
    "numpy.core.numeric._frombuffer",
    "numpy._core.numeric._frombuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "argparse.Namespace",
    "datetime.datetime",
    "datetime.date",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "types.SimpleNamespace",
    "uuid.UUID",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",  # as Python 3.13 writes them
    "pathlib._local.WindowsPath",
    "torch.device",
    "builtins.int",
    "builtins.long",  # as protocol 2 writes int
    "builtins.float",
    "builtins.bool",
    "builtins.str",
    "builtins.unicode",  # as protocol 2 writes str
    "builtins.bytes",  # of none
    "builtins.list",
    "builtins.dict",
    "builtins.tuple",
    "builtins.frozenset",
    "builtins.slice",
    "builtins.range",
    "builtins.xrange",
)
MAPPING_NAMES = ("mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict", "addict.addict.Dict")


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> TensorRecord:
    if metadata:
        raise pickle.UnpicklingError("a tensor has metadata, e.g. of a lazy conjugate")
    return TensorRecord(storage, storage.dtype, offset, _numbers(size), _numbers(stride))


def _numbers(values: Any = ()) -> tuple[Any, ...]:
    """A size or a stride; its numbers may still be anything."""
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise pickle.UnpicklingError("a tensor of impossible size")
    return tuple(values)


def _rebuild_untyped(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> TensorRecord:
    if metadata or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor has metadata, e.g. of a lazy conjugate")
    return TensorRecord(storage, dtype, offset, _numbers(size), _numbers(stride))


def _rebuild_parameter(data: Any, *args: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, of_type: Any, args: Any, state: Any) -> Any:
    if function not in (_rebuild_tensor, _rebuild_untyped, _rebuild_parameter) or len(args) > MAX_ARGUMENTS:
        raise pickle.UnpicklingError("a tensor of another class")
    return function(*args)


def _plain_mapping(*args: Any) -> OrderedDict[Any, Any]:
    """Replaces a default dictionary; `args` has its factory of missing values."""
    return OrderedDict()


def _plain_list(*args: Any) -> list[Any]:
    """Replaces a queue; `args` has its length, and its items follow."""
    return []


def _counter(counts: Any = ()) -> OrderedDict[Any, Any]:
    if counts and not isinstance(counts, dict):  # whose keys were checked
        raise pickle.UnpicklingError("counts that are no dictionary")
    return OrderedDict(counts)


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("GLOBAL _codecs.encode is used with another codec than latin1")
    return text.encode("latin1")


def _bytearray(data: Any = b"", *encoding: Any) -> bytearray:
    """How protocol 2 writes byte arrays; a number of zero bytes to reserve is not taken."""
    return bytearray(data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data)))


def _stub_getattr(owner: Any, name: Any) -> UnpickledStub:
    """The only allowed use of `getattr`: a method of a stub.

    A log history (mmengine/logging/history_buffer.py) pickles its statistics as `getattr(HistoryBuffer, "mean")`.
    """
    if owner is not UnpickledStub:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr is used on an object other than a log history")
    return UnpickledStub()


# Nothing is imported; the real object of a stub is never used.
VOCABULARY = Vocabulary(
    {
        **dict.fromkeys(STUB_NAMES, UnpickledStub),
        **dict.fromkeys(("collections.OrderedDict", *MAPPING_NAMES), OrderedDict),
        "collections.Counter": _counter,
        "collections.defaultdict": _plain_mapping,
        "collections.deque": _plain_list,
        "builtins.getattr": _stub_getattr,
        "builtins.set": set,
        "builtins.bytearray": _bytearray,
        "builtins.complex": complex,
        "_codecs.encode": _encode,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v3": _rebuild_untyped,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.Size": _numbers,
        "torch.Tensor": TENSOR_CLASS,
        "torch.nn.parameter.Parameter": TENSOR_CLASS,
        **{f"torch.{name}": StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
        "torch.storage.UntypedStorage": StorageType(torch.uint8),
        **{str(dtype): dtype for dtype in DTYPES},
    }
)
