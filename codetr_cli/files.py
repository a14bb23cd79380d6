"""Files: atomic replacement, the rule of results, names that are free, and the cache folder.

The rule of results: codetr never writes over a file that it did not make.

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

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import threading
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from codetr_cli.errors import CodetrError, ConfigError, ResourceError, listed
from codetr_cli.reading import open_file, parse_json

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
"""File name of the weights in every checkpoint folder and in the cache."""
EXPORTED_SUFFIXES = (".onnx", ".xml", ".engine", ".pt2")
"""Suffixes of exported files: of ONNX, OpenVINO, TensorRT and PyTorch."""
COMPILED_FOLDER = "compiled"
"""Folder in the cache of what torch.compile makes."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MAX_NAME_BYTES = 255
TEMPORARY_NAME = re.compile(r"\.(?P<name>.+)\.(?:(?P<host>[0-9a-f]{8})-)?(?P<pid>\d{1,9})\.tmp", re.DOTALL)
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"  # processes of other machines may share a disk


def cache_dir() -> Path:
    """The folder of downloads and conversions: `CODETR_CACHE`, else ~/.cache/codetr.

    Raises:
        ConfigError: it is in the home folder of an unknown user.
    """
    folder = os.environ.get("CODETR_CACHE")
    return user_path(folder or "~/.cache/codetr", "CODETR_CACHE" if folder else "the default cache")


def user_path(text: str, what: str) -> Path:
    """A path that may start with `~` or `~user`.

    Args:
        text: of the path.
        what: names it in messages.

    Raises:
        ConfigError: there is no such user, or the user has no home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what}, {text}, is in the home folder of a user who has none: give another path") from error


def check_folder(path: Path | None, option: str) -> None:
    """Refuses the path of a folder to write if a file is there, or in the place of a folder above it.

    Args:
        path: the folder, which need not exist; None: not given.
        option: that gives it, for the message.

    Raises:
        ConfigError: a file is in the way.
    """
    for place in () if path is None else (path, *path.parents):
        if os.path.isdir(place):  # noqa: PTH112 (False for names that no folder can have)
            return
        if os.path.exists(place):  # noqa: PTH110
            raise ConfigError(f"{option} {path}: {place} is a file, where a folder is needed: choose another path")


def real_path(path: Path) -> Path:
    """The absolute path without links; `Path.resolve` fails where links lead in a circle, here one of them stays."""
    return Path(os.path.realpath(path))


# -------------------------------------------------------------------------------------------------------------- writing


@contextmanager
def replace_file(
    path: Path, size: int | None = None, *, parents: bool = False, scratch: Path | None = None, sync: bool = True
) -> Iterator[Path]:
    """Writes a file atomically: readers see the old content or the new content, never a part of it.

    Yields a temporary path in the same folder. When the block ends, that file is synced to disk and renamed to `path`;
    a symbolic link there is replaced itself. When the block raises, it is deleted and an existing file at `path` stays
    unchanged. A killed process leaves it behind, as `.NAME.HOST-PID.tmp`, until the same file is written again.

    Args:
        path: the final path.
        size: bytes to be written, for the error message of a full disk; None if unknown.
        parents: whether to create missing parent folders.
        scratch: a folder on the same disk for the temporary file, which its owner clears; None: that of `path`.
        sync: whether the content must survive a power failure.

    Raises:
        ResourceError: no space left, or the file cannot be written.
    """
    # Threads write files of one name, or one start of a long name, through one scratch folder.
    name = path.name if scratch is None else f"{zlib.crc32(os.fsencode(path)):08x}-{path.name}"
    temporary = (scratch or path.parent) / _temporary_name(name)
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        if scratch is None:
            _remove_abandoned(path)
        temporary.unlink(missing_ok=True)
        temporary.touch(exist_ok=False)  # not through a link that somebody has put there
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors creates files that only their owner can read
        if sync:
            rename_synced(temporary, path)
        else:
            temporary.replace(path)
    except Exception as error:
        cause = system_error(error)
        if cause is None or isinstance(error, CodetrError):
            raise
        raise ResourceError(_write_error(path, cause, size)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Writes a folder as a whole: there is none, or the one before, until all of it is written.

    Yields a temporary folder beside it, which is renamed when the block ends and deleted when it raises. The caller
    makes sure that what is at `path` may be replaced. A killed process leaves a `.NAME.HOST-PID.tmp` behind until the
    same folder is written again.

    Args:
        path: the final path; a link to a folder is followed.

    Raises:
        ResourceError: no space left, or the folder cannot be written.
    """
    path = real_path(path)
    temporary, before = (path.with_name(_temporary_name(name)) for name in (path.name, f"{path.name}.before"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        make_way(temporary)
        temporary.mkdir()
        yield temporary
        if os.path.lexists(path):
            path.rename(before)
        try:
            temporary.rename(path)
        except OSError:
            if os.path.lexists(before):
                before.rename(path)
            raise
        make_way(before, ignore_errors=True)
        sync_folder(path.parent)
    except Exception as error:
        cause = system_error(error)
        if cause is None or isinstance(error, CodetrError):
            raise
        raise ResourceError(_write_error(path, cause, None)) from error
    finally:
        make_way(temporary, ignore_errors=True)


def _temporary_name(name: str) -> str:
    end = f".{_HOST}-{os.getpid()}.tmp"
    while len(os.fsencode(name)) + len(end) >= MAX_NAME_BYTES:
        name = name[:-1]
    return f".{name}{end}"


def _remove_abandoned(path: Path) -> None:
    """Deletes what killed processes of this machine have left of a file."""
    start, end = _temporary_name(path.name).rsplit(f"{os.getpid()}", 1)
    with suppress(OSError):
        for entry in path.parent.iterdir():
            if entry.name.startswith(start) and entry.name.endswith(end):
                number = entry.name[len(start) : -len(end)]
                if number.isdecimal() and not _is_running(int(number)):
                    make_way(entry)


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that wrote a temporary file of `replace_file` has ended; of another machine: a day ago."""
    found = TEMPORARY_NAME.fullmatch(temporary.name)
    if found is None:
        return False
    if found["host"] in (None, _HOST):
        return not _is_running(int(found["pid"]))
    with suppress(OSError):
        return time.time() - temporary.lstat().st_mtime > 86_400
    return False


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # where a test of a process would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_text(path: Path, text: str, *, scratch: Path | None = None, errors: str = "backslashreplace") -> None:
    r"""Replaces the text of a file atomically, as UTF-8.

    Args:
        path: the file.
        text: its new content.
        scratch: as in `replace_file`.
        errors: what becomes of the bytes of file names that are not UTF-8: by default they are written as `\udcff`, as
            JSON escapes them; "surrogateescape" keeps them, for a shell.

    Raises:
        ResourceError: no space left, or the file cannot be written.
    """
    with replace_file(path, scratch=scratch) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def restore_bytes(text: str) -> str:
    """Text of a file with the bytes of names that `write_text` has escaped, as Python stands for them in names."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), text)


def rename_synced(source: Path, target: Path) -> None:
    """Renames a file so that name and content survive a power failure."""
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    source.replace(target)
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Flushes the entries of a folder to disk; does nothing on file systems that do not support it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind an exception; None if there is none."""
    while error is not None and not isinstance(error, OSError):
        # PyTorch and safetensors report some of these errors as text only.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        if "No space left" in str(error):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return error


def _write_error(path: Path, error: OSError, size: int | None) -> str:
    if error.errno == errno.EFBIG:
        return (
            f"{path} would be larger than a file may be, by `ulimit -f` or on this disk. Existing files are unchanged: "
            "raise the limit or choose another folder, then run the command again."
        )
    if error.errno not in DISK_FULL:
        return f"cannot write {path}: {error.strerror or error}. Choose another folder or fix its permissions."
    space = ""
    if size is not None:
        with suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            space = f"{size / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free. "
    return (
        f"no space left on the disk while writing {path}. {space}Existing files are unchanged: free some space or "
        "choose another folder, then run the command again."
    )


def make_way(path: Path, *, ignore_errors: bool = False) -> None:
    """Deletes what is in the place of a file or folder of ours, whatever it is; links are not followed.

    A pipe is not opened, as `shutil.rmtree` would do, which then waits for ever.

    Args:
        path: need not exist.
        ignore_errors: delete as far as possible.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    with suppress(OSError) if ignore_errors else nullcontext():
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- results

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
def write_results(path: Path, *, by: str, force: bool = False) -> Iterator[Path]:
    """`write_result` for a file and others that belong to it: none gets its name before all are written.

    Yields a temporary path with the final name, in a folder of its own. All files of that folder are results.

    Args:
        path: the final path of the file; the others get theirs beside it.
        by: the verb.
        force: replace own results.

    Raises:
        ConfigError: there is a file that may not be replaced.
        ResourceError: as of `replace_file`.
    """
    record = ResultRecord(path.parent)
    refuse_taken([path], force=force, record=record)
    scratch = path.with_name(_temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        make_way(scratch)
        scratch.mkdir()
        yield scratch / path.name
        written = sorted(scratch.iterdir(), key=lambda file: file.name == path.name)  # the file itself comes last
        refuse_taken([path.with_name(file.name) for file in written], force=force, record=record)
        for file in written:
            record.add(path.with_name(file.name), file, by=by)
        for file in written:
            rename_synced(file, path.with_name(file.name))
    except Exception as error:
        cause = system_error(error)
        if cause is None or isinstance(error, CodetrError):
            raise
        raise ResourceError(_write_error(path, cause, None)) from error
    finally:
        make_way(scratch, ignore_errors=True)


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
        raise ConfigError(
            f"{listed(protected)} is read-only and is not replaced: give another name, or allow to write it (chmod u+w)"
        )
    if own and not force:
        kept = [path for path in own if not (record or ResultRecord(path.parent)).is_own(path, request=request or None)]
        if kept or not request:
            raise ConfigError(f"{listed(kept or own)} already exists: give another name, or replace it with --force")


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
