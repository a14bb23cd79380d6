"""Files of results: codetr never writes over a file that it did not make.

- What it makes in a folder of the user's is listed there in `.codetr_results`, with size and digest. A file that is not
  listed, or has another content by now, is the user's. So are links.
- A name that is taken is passed over: the result gets a number (`a_2.png`, `predictions_2/`). Where the very file was
  named (`codetr convert SRC DST`), the command refuses.
- Its own results are replaced only with `--force`, or by the same command that continues unfinished work; never those
  that the user has made read-only.
- No two results have names that any file system takes for one: see `folded`.
- Its own results are no inputs where a folder is searched, see `OwnResults`; a file that is named itself always is.

Run folders and the cache are codetr's as a whole: a run is never started in a folder that has anything else in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from codetr_cli.errors import ConfigError, listed
from codetr_cli.files import real_path, replace_file, scratch_folder, sync_file, sync_folder
from codetr_cli.reading import open_file, parse_json

logger = logging.getLogger(__name__)

RECORD_NAME = ".codetr_results"
"""In a folder with results: what codetr has written there, one JSON object a line."""
MAX_RECORD_BYTES = 1 << 28
NEVER_DATA = frozenset(("predict", "eval", "bench"))
"""Verbs whose results are no inputs; those that write data sets are others."""


@dataclass(frozen=True)
class Result:
    """A file as codetr has written it.

    Attributes:
        size: in bytes.
        mtime_ns: of the content.
        sha256: of the content.
        by: the verb.
        request: what it is the result of; only the same request replaces it without `--force`.
    """

    size: int
    mtime_ns: int
    sha256: str
    by: str
    request: str = ""


class ResultRecord:
    """What codetr has written into a folder. Several processes and threads may add to it.

    Args:
        folder: need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._results: dict[str, list[Result]] = {}
        self._seen: tuple[int, int, int] | None = None
        self._lock = threading.Lock()  # of threads that read the record at once

    def of(self, name: str) -> list[Result]:
        """The results that were written under a name relative to the folder, the newest last."""
        with self._lock:
            self._read()
            return list(self._results.get(name, ()))

    def is_own(self, path: Path, *, request: str | None = None, quick: bool = False) -> bool:
        """Whether a file is as codetr has written it. Links are not, nor is a file that cannot be read.

        Args:
            path: in the folder or one below it.
            request: only if it is a result of this request.
            quick: trust size and time of the file, without reading it.
        """
        try:
            status = path.lstat()
            name = path.relative_to(self.folder).as_posix()
        except (OSError, ValueError):
            return False
        found = [result for result in self.of(name) if request is None or result.request == request]
        if not found or not stat.S_ISREG(status.st_mode):
            return False
        if status.st_size == 0:  # a power failure came before the content was on the disk
            return True
        same_size = [result for result in found if result.size == status.st_size]
        if quick and any(result.mtime_ns == status.st_mtime_ns for result in same_size):
            return True
        try:
            digest = _digest(path) if same_size else ""
        except OSError:
            return False
        return any(result.sha256 == digest for result in same_size)

    def may_write(self, path: Path, *, force: bool = False, request: str = "") -> bool:
        """Whether the rule allows a result at a path: nothing is there, or an own result that may be replaced."""
        if not os.path.lexists(path):
            return True
        return self.is_own(path, request=None if force else request) and not _is_read_only(path)

    def add(self, path: Path, content: Path, *, by: str, request: str = "", digest: bool = True) -> None:
        """Lists a file that gets its name now.

        Args:
            path: its final path.
            content: where it is until then.
            by: the verb.
            request: see `Result`.
            digest: read the content; else size and time alone recognise the file, see `is_own`.

        Raises:
            OSError: the record cannot be written, or is a link.
        """
        status = content.stat()
        result = Result(status.st_size, status.st_mtime_ns, _digest(content) if digest else "", by, request)
        line = json.dumps({"name": path.relative_to(self.folder).as_posix(), **asdict(result)})
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self.folder / RECORD_NAME, flags, 0o666)
        try:
            os.write(descriptor, f"\n{line}\n".encode())  # a kill may have cut the line before
        finally:
            os.close(descriptor)

    def _read(self) -> None:
        path = self.folder / RECORD_NAME
        try:
            status = path.lstat()
            state = (status.st_ino, status.st_size, status.st_mtime_ns)
            if state == self._seen:
                return
            # Lines are added only: of a million results, each would otherwise read those of all before.
            is_longer = self._seen is not None and self._seen[0] == state[0] and self._seen[1] < state[1]
            start = self._seen[1] if self._seen is not None and is_longer else 0
            content = _read_from(path, start, status.st_size) if stat.S_ISREG(status.st_mode) else b""
        except OSError:
            return
        self._seen, self._results = state, self._results if is_longer else {}
        for line in content.splitlines():
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                entry = parse_json(line)
                name = entry.pop("name")
                result = Result(**entry)
                if type(result.size) is int and type(result.mtime_ns) is int:
                    self._results.setdefault(name, []).append(result)


def _read_from(path: Path, start: int, end: int) -> bytes:
    """A part of a record; empty if the record is too long. What is added while it is read belongs to the next part."""
    if end > MAX_RECORD_BYTES:
        return b""
    with open_file(path) as file:
        file.seek(start)
        return file.read(end - start)


@contextmanager
def write_result(
    path: Path, *, by: str, force: bool = False, request: str = "", record: ResultRecord | None = None, **how: Any
) -> Iterator[Path]:
    """`replace_file` for results, by the rule of this module; the file is listed in the record of its folder.

    Args:
        path: the final path.
        by: the verb.
        force: replace an own result.
        request: see `Result`.
        record: of a folder above the file; None: of the file's folder.
        how: as of `replace_file`.

    Raises:
        ConfigError: there is a file that may not be replaced.
        ResourceError: as of `replace_file`.
    """
    record = record or ResultRecord(path.parent)
    refuse_taken([path], force=force, request=request, record=record)
    with replace_file(path, **how) as temporary:
        yield temporary
        record.add(path, temporary, by=by, request=request)


@contextmanager
def write_results(path: Path, *, by: str, force: bool = False, request: str = "") -> Iterator[Path]:
    """`write_result` for a file and others that belong to it: none gets its name before all are on the disk.

    Then all get their names at once: a kill leaves all of the old ones, or all of the new ones, unless it comes between
    two renames.

    Yields a temporary path with the final name, in a folder of its own. All files of that folder are results.

    Args:
        path: the final path of the file; the others get theirs beside it.
        by: the verb.
        force: replace own results.
        request: see `Result`.

    Raises:
        ConfigError: there is a file that may not be replaced.
        ResourceError: as of `replace_file`.
    """
    record = ResultRecord(path.parent)
    refuse_taken([path], force=force, request=request, record=record)
    with scratch_folder(path) as scratch:
        yield scratch / path.name
        written = sorted(scratch.iterdir(), key=lambda file: file.name == path.name)  # the file itself comes last
        refuse_taken([path.with_name(file.name) for file in written], force=force, request=request, record=record)
        for file in written:
            record.add(path.with_name(file.name), file, by=by, request=request)
            sync_file(file)
        for file in written:
            file.replace(path.with_name(file.name))
        sync_folder(path.parent)


def refuse_taken(paths: Iterable[Path], *, force: bool, request: str = "", record: ResultRecord | None = None) -> None:
    """Refuses to write results where the rule of this module forbids it; arguments are those of `write_result`.

    Raises:
        ConfigError: names the first files and what to do.
    """
    taken = [path for path in paths if os.path.lexists(path)]
    own = [path for path in taken if (record or ResultRecord(path.parent)).is_own(path)]
    foreign = [path for path in taken if path not in own]
    verb = "exists" if len(foreign) == 1 else "exist"
    if foreign:
        raise ConfigError(
            f"{listed(foreign)} already {verb}, not as codetr has written it, and is never replaced: give another "
            "name, or move it away"
        )
    if protected := [path for path in own if _is_read_only(path)]:
        verb, them = ("is", "it") if len(protected) == 1 else ("are", "them")
        raise ConfigError(
            f"{listed(protected)} {verb} read-only and {verb} not replaced: give another name, or allow to write "
            f"{them} (chmod u+w)"
        )
    if own and not force:
        kept = [path for path in own if not (record or ResultRecord(path.parent)).is_own(path, request=request or None)]
        if kept or not request:
            taken = kept or own
            verb, them = ("exists", "it") if len(taken) == 1 else ("exist", "them")
            raise ConfigError(f"{listed(taken)} already {verb}: give another name, or replace {them} with --force")


class OwnResults:
    """Recognises codetr's own results, which are no inputs, while a folder and those below it are searched.

    Args:
        folder: that is searched; its record counts, and those of folders above it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = real_path(folder)
        # (start of the names that it is about, what comes before the rest, the record)
        self._records: list[tuple[str, str, ResultRecord]] = []
        for parent in (self._folder, *self._folder.parents):
            if os.path.lexists(parent / RECORD_NAME):
                before = "" if parent == self._folder else f"{self._folder.relative_to(parent).as_posix()}/"
                self._records.append(("", before, ResultRecord(parent)))

    def enter(self, prefix: str) -> None:
        """Takes note of a folder below that has a record; `prefix` is its name in the searched one, with a slash."""
        self._records.append((prefix, "", ResultRecord(self._folder / prefix)))

    def holds(self, name: str) -> bool:
        """Whether a file, by its name in the searched folder, is an own result of a verb of `NEVER_DATA`."""
        for prefix, before, record in self._records:
            if name.startswith(prefix):
                found = record.of(before + name[len(prefix) :])
                if any(result.by in NEVER_DATA for result in found) and record.is_own(
                    record.folder / (before + name[len(prefix) :]), quick=True
                ):
                    return True
        return False


def folded(name: str) -> str:
    """The name as a file system compares it that ignores case and ways to compose letters."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _is_read_only(path: Path) -> bool:
    """Whether nobody may write a file: its user protects it, though it could be replaced."""
    return not path.lstat().st_mode & 0o222


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------------- free names


def free_folder(
    folder: Path, *markers: str | Path, force: bool, taken: Callable[[Path], bool] = lambda path: False
) -> Path:
    """The folder, or the first of folder_2, folder_3, ... without any of the markers, files of earlier results.

    With `force` own results do not matter, files that codetr did not make do. A folder that `taken` accepts is not free
    either, nor is one of somebody else that cannot be looked into.
    """

    def is_free(path: Path) -> bool:
        record = ResultRecord(path)
        if force:
            return all(record.may_write(path / marker, force=True) for marker in markers)
        return not (_is_closed(path) or taken(path) or any(os.path.lexists(path / marker) for marker in markers))

    found = _first_free(folder, is_free)
    if force and found != folder:
        _explain([folder / marker for marker in markers], found)
    return found


def _is_closed(folder: Path) -> bool:
    return os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK)  # noqa: PTH112 (Path.is_dir may raise)


def numbered(folder: Path) -> list[Path]:
    """Those of folder, folder_2, folder_3, ... that exist, in this order."""
    folder = real_path(folder) if folder.name in ("", "..") else folder
    name = re.compile(rf"{re.escape(folder.stem)}_(\d+){re.escape(folder.suffix)}")
    try:
        found = [(int(match[1]), path) for path in folder.parent.iterdir() if (match := name.fullmatch(path.name))]
    except OSError:
        found = []
    return [*([folder] if os.path.lexists(folder) else []), *(path for _, path in sorted(found))]


def free_file(file: Path, *, force: bool) -> Path:
    """The file, or the first of file_2, file_3, ... with the same suffix that may be written."""
    record = ResultRecord(file.parent)
    found = _first_free(
        file, lambda candidate: not os.path.lexists(candidate) or (force and record.may_write(candidate, force=True))
    )
    if force and found != file:
        _explain([file], found)
    return found


def _explain(files: Sequence[Path], found: Path) -> None:
    """Says which files are in the way of results that may be replaced."""
    kept = [file for file in files if not ResultRecord(file.parent).may_write(file, force=True)]
    if kept:
        logger.warning(
            "%s is not as codetr has written it, or read-only, and is kept: results are written to %s",
            listed(kept),
            found,
        )


def _first_free(path: Path, is_free: Callable[[Path], bool]) -> Path:
    if is_free(path):
        return path
    path = real_path(path) if path.name in ("", "..") else path
    names = (path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(1))
    return next(name for name in names if is_free(name))
