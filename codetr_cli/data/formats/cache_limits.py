"""Keeps the cache of converted data sets within limits: what was not used for longest goes first, what is in use stays.

A process that uses a conversion holds a shared lock on a file beside it until it ends; the time of that file is when
the conversion was used last. A conversion that is gone is made again from its folder when it is needed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from codetr_cli.data.formats.cache import SUMMARY

try:
    import fcntl
except ImportError:  # Windows: nothing tells whether a conversion is in use, so all stay
    fcntl = None  # type: ignore[assignment]

MAX_SETS = 32
MAX_BYTES = 4 * 2**30

_held: dict[Path, int] = {}  # descriptors of lock files, open until this process ends


def hold(entry: Path) -> None:
    """Says that this process uses a conversion, so that none takes it away; before looking whether it is there.

    Args:
        entry: its folder, which need not be there yet.
    """
    lock = _lock_of(entry)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        while entry not in _held:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_same(descriptor, lock):
                _held[entry] = descriptor
            else:
                os.close(descriptor)  # somebody took the conversion away while this process waited
        os.utime(lock)
    except OSError:
        return  # a cache that only others may write to, or a disk without locks: nothing is taken away there


def limit_cache(folder: Path, *, max_sets: int = MAX_SETS, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Takes away conversions until the limits are kept, or only such are left as are in use.

    Args:
        folder: of the cache.
        max_sets: conversions to keep.
        max_bytes: to keep.

    Returns:
        what was taken away.
    """
    if fcntl is None or not folder.is_dir():
        return []
    entries = sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=_last_use)
    sizes = {entry: _size(entry) for entry in entries}
    gone = []
    for entry in entries:
        if len(sizes) <= max_sets and sum(sizes.values()) <= max_bytes:
            break
        if entry not in _held and _take_away(entry):
            gone.append(entry)
            del sizes[entry]
    return gone


def _take_away(entry: Path) -> bool:
    """Removes a conversion that nobody uses."""
    lock = _lock_of(entry)
    try:
        with lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (entry / SUMMARY).unlink(missing_ok=True)  # first: what a kill leaves is then no conversion
            shutil.rmtree(entry)
            lock.unlink()
    except OSError:
        return False
    return True


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _last_use(entry: Path) -> float:
    for path in (_lock_of(entry), entry):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


def _size(entry: Path) -> int:
    try:
        return sum(path.stat().st_size for path in entry.rglob("*") if path.is_file())
    except OSError:
        return 0
