"""Fetches files over HTTP: continued where they broke off, checked, and put in place only when they are whole.

A file grows under its name plus `.part`; it gets its own name after its size and SHA-256 were compared, by one rename.
What is there of a broken download stays for the next try, and is thrown away where the server's file is another one.
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
SPARE_BYTES = 64 << 20  # left free on the disk beside what is written
# The package offers names of upper rooms; importing from it would tie this room to them.
VERSION: str = importlib.import_module("codetr_cli").__version__
# Publishers write the first digits of the SHA-256 before the ending, as torch.hub reads them.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
# Of an address as a person writes it: letters beyond ASCII and spaces are escaped, what has a meaning stays.
AS_THEY_ARE = ":/?#[]@!$&'()*+,;=%~"

Progress = Callable[[int, int | None], None]
"""Told of bytes that are there and bytes of the whole file, None when the server does not say."""


@dataclass(frozen=True)
class Remote:
    """A published file.

    Args:
        url: http or https address of the file itself.
        filename: its name on this machine.
        bytes: exact size; None when not known.
        sha256: of the file, whole or its first digits; None when not known.
    """

    url: str
    filename: str
    bytes: int | None = None
    sha256: str | None = None

    @classmethod
    def at(
        cls, url: str, *, filename: str | None = None, bytes: int | None = None, sha256: str | None = None
    ) -> Remote:
        """A file by its address. What is not given is read off it: the name, and the digits of the hash in the name.

        Raises:
            ConfigError: no http or https address of a file.
        """
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"{url} is no address: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(
                f"{url} is no address that can be downloaded from: it must start with https:// or http://"
            )
        last = Path(unquote(parts.path)).name
        if last == ".." or not last.isprintable():
            raise ConfigError(f"{url} ends in no name that a file can have: give the address of the weights themselves")
        if not (filename or last):
            raise ConfigError(f"{url} names a site and no file: give the address of the weights themselves")
        told = HASH_IN_NAME.search(last)
        url = quote(url, safe=AS_THEY_ARE)
        return cls(url, filename or last, bytes, sha256 or (told[1] if told else None))


class _BrokenError(Exception):
    """A transfer ended before the file did; the message says why. Trying again can help."""


def is_url(text: str) -> bool:
    """Whether a text is meant as an address and not as a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


def fetch(
    remote: Remote, target: Path, *, force: bool = False, copies: int = 1, progress: Progress | None = None
) -> Path:
    """Downloads a file, unless it is there already.

    Args:
        remote: what, and what is known of it.
        target: where it goes; missing folders are made.
        force: download it anew even if it is there; the old file stays until the new one is whole.
        copies: how often the disk must hold the file, e.g. 2 when it is converted afterwards.
        progress: told about every megabyte.

    Returns:
        the target.

    Raises:
        CheckpointError: size or hash are not the published ones, or a web page came instead of a file.
        ConfigError: the address is not one of http or https.
        ResourceError: no connection, an answer such as 404, no space left, or the folder cannot be written.
        StoppedError: Ctrl-C; what is there is kept for the next try.
    """
    if target.is_file() and not force:
        verify(target, remote, advice="Remove it, or download it again with --force.")
        return target
    part = _part(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part):
            _complete(remote, target, part, copies, progress or _silent)
    except KeyboardInterrupt:
        kept = part.stat().st_size if part.exists() else 0
        raise StoppedError(
            f"stopped the download of {remote.filename}: {_megabytes(kept)} are kept in {part}. "
            "Run the same command again to continue.",
            signal.SIGINT,
        ) from None
    except OSError as error:
        raise _disk_error(target, error) from error
    return target


def verify(path: Path, remote: Remote, *, advice: str) -> None:
    """Compares a file with what is known of it.

    Args:
        path: the file.
        remote: the size and hash it should have.
        advice: what to do when it does not.

    Raises:
        CheckpointError: it is another one, cut short or damaged.
    """
    size = path.stat().st_size
    if remote.bytes is not None and size != remote.bytes:
        raise CheckpointError(f"{path} has {size} bytes where the published file has {remote.bytes}. {advice}")
    if remote.sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(remote.sha256):
            raise CheckpointError(
                f"{path} has the SHA-256 {found} where the published file has {remote.sha256}: it is damaged or "
                f"another file. {advice}"
            )


def check_space(folder: Path, needed: int) -> None:
    """Refuses to begin what the disk cannot hold.

    Raises:
        ResourceError: fewer bytes are free in the folder's file system.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise ResourceError(
            f"{folder} has {_megabytes(free)} free and {_megabytes(needed + SPARE_BYTES)} are needed: free some space, "
            "or set CODETR_CACHE to a folder on a larger disk."
        )


# ------------------------------------------------------------------------------------------------------------- transfer


def _complete(remote: Remote, target: Path, part: Path, copies: int, progress: Progress) -> None:
    """Brings the part to its end, compares it, and puts it in place."""
    best = part.stat().st_size
    fresh = best == 0
    while True:
        try:
            _transfer(remote, part, copies, progress)
        except _BrokenError as error:
            there = part.stat().st_size
            if there > best:
                best = there
            elif there == 0 and not fresh:  # what was there did not belong to the server's file
                best, fresh = 0, True
            else:  # a try that brings nothing more is the last one
                raise ResourceError(_broken_text(remote, target, part, str(error))) from error
            continue
        try:
            verify(part, remote, advice="It was thrown away: check the address, then download it again.")
        except CheckpointError:
            _discard(part)
            if fresh:
                raise
            best, fresh = 0, True  # its beginning may be of another file: once more, from the start
            continue
        break
    rename_synced(part, target)
    _note(part).unlink(missing_ok=True)


def _transfer(remote: Remote, part: Path, copies: int, progress: Progress) -> None:
    """Makes one request for what is missing and appends the answer."""
    have = part.stat().st_size
    if have and have == remote.bytes:
        return
    validator = _saved_validator(part, remote.url)
    if have and validator is None:
        _discard(part)  # of another address, or of a server that does not tell whether its file is still the same
        have = 0
    headers = {"User-Agent": f"codetr/{VERSION}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(validator)}
    with _answer(remote, urllib.request.Request(remote.url, headers=headers), part) as response:
        if response is None:
            return
        start = _start(response, have)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        _check_offer(remote, response, total)
        check_space(part.parent, max((total or 0) * copies - start, 0))
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
        raise _BrokenError(f"the connection ended after {_megabytes(done)} of {_megabytes(total)}")


@contextmanager
def _answer(remote: Remote, request: urllib.request.Request, part: Path) -> Iterator[Any]:
    """The server's answer; None when it says that nothing is missing."""
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise ResourceError(_answer_text(remote.url, error.code, error.reason)) from error
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if whole != str(part.stat().st_size):
            _discard(part)
            raise _BrokenError("the server's file is shorter than what was downloaded before") from None
        yield None
        return
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_reason(error)) from error
    with response:
        if remote.url.lower().startswith("https:") and not response.url.lower().startswith("https:"):
            # Not every published file has a known hash: nobody on the way may put another in its place.
            raise ResourceError(
                f"{remote.url} leads to {response.url}, which is not encrypted: nothing was downloaded. Give another "
                "address with --url, or download it by hand."
            )
        yield response


def _start(response: Any, have: int) -> int:
    """The position in the file that the answer begins at: 0 where the server sends it whole again."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    told = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    if told is None or int(told[1]) != have:
        raise _BrokenError("the server sent another part of the file than was asked for")
    return have


def _check_offer(remote: Remote, response: Any, total: int | None) -> None:
    """Refuses an answer that cannot be the file, before it is read."""
    if response.headers.get_content_type() == "text/html":
        raise CheckpointError(
            f"{remote.url} gives a web page instead of a file: it may ask for a login or a confirmation. "
            "Give the address of the file itself with --url, or download it by hand."
        )
    if None not in (total, remote.bytes) and total != remote.bytes:
        raise CheckpointError(
            f"{remote.url} offers a file of {total} bytes where the published one has {remote.bytes}: it was replaced "
            "or is another one. Nothing was downloaded; give another address with --url."
        )


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except http.client.IncompleteRead as error:
            yield error.partial
            raise _BrokenError("the connection ended") from error
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(_reason(error)) from error
        if not chunk:
            return
        yield chunk


# ------------------------------------------------------------------------------------------------------------ the part


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _note(part: Path) -> Path:
    """A small file beside the part: where it comes from and which edition of the server's file it is."""
    return part.with_name(part.name + ".json")


def _saved_validator(part: Path, url: str) -> str | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        if note["url"] == url:
            return str(note["validator"])
    return None


def _save_validator(part: Path, url: str, response: Any) -> None:
    """Notes the edition; without one that a server compares reliably, a broken download starts again."""
    etag = response.headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    if validator is None:
        _note(part).unlink(missing_ok=True)
    else:
        _note(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _discard(part: Path) -> None:
    part.write_bytes(b"")
    _note(part).unlink(missing_ok=True)


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


# ------------------------------------------------------------------------------------------------------------- wording


def _broken_text(remote: Remote, target: Path, part: Path, reason: str) -> str:
    kept = part.stat().st_size
    there = f" {_megabytes(kept)} are kept: run the same command again to continue." if kept else ""
    return (
        f"cannot download {remote.url}: {reason.rstrip('.')}.{there} Without a connection, bring the file from another "
        f"machine and put it at {target}"
    )


def _answer_text(url: str, code: int, reason: str) -> str:
    if code == http.client.TOO_MANY_REQUESTS or code >= 500:
        return f"{url} answers {code} {reason}: the server is busy or broken. Try again later."
    return (
        f"{url} answers {code} {reason}: the file is not there (any more) or not for everyone. Give another address "
        "with --url, or download it by hand."
    )


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} seconds"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _disk_error(target: Path, error: OSError) -> ResourceError:
    if error.errno in DISK_FULL:
        return ResourceError(
            f"no space left on the disk while downloading {target}: free some, or set CODETR_CACHE to a folder on a "
            "larger disk, then run again. What is there already is kept."
        )
    return ResourceError(
        f"cannot write {target}: {error.strerror or error}. Mend its permissions, or set CODETR_CACHE to another "
        "folder."
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _silent(done: int, total: int | None) -> None:
    """Stands in where nobody wants to know."""
