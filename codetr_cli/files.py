"""Files: what is written appears as a whole or not at all, and where the cache is.

The rule of what may be replaced is that of `result_files`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from codetr_cli.errors import CodetrError, ConfigError, ResourceError

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
        with _worded(path, size):
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
    before = path.with_name(_temporary_name(f"{path.name}.before"))
    with scratch_folder(path) as temporary:
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


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside a path, for what is renamed inside the block, and deletes it at the end.

    A killed process leaves it behind, as `.NAME.HOST-PID.tmp`, until there is one for the same path again.

    Args:
        path: the final path of what is written.

    Raises:
        ResourceError: no space left, or the folder cannot be written.
    """
    folder = path.with_name(_temporary_name(path.name))
    try:
        with _worded(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path)
            make_way(folder)
            folder.mkdir()
            yield folder
    finally:
        make_way(folder, ignore_errors=True)


@contextmanager
def _worded(path: Path, size: int | None = None) -> Iterator[None]:
    """Turns an error of the system that ends the writing of a path into one that says what to do."""
    try:
        yield
    except Exception as error:
        cause = system_error(error)
        if cause is None or isinstance(error, CodetrError):
            raise
        raise ResourceError(_write_error(path, cause, size)) from error


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
    sync_file(source)
    source.replace(target)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Flushes the content of a file to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


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
