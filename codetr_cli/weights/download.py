"""Downloads files over HTTP: resumes interrupted downloads, verifies size and SHA-256, and renames complete files.

A file is written to its name plus `.part` and renamed after verification. The part of an interrupted download is kept
for the next attempt, and deleted if the file on the server has changed.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import json
import re
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from codetr_cli.errors import CheckpointError, ConfigError, ResourceError, StoppedError
from codetr_cli.files import DISK_FULL, FileLock, rename_synced

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0
SPARE_BYTES = 64 << 20  # to remain free on the disk
# A plain import would make this module depend on what the package exports to Python users.
VERSION: str = importlib.import_module("codetr_cli").__version__
# Publishers put the first digits of the SHA-256 before the suffix, as torch.hub does.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
# Characters of a URL that are not escaped; spaces and characters beyond ASCII are.
URL_SAFE = ":/?#[]@!$&'()*+,;=%~"

DownloadProgress = Callable[[int, int | None], None]
"""Called with the bytes downloaded and the bytes of the whole file, None if the server does not report them."""


@dataclass(frozen=True)
class Remote:
    """A published file.

    Args:
        url: http or https URL of the file itself.
        filename: its local name.
        bytes: exact size; None if unknown.
        sha256: of the file, complete or its first digits; None if unknown.
    """

    url: str
    filename: str
    bytes: int | None = None
    sha256: str | None = None

    @classmethod
    def from_url(
        cls, url: str, *, filename: str | None = None, bytes: int | None = None, sha256: str | None = None
    ) -> Remote:
        """A file by its URL. Name and hash default to the name in the URL and the digits of the hash in that name.

        Raises:
            ConfigError: not an http or https URL of a file.
        """
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"{url} is not a valid URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"{url} cannot be downloaded: the URL must start with https:// or http://")
        last = Path(unquote(parts.path)).name
        if last == ".." or not last.isprintable():
            raise ConfigError(f"{url} does not end with a file name: give the URL of the weights themselves")
        if not (filename or last):
            raise ConfigError(f"{url} has no file name: give the URL of the weights themselves")
        digits = HASH_IN_NAME.search(last)
        url = quote(url, safe=URL_SAFE)
        return cls(url, filename or last, bytes, sha256 or (digits[1] if digits else None))


class _InterruptedError(Exception):
    """A transfer ended before the end of the file, for the reason in the message. Another attempt can succeed."""


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


def fetch(
    remote: Remote, target: Path, *, force: bool = False, copies: int = 1, progress: DownloadProgress | None = None
) -> Path:
    """Downloads a file unless it exists.

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
        verify(target, remote, advice="Remove it, or download it again with --force.")
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part):
            _complete(remote, target, part, copies, progress or (lambda done, total: None))
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


def verify(path: Path, remote: Remote, *, advice: str) -> None:
    """Verifies size and hash of a file; `advice` is the last sentence of the error message.

    Raises:
        CheckpointError: another file, truncated or damaged.
    """
    size = path.stat().st_size
    if remote.bytes is not None and size != remote.bytes:
        raise CheckpointError(f"{path} has {size} bytes, the published file has {remote.bytes}. {advice}")
    if remote.sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(remote.sha256):
            raise CheckpointError(
                f"{path} has the SHA-256 {found}, the published file has {remote.sha256}: it is damaged or another "
                f"file. {advice}"
            )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise ResourceError(
            f"{folder} has {_megabytes(free)} free and {_megabytes(needed + SPARE_BYTES)} are needed: free some space, "
            "or set CODETR_CACHE to a folder on a larger disk."
        )


def _complete(remote: Remote, target: Path, part: Path, copies: int, progress: DownloadProgress) -> None:
    """Completes the part, verifies it, and renames it to the target."""
    best = part.stat().st_size
    from_start = best == 0
    while True:
        try:
            _transfer(remote, part, copies, progress)
        except _InterruptedError as error:
            size = part.stat().st_size
            if size > best:
                best = size
            elif size == 0 and not from_start:  # the part was not of the server's file
                best, from_start = 0, True
            else:  # no progress: give up
                again = f" {_megabytes(size)} are kept: run the same command again to continue." if size else ""
                raise ResourceError(
                    f"cannot download {remote.url}: {str(error).rstrip('.')}.{again} Without a connection, copy the "
                    f"file from another machine to {target}"
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
    rename_synced(part, target)
    _validator_path(part).unlink(missing_ok=True)


def _transfer(remote: Remote, part: Path, copies: int, progress: DownloadProgress) -> None:
    """Requests the missing bytes once and appends the response."""
    have = part.stat().st_size
    if have and have == remote.bytes:
        return
    validator = _saved_validator(part, remote.url)
    if have and validator is None:
        _discard(part)  # of another URL, or of a server that does not report whether its file has changed
        have = 0
    headers = {"User-Agent": f"codetr/{VERSION}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(validator)}
    response = _open(urllib.request.Request(remote.url, headers=headers), part)
    if response is None:
        return
    with response:
        start = _start_of(response, have)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        _check_response(remote, response, total)
        _check_space(part.parent, max((total or 0) * copies - start, 0))
        _save_validator(part, remote.url, response)
        with part.open("rb+") as file:
            file.truncate(start)
            file.seek(start)
            done = start
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    if total is not None and done != total:
        raise _InterruptedError(f"the connection ended after {_megabytes(done)} of {_megabytes(total)}")


def _open(request: urllib.request.Request, part: Path) -> Any:
    """The server's response; None if no bytes are missing."""
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise ResourceError(_status_text(request.full_url, error.code, error.reason)) from error
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if whole != str(part.stat().st_size):
            _discard(part)
            raise _InterruptedError("the server's file is smaller than the part that was downloaded before") from None
        return None
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(_reason(error)) from error


def _start_of(response: Any, have: int) -> int:
    """The file offset at which the response starts; 0 if the server sends the whole file."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    if not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
        raise _InterruptedError("the server sent another range of the file than requested")
    return have


def _check_response(remote: Remote, response: Any, total: int | None) -> None:
    """Refuses a response that cannot be the file, before reading it."""
    if remote.url.lower().startswith("https:") and not response.url.lower().startswith("https:"):
        # Not every published file has a known hash: without encryption it could be replaced on the way.
        raise ResourceError(
            f"{remote.url} redirects to {response.url}, which is not encrypted: nothing was downloaded. Give "
            "another URL with --url, or download it manually."
        )
    if response.headers.get_content_type() == "text/html":
        raise CheckpointError(
            f"{remote.url} returns a web page instead of a file: it may require a login or a confirmation. "
            "Give the URL of the file itself with --url, or download it manually."
        )
    if None not in (total, remote.bytes) and total != remote.bytes:
        raise CheckpointError(
            f"{remote.url} has {total} bytes, the published file has {remote.bytes}: it was replaced or is another "
            "file. Nothing was downloaded; give another URL with --url."
        )


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except http.client.IncompleteRead as error:
            yield error.partial
            raise _InterruptedError("the connection ended") from error
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedError(_reason(error)) from error
        if not chunk:
            return
        yield chunk


def _validator_path(part: Path) -> Path:
    """A file beside the part with the URL and the validator (ETag or Last-Modified) of the server's file."""
    return part.with_name(part.name + ".json")


def _saved_validator(part: Path, url: str) -> str | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        saved = json.loads(_validator_path(part).read_text(encoding="utf-8"))
        if saved["url"] == url:
            return str(saved["validator"])
    return None


def _save_validator(part: Path, url: str, response: Any) -> None:
    """Saves the validator; without a strong one, an interrupted download restarts from the beginning."""
    etag = response.headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    if validator is None:
        _validator_path(part).unlink(missing_ok=True)
    else:
        _validator_path(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _discard(part: Path) -> None:
    part.write_bytes(b"")
    _validator_path(part).unlink(missing_ok=True)


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Prevents a second process from writing to the same part; removes an empty part at the end."""
    lock = FileLock(part.with_name(part.name + ".lock"))
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


def _status_text(url: str, code: int, reason: str) -> str:
    if code == http.client.TOO_MANY_REQUESTS or code >= 500:
        return f"{url} returns {code} {reason}: the server is busy or fails. Try again later."
    return (
        f"{url} returns {code} {reason}: the file does not exist or is not public. Give another URL with --url, or "
        "download it manually."
    )


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} seconds"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
