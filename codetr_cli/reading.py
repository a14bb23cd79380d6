"""Reads files that may come from strangers: regular files only, never more than a limit, in time linear in their size.

What is wrong with a file is an `OSError` with `strerror`, what is wrong with its text a `ValueError`; the caller, who
knows what the file is, makes a `CodetrError` of both.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_TOML_BYTES = 1 << 20
MAX_KEY_PARTS = 8  # tomllib needs time and memory that grow with the square of it
_KEY_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
# Where a key may start, so that dots in texts and comments do not count.
_LONG_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*+(?:{_KEY_PART}[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS}}}", re.MULTILINE)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# Without waiting, should the file be replaced by a pipe after it was checked.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY", "O_CLOEXEC"))
# File systems whose files are the state of the kernel.
_KERNEL_FILE_SYSTEMS = frozenset(
    ("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "pstore", "efivarfs",
     "binfmt_misc", "fusectl", "mqueue", "selinuxfs")
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- opening


def open_file(path: str | Path) -> BufferedReader:
    """Opens a regular file for reading in binary mode; links to one are followed.

    Raises:
        OSError: it does not exist, cannot be read, or is a folder, a named pipe, a device, a socket or a file of the
            kernel (`/proc`), which could wait or give data for ever. `strerror` says which.
    """
    return open(open_descriptor(path)[0], "rb")  # noqa: PTH123 (a descriptor)


def open_descriptor(path: str | Path) -> tuple[int, int]:
    """As `open_file`, without the cost of a Python file: (descriptor, size in bytes)."""
    status = check_regular(path)
    return os.open(path, _FLAGS), status.st_size


def check_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file; nothing is opened, which alone can have effects on a device.

    Raises:
        OSError: as `open_file`, except for missing permissions.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path a file is slow)
    except ValueError as error:  # a zero byte, or a character that no name can have
        raise FileNotFoundError(errno.ENOENT, "no file can have such a name", repr(path)) from error
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    if status.st_dev in _kernel_devices():
        raise OSError(errno.EINVAL, "it is a file of the kernel, not a regular file", str(path))
    return status


def read_bytes(path: str | Path, limit: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        limit: bytes that it may have; None for files whose size is bounded by what is done with them.

    Raises:
        OSError: as `open_file`, or it is larger than the limit.
    """
    with open_file(path) as file:
        content = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes, the limit for such a file", str(path))
    return content


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """Device numbers of the mounted file systems of the kernel; empty on systems other than Linux."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            lines = [line.split() for line in file]
    except OSError:
        return frozenset()
    devices = set()
    for fields in lines:
        if "-" in fields and fields[fields.index("-") + 1] in _KERNEL_FILE_SYSTEMS:
            major, _, minor = fields[2].partition(":")
            devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)


# ------------------------------------------------------------------------------------------------------------- parsing


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """A JSON value.

    Args:
        text: of the value.
        unique_keys: refuse objects that give a key twice; otherwise its last value counts.

    Raises:
        ValueError: not JSON, nested too deeply, or with a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_with_unique_keys if unique_keys else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise _without_advice(error) from None


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML table.

    Raises:
        ValueError: not TOML, larger than `MAX_TOML_BYTES`, nested too deeply, with a key of more than `MAX_KEY_PARTS`
            parts or a number of thousands of digits.
    """
    if len(text) > MAX_TOML_BYTES:
        raise ValueError(f"it has more than {MAX_TOML_BYTES:,} characters, the limit for settings")
    if _LONG_KEY.search(text):
        raise ValueError(f"it has a key of more than {MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise _without_advice(error) from None


def _without_advice(error: ValueError) -> ValueError:
    """The error of a parser; Python's advice about numbers of thousands of digits is for programmers."""
    return ValueError("it has a number of thousands of digits") if "int_max_str_digits" in str(error) else error


def check_counts(value: Any, *, items: int, total: int, text: int) -> None:
    """Counts what a parsed value holds, before its types are checked.

    Reporting a wrong item costs a few microseconds and hundreds of bytes. Shared parts count each time.

    Args:
        value: lists, tables, text and others.
        items: of one list or table.
        total: of all lists and tables.
        text: characters of a text.

    Raises:
        ValueError: it holds more; the message says of what.
    """
    left, waiting = total, [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str) and len(each) > text:
            raise ValueError(f"it has a text of {len(each):,} characters, and the limit is {text:,}")
        if isinstance(each, (list, tuple, dict)):
            left -= len(each)
            if len(each) > items or left < 0:
                limit = f"{items:,} items, and {total:,} of all"
                raise ValueError(f"it has a list or table of {len(each):,} items, and the limit is {limit}")
            waiting.extend(each)
            if isinstance(each, dict):
                waiting.extend(each.values())


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"it has the key {key[:100]!r} twice")
        table[key] = value
    return table


# --------------------------------------------------------------------------------------------------------------- names


def stays_inside(name: str) -> bool:
    r"""Whether a file name, joined to a folder, is below that folder; by its text, links are not followed.

    Names of both kinds of systems are understood: `/a`, `C:\a`, `..\a` and `a/../../b` leave it, `a/../b` does not. Nor
    does `C:a` where a name may contain a colon.
    """
    if name[:1] in ("/", "\\") or (name[1:2] == ":" and (os.name == "nt" or name[2:3] in ("/", "\\"))):
        return False
    depth = 0
    for part in name.replace("\\", "/").split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return False
    return True
