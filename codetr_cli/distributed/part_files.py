"""Results of a command in part files of its output folder, so that the work that was done survives the process.

The parts are in a hidden folder beside the results and belong to one request; another request takes another folder. A
file is written under a temporary name and renamed, so that a kill at any instant leaves only whole parts. Each process
merges its files from time to time; a kill between leaves parts twice, of which the second is ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from codetr_cli import __version__
from codetr_cli.distributed.part_frames import Frame, Part, encode_part, frames, read_part, read_part_at
from codetr_cli.errors import CodetrError, ConfigError, DatasetError, ResourceError
from codetr_cli.files import make_way, replace_file, write_text
from codetr_cli.locks import FileLock
from codetr_cli.reading import open_file, parse_json, read_bytes
from codetr_cli.result_files import ResultRecord, free_folder, numbered

logger = logging.getLogger(__name__)

FOLDER = ".parts"
REQUEST_NAME = "request.json"
SUFFIX = ".part"
LOCK_NAME = ".lock"
MAX_REQUEST_BYTES = 1 << 16
MERGED_FILES = 32
"""A process makes one file of so many: a long run would have a file for every few seconds."""
MAX_MERGED_BYTES = 1 << 28
LOCK_PATIENCE_S = 10.0  # for the processes of a launcher that has just been killed


class PartFiles:
    """The part files in an output folder.

    Args:
        folder: the output folder, unless `open` gets another one.
        inputs: the files that the results of a unit depend on.
        check: raises any exception for a part whose content is not what the command packs for its units.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Callable[[int], Sequence[Path]],
        check: Callable[[Part], object] = lambda part: None,
    ) -> None:
        self.folder, self._inputs, self._check = folder, inputs, check
        self._lock: FileLock | None = None
        self._written: list[list[Path]] = [[]]  # files of this process that are not merged yet, once, twice, ...

    @property
    def path(self) -> Path:
        """Of the parts."""
        return self.folder / FOLDER

    def open(self, request: str, choose: Callable[[], Path] | None = None) -> None:
        """Locks the folder and discards parts that failed, of other requests, or of changed files; for one process.

        Args:
            request: name of the request, see `request_digest`.
            choose: gives the output folder, see `output_folder`; asked again once it is locked, as another command may
                have finished there.

        Raises:
            ConfigError: another command writes into the folder.
            ResourceError: the folder cannot be read or written.
        """
        wanted = self.folder
        try:
            self.folder = choose() if choose else self.folder
            self._acquire()
            while choose and (chosen := choose()) != self.folder:
                self.close(remove=False)
                self.folder = chosen
                self._acquire()
            self._discard(request)
            self._clear_completed(wanted)
        except OSError as error:
            self.close(remove=False)
            raise ResourceError(
                f"cannot use {error.filename or self.path}: {error.strerror or error}. Choose another folder with "
                "--out or fix its permissions."
            ) from error
        if self.folder != wanted and has_other_parts(wanted, request):
            logger.info(
                "%s has the results so far of a stopped command with other options or weights, which can continue. "
                "The results of this one are in %s.",
                *(wanted, self.folder),
            )

    def _clear_completed(self, wanted: Path) -> None:
        """Deletes what is left of the parts of complete results, after a kill in that moment."""
        for folder in numbered(wanted):
            other = PartFiles(folder, self._inputs)
            # Not by methods of Path, which raise an error for a folder that only somebody else may read.
            if folder == self.folder or os.path.islink(other.path) or not os.path.isdir(other.path):  # noqa: PTH112, PTH114
                continue
            if os.access(other.path, os.X_OK) and not os.path.lexists(other.path / REQUEST_NAME):
                with suppress(OSError, ConfigError):
                    other._acquire(0.0)
                    other.close(remove=True)

    def _acquire(self, patience_s: float | None = None) -> None:
        while True:
            if self.path.is_symlink():  # what it points to is not ours to delete
                raise ConfigError(f"{self.path} is a symbolic link: remove it, or give another folder with --out")
            if os.path.lexists(self.path) and not self.path.is_dir():
                make_way(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK_NAME)
            if os.path.lexists(lock.path) and (lock.path.is_symlink() or not lock.path.is_file()):
                make_way(lock.path)
            try:
                acquired = lock.acquire(LOCK_PATIENCE_S if patience_s is None else patience_s)
            except FileNotFoundError:
                continue  # another command has just finished and removed the folder
            if not acquired:
                raise ConfigError(
                    f"another command is writing into {self.folder}: wait for it or stop it, or give another folder "
                    "with --out"
                )
            self._lock = lock
            return

    def _discard(self, request: str) -> None:
        if not has_parts(self.folder, request):
            found = self._files()
            if any(path.suffix == SUFFIX for path in found):
                logger.info("The results so far in %s are of other options or weights: starting again", self.folder)
            for path in found:
                make_way(path)
            write_text(self.path / REQUEST_NAME, json.dumps({"request": request}) + "\n")
        self._written = [[]]
        for path in list(self.path.glob(f"*{SUFFIX}")):
            self._keep_good(path)

    def _keep_good(self, path: Path) -> None:
        """Discards the parts of a file that cannot be used."""
        kept, problems = [], []
        try:
            with open_file(path) as file:
                for frame in frames(file):
                    problem = self._problem(file, frame)
                    problems += [] if problem is None else [problem]
                    kept += [frame] if problem is None else []
        except OSError as error:
            problems.append(error.strerror or str(error))
        except ValueError as error:
            problems.append(str(error))
        if not problems:
            return
        if any(problems):
            damage = next(filter(None, problems))
            logger.warning("%s is damaged (%s): its results are computed again", path, damage)
        if kept:
            with open_file(path) as file, self._new_file() as temporary, temporary.open("wb") as copy:
                for frame in kept:
                    file.seek(frame.start)
                    copy.write(file.read(frame.end - frame.start))
        make_way(path)

    def _problem(self, file: BufferedReader, frame: Frame) -> str | None:
        """Why a part cannot be used: empty if its units failed or their files have changed; None if it can."""
        try:
            part = read_part(file, frame.start)
            if part.failed or part.inputs != self._state(part.units):
                return ""
            self._check(part)
        except OSError as error:
            return error.strerror or str(error)
        except ValueError as error:
            return str(error)
        except Exception as error:  # of any kind, while the content was unpacked
            return f"its content is not a result: {type(error).__name__}"
        return None

    def _files(self) -> list[Path]:
        """The files in the folder that this class writes: first the request, without which the others are nothing."""
        kept = [path for path in self.path.iterdir() if path.name == REQUEST_NAME or path.suffix in (SUFFIX, ".tmp")]
        return sorted(kept, key=lambda path: path.name != REQUEST_NAME)

    def add(self, part: Part) -> None:
        """Writes a part; any process may, after one has opened the folder.

        Raises:
            ResourceError: no space left, or the folder cannot be written.
        """
        with self._new_file() as temporary:
            temporary.write_bytes(encode_part(replace(part, inputs=self._state(part.units))))
        self._merge(self._newest, 0)

    @contextmanager
    def _new_file(self) -> Iterator[Path]:
        self._newest = self.path / f"{uuid.uuid4().hex}{SUFFIX}"
        with replace_file(self._newest, scratch=self.path) as temporary:
            yield temporary

    def _merge(self, path: Path, times: int) -> None:
        """Makes one file of this process's files that were merged so many times, if they are many and small."""
        self._written += [[]] if times == len(self._written) else []
        files = self._written[times]
        files.append(path)
        if len(files) < MERGED_FILES:
            return
        self._written[times] = []
        try:
            if sum(file.stat().st_size for file in files) > MAX_MERGED_BYTES:
                return
            with self._new_file() as temporary, temporary.open("wb") as merged:
                for file in files:
                    with open_file(file) as part:
                        shutil.copyfileobj(part, merged, 1 << 20)
            for file in files:
                file.unlink()
        except (OSError, ResourceError):  # no space for a copy, for example: the files can stay as they are
            return
        self._merge(self._newest, times + 1)

    def units(self) -> Iterator[list[int]]:
        """The units of each part, in any order, by their headers."""
        for path in self.path.glob(f"*{SUFFIX}"):
            with suppress(ValueError, OSError), open_file(path) as file:
                for frame in frames(file):
                    yield frame.units

    def read(self) -> Iterator[Part]:
        """All parts, one by one, in the order of their first units; without those that the disk has damaged.

        A part that another process merges meanwhile may be missing.
        """
        found: list[tuple[int, Path, int]] = []
        for path in self.path.glob(f"*{SUFFIX}"):
            with suppress(ValueError, OSError), open_file(path) as file:
                found += [(frame.units[0] if frame.units else -1, path, frame.start) for frame in frames(file)]
        seen: list[tuple[bool, list[int]]] = []  # of the parts with the same first unit
        for first, path, start in sorted(found):
            with suppress(ValueError, OSError):
                part = read_part_at(path, start)
                seen = seen if seen and seen[0][1][:1] == [first] else []
                if (part.failed, part.units) not in seen:
                    seen.append((part.failed, part.units))
                    yield part

    def close(self, *, remove: bool) -> None:
        """Releases the folder.

        Args:
            remove: the results are complete: delete all parts. Otherwise they are kept, for the same request; without
                any part nor other files in the output folder, there is nothing to keep.
        """
        if self._lock is None:
            return
        with suppress(OSError):
            begun = (self.path / REQUEST_NAME).exists() and any(path != self.path for path in self.folder.iterdir())
            remove = remove or not (begun or any(self.path.glob(f"*{SUFFIX}")))
        if remove:
            # As long as the folder is locked, and the lock last: what another command writes after that stays.
            with suppress(OSError):
                for path in self._files():
                    make_way(path)
        self._lock.release(remove=remove)
        self._lock = None
        if remove:
            with suppress(OSError):
                self.path.rmdir()

    def _state(self, units: Sequence[int]) -> str:
        return request_digest(files=[_file_state(path) for unit in units for path in self._inputs(unit)])


def output_folder(
    folder: Path,
    *markers: str | Path,
    request: str,
    force: bool,
    taken: Callable[[Path], bool] = lambda path: False,
) -> Path:
    """The output folder of a request: the one where it continues, else the first free one of folder, folder_2, ...

    Args:
        folder: the one that the user wants.
        markers: files of earlier results: a folder with one of them is not free, nor one with parts of another request.
        request: its name.
        force: own results in the folder do not matter; files that codetr did not make do.
        taken: whether a folder is not free for another reason.
    """
    if not force:
        for candidate in numbered(folder):
            record = ResultRecord(candidate)
            if has_parts(candidate, request) and all(
                record.may_write(candidate / marker, request=request) for marker in markers
            ):
                return candidate
    return free_folder(folder, *markers, force=force, taken=lambda path: taken(path) or has_other_parts(path, request))


def has_parts(folder: Path, request: str) -> bool:
    """Whether an output folder is that of a request, as named by `request_digest`, that is not complete."""
    return _request_of(folder) == request


def has_other_parts(folder: Path, request: str) -> bool:
    """Whether an output folder has parts of another request."""
    return _request_of(folder) not in (None, request) and any((folder / FOLDER).glob(f"*{SUFFIX}"))


@contextmanager
def unpacking(parts: PartFiles) -> Iterator[None]:
    """Turns what unpacking the content of parts raises into an error that names their folder.

    Raises:
        DatasetError: the content is not what was packed, although its checksum is right.
    """
    try:
        yield
    except CodetrError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{parts.path} has results that codetr has not written ({type(error).__name__}): remove it and run "
            "the same command again"
        ) from error


def _request_of(folder: Path) -> str | None:
    """The request whose parts are in an output folder."""
    try:
        found = parse_json(read_bytes(folder / FOLDER / REQUEST_NAME, MAX_REQUEST_BYTES))
    except (OSError, ValueError):
        return None
    request = found.get("request") if isinstance(found, dict) else None
    return request if isinstance(request, str) else None


def request_digest(**what: Any) -> str:
    """A name of a request: equal only for equal values, and for the same version of the program.

    Args:
        what: everything that the results depend on: plain values; paths stand for a file's place, size and time.
    """
    text = json.dumps({"version": __version__, **_plain(what)}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _plain(what: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _file_state(value) if isinstance(value, Path) else value for name, value in what.items()}


def _file_state(path: Path) -> list[Any]:
    """Place, size and time of a file; its place alone if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return [str(path.absolute())]
    beside = {".xml": path.with_suffix(".bin"), ".onnx": path.with_name(f"{path.name}.data")}.get(path.suffix)
    weights = _file_state(beside)[1:] if beside is not None else []  # of an exported file
    return [str(path.absolute()), found.st_size, found.st_mtime_ns, *weights]
