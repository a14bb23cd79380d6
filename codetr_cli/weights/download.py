"""Downloads files over HTTP: resumes interrupted downloads, verifies size and SHA-256, and renames complete files.

A file is written to its name plus `.part` and renamed after verification. The part of an interrupted download is kept
for the next attempt, and deleted if the file on the server has changed. A receipt beside the file holds its state: a
file that was damaged or changed afterwards is downloaded again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import re
import shutil
import signal
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.errors import CheckpointError, ResourceError, StoppedError
from codetr_cli.files import DISK_FULL, make_way, rename_synced
from codetr_cli.locks import FileLock
from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.receipts import write_receipt
from codetr_cli.weights.connection import TransferWatch, connection_error, open_url
from codetr_cli.weights.remote import HEADERS, MAX_VALIDATOR, Remote, doubt_path, is_validator, problem_of, verify

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
MAX_BYTES = 32 << 30
"""Limit for a file of unknown size; the largest published one has 3 GB."""
SPARE_BYTES = 64 << 20  # to remain free on the disk
MAX_SHORT_ATTEMPTS = 10
"""Attempts that bring less than `CHUNK_BYTES` each."""
DownloadProgress = Callable[[int, int | None], None]
"""Called with the bytes downloaded and the bytes of the whole file, None if the server does not report them."""


class _InterruptedError(Exception):
    """A transfer ended before the end of the file, for the reason in the message. Another attempt can succeed."""


def fetch(
    remote: Remote, target: Path, *, force: bool = False, copies: int = 1, progress: DownloadProgress | None = None
) -> Path:
    """Downloads a file unless it exists and is as it was downloaded.

    Args:
        remote: URL, size and hash of the file.
        target: the local path; missing folders are created.
        force: download an existing file again; the old file is kept until the new one is complete.
        copies: how many times the file must fit on the disk, e.g. 2 if it is converted afterwards.
        progress: called after every megabyte.

    Returns:
        the target.

    Raises:
        CheckpointError: size or hash differ from the published ones, or the server returned a web page.
        ResourceError: no connection, a status such as 404, no space left, or the folder cannot be written.
        StoppedError: Ctrl-C; the part is kept for the next attempt.
    """
    if target.is_file() and not force:
        problem = problem_of(remote, target)
        if not problem:
            return target
        logger.warning("%s %s: it is downloaded again", target, problem)
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part), TransferWatch() as watch:
            _complete(_Download(remote, part, copies, progress or (lambda done, total: None), watch), target)
    except KeyboardInterrupt:
        kept = part.stat().st_size if part.exists() else 0
        raise StoppedError(
            f"download of {remote.filename} stopped: {_megabytes(kept)} are kept in {part}. "
            "Run the same command again to continue.",
            signal.SIGINT,
        ) from None
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"no space left on the disk while downloading {target}: free some space, or set CODETR_CACHE to a "
                "folder on a larger disk, then run the command again. The downloaded part is kept."
            ) from error
        raise ResourceError(
            f"cannot write {target}: {error.strerror or error}. Fix its permissions, or set CODETR_CACHE to another "
            "folder."
        ) from error
    return target


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise ResourceError(
            f"{folder} has {_megabytes(free)} free and {_megabytes(needed + SPARE_BYTES)} are needed: free some space, "
            "or set CODETR_CACHE to a folder on a larger disk."
        )


@dataclass(frozen=True)
class _Download:
    """What one download needs: arguments of `fetch`, the part, and the watch over its connections."""

    remote: Remote
    part: Path
    copies: int
    progress: DownloadProgress
    watch: TransferWatch

    @property
    def limit(self) -> int:
        """The most bytes that the file may have."""
        return self.remote.bytes or MAX_BYTES


def _complete(download: _Download, target: Path) -> None:
    """Completes the part, verifies it, and renames it to the target."""
    remote, part = download.remote, download.part
    best = part.stat().st_size
    from_start, short_attempts = best == 0, 0
    while True:
        try:
            _transfer(download)
        except _InterruptedError as error:
            size = part.stat().st_size
            short_attempts += size - best < CHUNK_BYTES
            ended = download.watch.reason or short_attempts > MAX_SHORT_ATTEMPTS
            if size > best and not ended:
                best = size
            elif size == 0 and not from_start and not ended:  # the part was not of the server's file
                best, from_start = 0, True
            else:  # no progress: give up
                again = f" {_megabytes(size)} are kept: run the same command again to continue." if size else ""
                reason = (download.watch.reason or str(error)).rstrip(".")
                raise ResourceError(
                    f"cannot download {remote.shown}: {reason}.{again} Without a connection, copy the file from "
                    f"another machine to {target}"
                ) from error
            continue
        try:
            verify(part, remote, advice="It was deleted: check the URL, then download it again.")
            break
        except CheckpointError:
            _discard(part)
            if from_start:
                raise
            best, from_start = 0, True  # the part may have been of another file: download it once more
    validator = _saved_validator(part, remote.url)
    rename_synced(part, target)
    write_receipt(target, url=remote.shown, **({"validator": validator} if validator else {}))
    for path in (_validator_path(part), doubt_path(target)):
        make_way(path)


def _transfer(download: _Download) -> None:
    """Requests the missing bytes once and appends the response."""
    remote, part = download.remote, download.part
    have = part.stat().st_size
    if have and have == remote.bytes:
        return
    validator = _saved_validator(part, remote.url)
    if have and validator is None:
        _discard(part)  # of another URL, or of a server that does not report whether its file has changed
        have = 0
    headers = {**HEADERS, **({"Range": f"bytes={have}-", "If-Range": str(validator)} if have else {})}
    response = _open(download, headers)
    if response is None:
        return
    with response:
        start, total = _extent(response, have)
        _check_response(download, response, total)
        _check_space(part.parent, max((total or 0) * download.copies - start, 0))
        _save_validator(part, remote.url, response)
        with part.open("rb+") as file:
            file.truncate(start)
            file.seek(start)
            done = start
            for chunk in _chunks(response, download.watch):
                done += len(chunk)
                if done > download.limit:
                    _discard(part)
                    raise CheckpointError(_too_large(download, f"more than {download.limit:,} bytes"))
                if total is None:
                    _check_space(part.parent, len(chunk))
                file.write(chunk)
                download.progress(done, total)
    if total is not None and done != total:
        raise _InterruptedError(f"the connection ended after {_megabytes(done)} of {_megabytes(total)}")


def _open(download: _Download, headers: dict[str, str]) -> http.client.HTTPResponse | None:
    """The server's response; None if no bytes are missing."""
    remote, part = download.remote, download.part
    try:
        response = open_url(remote.url, headers, download.watch)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise ResourceError(_status_text(remote.shown, error.code)) from None
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if whole != str(part.stat().st_size):
            _discard(part)
            raise _InterruptedError("the server's file is smaller than the part that was downloaded before") from None
        return None
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last one of a proxy that has no name
        raise _InterruptedError(connection_error(error)) from error
    if response.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
        response.close()
        raise ResourceError(_status_text(remote.shown, response.status))
    return response


def _extent(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """The file offset at which the response starts, and the size of the whole file, None if unknown."""
    length = response.length
    if response.status != http.client.PARTIAL_CONTENT:
        return 0, length
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range") or "")
    first, last = (int(found[1]), int(found[2])) if found else (-1, -1)
    total = int(found[3]) if found and found[3] != "*" else None
    fits = first == have <= last and (total is None or last < total)
    if not fits or (length is not None and length != last + 1 - first):
        raise _InterruptedError("the server sent another range of the file than requested")
    return have, total


def _check_response(download: _Download, response: http.client.HTTPResponse, total: int | None) -> None:
    """Refuses a response that cannot be the file, before reading it."""
    remote = download.remote
    if response.headers.get_content_type() == "text/html":
        raise CheckpointError(
            f"{remote.shown} returns a web page instead of a file: it may require a login or a confirmation. "
            "Give the URL of the file itself with --url, or download it manually."
        )
    if (response.headers.get("Content-Encoding") or "identity").strip().lower() not in ("identity", "none", "binary"):
        raise CheckpointError(
            f"{remote.shown} is compressed on the way, which codetr did not ask for. Give the URL of the file itself "
            "with --url, or download it manually."
        )
    if total is not None and remote.bytes is not None and total != remote.bytes:
        raise CheckpointError(
            f"{remote.shown} has {total} bytes, the published file has {remote.bytes}: it was replaced or is another "
            "file. Nothing was downloaded; give another URL with --url."
        )
    if total is not None and total > download.limit:
        raise CheckpointError(_too_large(download, f"{total:,} bytes"))


def _too_large(download: _Download, size: str) -> str:
    known = download.remote.bytes
    limit = f"the published file has {known:,}" if known else f"the limit for weights of unknown size is {MAX_BYTES:,}"
    return f"{download.remote.shown} has {size}, {limit}: it is another file. Nothing was kept; check the URL."


def _chunks(response: http.client.HTTPResponse, watch: TransferWatch) -> Iterator[bytes]:
    """The content in pieces of `CHUNK_BYTES`; also what came before an interruption."""
    pieces, size = [], 0
    try:
        # One read of the socket at a time: the watch must see every byte, not every megabyte.
        while piece := response.read1(CHUNK_BYTES - size):
            watch.add(len(piece))
            pieces.append(piece)
            size += len(piece)
            if size == CHUNK_BYTES:
                yield b"".join(pieces)
                pieces, size = [], 0
    except (OSError, http.client.HTTPException) as error:
        reason = "the connection ended" if isinstance(error, http.client.IncompleteRead) else connection_error(error)
        yield b"".join(pieces)
        raise _InterruptedError(reason) from error
    yield b"".join(pieces)
    if watch.reason:
        raise _InterruptedError(watch.reason)


def _validator_path(part: Path) -> Path:
    """A file beside the part with a digest of the URL and the validator of the server's file: ETag or Last-Modified."""
    return part.with_name(part.name + ".json")


def _url_digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()  # a URL may hold credentials


def _saved_validator(part: Path, url: str) -> str | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        saved = parse_json(read_bytes(_validator_path(part), 2 * MAX_VALIDATOR))
        if saved["url_sha256"] == _url_digest(url) and is_validator(saved["validator"]):
            return str(saved["validator"])
    return None


def _save_validator(part: Path, url: str, response: http.client.HTTPResponse) -> None:
    """Saves the validator; without a strong one, an interrupted download restarts from the beginning."""
    etag = response.headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    if validator is None or not is_validator(validator):
        _validator_path(part).unlink(missing_ok=True)
    else:
        text = json.dumps({"url_sha256": _url_digest(url), "validator": validator})
        _validator_path(part).write_text(text, encoding="utf-8")


def _discard(part: Path) -> None:
    part.write_bytes(b"")
    _validator_path(part).unlink(missing_ok=True)


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Prevents a second process from writing to the same part; removes an empty part at the end."""
    lock = FileLock(part.with_name(part.name + ".lock"))
    for path in (part, _validator_path(part), lock.path):
        if path.is_symlink() or not path.is_file():
            make_way(path)  # a pipe would wait for ever, and a link lead elsewhere
    if not lock.acquire():
        raise ResourceError(f"another codetr is downloading {part}: wait for it, or stop it.")
    try:
        part.touch()
        yield
    finally:
        with suppress(OSError):
            if part.stat().st_size == 0:
                part.unlink()
        lock.release(remove=True)


def _status_text(url: str, code: int) -> str:
    # Not the server's phrase, which may be anything.
    known = {status.value: f" {status.phrase}" for status in http.HTTPStatus}
    status = f"{code}{known.get(code, '')}"
    if code == http.client.TOO_MANY_REQUESTS or code >= 500:
        return f"{url} returns {status}: the server is busy or fails. Try again later."
    return (
        f"{url} returns {status}: the file does not exist or is not public. Give another URL with --url, or download "
        "it manually."
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
