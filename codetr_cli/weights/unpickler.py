"""Reads pickles without executing anything from them.

A pickle is a program for a small machine. Here the machine has only the operations that build containers, numbers, text
and the objects of a `Vocabulary`; nothing is imported because a file names it. Every operation costs memory from a
budget, so that neither memory nor time depends on anything but the size of the file.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import cached_property
from typing import IO, Any, ClassVar

import torch

BASE_BYTES = 1 << 28  # memory that the pickles of any file may need
BYTES_PER_BYTE = 2  # more of it for each byte that they have on disk
MAX_TEXT_BYTES = 1 << 25  # of a text or a frame; the log history of a million steps needs half of it
MAX_NAME_BYTES = 256  # of a global
MAX_KEY_PARTS = 64  # of a tuple that is a key
MAX_KEY_NUMBER = 1 << 60  # larger numbers can be chosen so that all have the same hash
MAX_ODD_KEYS = 1_000  # that could have the same hash: of such, each costs a comparison with each
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype)
PYTHON_2_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "commands": "subprocess",
}  # written by protocol 2, which torch uses


class LimitError(pickle.UnpicklingError):
    """A file asks for more than any checkpoint needs; the message says of what."""


class UnpickledStub:
    """Replaces an object that a reader does not need; discards its content."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class RecordKind:
    """Stands for a class whose objects are read as records."""

    def __init__(self, name: str) -> None:
        self.name = name


class Record:
    """What a pickle says of an object: its class by name, and its attributes, which may be anything."""

    def __init__(self, kind: RecordKind) -> None:
        self.kind = kind.name
        self.state: Any = None


class Vocabulary:
    """What a kind of files may name.

    Args:
        objects: by dotted name. Functions are called with what the file gives; stubs and records are created.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = dict(objects)

    def __contains__(self, name: str) -> bool:
        return name in self._objects

    def __getitem__(self, name: str) -> Any:
        return self._objects[name]

    def may_call(self, value: Any) -> bool:
        """Whether a value is one of the functions and classes."""
        return id(value) in self._callable

    @cached_property
    def _callable(self) -> frozenset[int]:
        return frozenset(id(value) for value in self._objects.values() if callable(value))


class Budget:
    """Bytes of memory that the pickles of a file may still need, by a rough estimate."""

    def __init__(self, bytes_on_disk: int, base: int = BASE_BYTES) -> None:
        self._left = base + BYTES_PER_BYTE * bytes_on_disk

    def spend(self, count: int) -> None:
        """Raises LimitError when the budget is exceeded."""
        self._left -= count
        if self._left < 0:
            raise LimitError("it would need far more memory than a file of its size should")


def global_name(module: str, name: str) -> str:
    """The dotted name of a global, with the modules of Python 3."""
    return f"{PYTHON_2_MODULES.get(module, module)}.{name}"


class _Source:
    """A stream that gives no long text and no long name."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        if count > MAX_TEXT_BYTES:
            raise LimitError("it has a text that is too long")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(MAX_NAME_BYTES)


# Bytes that an operation can make necessary, with the copy that is made of containers afterwards.
SMALL, MEDIUM, CONTAINER = 100, 200, 400
TEXT = frozenset((pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINSTRING,
                  pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8,
                  pickle.BYTEARRAY8))  # fmt: skip
COSTS = {
    **dict.fromkeys(
        (
            *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.POP, pickle.POP_MARK),
            *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
            *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
            *TEXT,
            *(pickle.EMPTY_TUPLE, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS, pickle.ADDITEMS),
            *(pickle.BINGET, pickle.LONG_BINGET),
            *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID),
        ),
        SMALL,
    ),
    **dict.fromkeys((pickle.MARK, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE), MEDIUM),
    **dict.fromkeys(
        (
            *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.EMPTY_DICT),
            *(pickle.EMPTY_SET, pickle.FROZENSET, pickle.NEWOBJ),
        ),
        CONTAINER,
    ),
}


def _operation(code: bytes, function: Callable[[Any], None]) -> Callable[[Any], None]:
    """An operation that is paid for."""
    cost, is_text = COSTS[code], code in TEXT

    def run(machine: Unpickler) -> None:
        machine.budget.spend(cost)
        function(machine)
        if is_text:
            machine.budget.spend(sys.getsizeof(machine.stack[-1]))

    return run


class Unpickler(pickle._Unpickler):  # in Python, so that single operations can be replaced
    """Python's unpickler, limited to the operations above, a vocabulary and a budget.

    Args:
        file: at the start of a pickle.
        vocabulary: all that it may name.
        budget: of the file.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {}

    def __init__(self, file: IO[bytes], vocabulary: Vocabulary, budget: Budget) -> None:
        super().__init__(_Source(file), encoding="utf-8")
        self.vocabulary, self.budget = vocabulary, budget
        self._odd_keys = 0

    def find_class(self, module: str, name: str) -> Any:
        """What the vocabulary has under a name."""
        wanted = global_name(module, name)
        if wanted not in self.vocabulary:
            raise pickle.UnpicklingError(f"GLOBAL {wanted[:MAX_NAME_BYTES]} does not belong in such a file")
        return self.vocabulary[wanted]

    def load_reduce(self) -> None:
        """Calls something of the vocabulary; other objects that can be called never are."""
        args, function = self.stack.pop(), self.stack[-1]
        if not self.vocabulary.may_call(function):
            raise pickle.UnpicklingError("an object that does not belong in such a file is called")
        self._check_call(function, args)
        self.stack[-1] = function(*args)
        self.budget.spend(getattr(self.stack[-1], "memory_bytes", SMALL))

    def _check_call(self, function: Any, args: Any) -> None:
        """Refuses items that cannot be keys, and pays for what is copied."""
        if type(args) is not tuple:
            raise pickle.UnpicklingError("a call without arguments")
        self.budget.spend(SMALL * len(args))
        values = args[0] if args else ()
        if isinstance(values, Sized):
            self.budget.spend((SMALL if isinstance(values, (list, tuple, dict, set, frozenset)) else 1) * len(values))
        if function in (set, OrderedDict) and not isinstance(values, (list, tuple, dict)):
            raise pickle.UnpicklingError("a container is made of what is none")  # text has objects that it did not pay
        if function is set:
            self._check_keys(values)
        elif function is OrderedDict and not isinstance(values, dict):
            self._check_keys(key for key, _ in values)

    def load_newobj(self) -> None:
        """Creates an ordered dictionary, a set, a record or a stub."""
        args, cls = self.stack.pop(), self.stack[-1]
        if cls is OrderedDict or cls is set:
            self._check_call(cls, args)
            self.stack[-1] = cls(*args)
        elif isinstance(cls, RecordKind):
            self.stack[-1] = Record(cls)
        elif isinstance(cls, type) and self.vocabulary.may_call(cls):
            self.stack[-1] = UnpickledStub()
        else:
            raise pickle.UnpicklingError("an object of an unknown class is created")

    def load_build(self) -> None:
        """Keeps the attributes of a record, discards those of ordered dictionaries and stubs; nothing else has any."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], (OrderedDict, UnpickledStub)):
            raise pickle.UnpicklingError("attributes are set on an object that has none")

    def load_setitems(self) -> None:
        """Sets items of dictionaries, and of nothing else."""
        items = self.pop_mark()
        self._check_keys(items[::2])
        self._mapping().update(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self) -> None:
        """Sets one item of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._check_keys((key,))
        self._mapping()[key] = value

    def load_additems(self) -> None:
        """Adds items to a set."""
        items = self.pop_mark()
        self._check_keys(items)
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError("items are added to an object that is no set")
        self.stack[-1].update(items)

    def load_bytearray8(self) -> None:
        """Reads an array of bytes, without reserving memory for more than there are."""
        (count,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(count)))

    def load_frozenset(self) -> None:
        """Creates a set that does not change."""
        items = self.pop_mark()
        self._check_keys(items)
        self.stack.append(frozenset(items))

    def _mapping(self) -> Any:
        if type(self.stack[-1]) not in (dict, OrderedDict):
            raise pickle.UnpicklingError("items are set in an object that is no dictionary")
        return self.stack[-1]

    def _check_keys(self, keys: Iterable[Any]) -> None:
        """Refuses keys whose hash can take forever or overflow the stack, or that can all have the same one.

        The hash of text differs in every process, so that nobody can prepare text with the same one.
        """
        for key in keys:
            kind = type(key)
            if kind is str or kind is bytes or (kind is int and abs(key) < MAX_KEY_NUMBER):
                continue
            parts = key if kind is tuple and len(key) <= MAX_KEY_PARTS else (key,)
            if not all(isinstance(part, (*PLAIN, UnpickledStub, Record)) for part in parts):
                raise pickle.UnpicklingError("a key of a dictionary, or an item of a set, is neither a number nor text")
            self._odd_keys += isinstance(key, (tuple, int, float, complex)) and kind is not bool
            if self._odd_keys > MAX_ODD_KEYS:
                raise LimitError("it has too many keys that are neither whole numbers nor text")

    dispatch.update({code[0]: _operation(code, pickle._Unpickler.dispatch[code[0]]) for code in COSTS})
    for _code, _function in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.BUILD, load_build),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.ADDITEMS, load_additems),
        (pickle.FROZENSET, load_frozenset),
        (pickle.BYTEARRAY8, load_bytearray8),
    ):
        dispatch[_code[0]] = _operation(_code, _function)
    del _code, _function
