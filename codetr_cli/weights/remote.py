"""A published file and its copy on this disk: is it the published one, and still as it was downloaded?"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import logging
import re
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.files import make_way
from codetr_cli.reading import open_file
from codetr_cli.receipts import has_changed, read_receipt, write_receipt
from codetr_cli.weights.connection import TransferWatch, connection_error, open_url
from codetr_cli.weights.urls import local_name, parse_url, shown_url

logger = logging.getLogger(__name__)

# A plain import would make this module depend on what the package exports to Python users.
VERSION: str = importlib.import_module("codetr_cli").__version__
HEADERS = {"User-Agent": f"codetr/{VERSION}", "Accept-Encoding": "identity"}
"""Of every request."""
MAX_VALIDATOR = 1000
# Publishers put the first digits of the SHA-256 before the suffix, as torch.hub does.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


@dataclass(frozen=True)
class Remote:
    """A published file.

    Args:
        url: http or https URL of the file itself.
        filename: its local name.
        bytes: exact size; None if unknown.
        sha256: of the file, complete or its first digits; None if unknown.
    """

    url: str = field(repr=False)
    filename: str
    bytes: int | None = None
    sha256: str | None = None

    @property
    def shown(self) -> str:
        """The URL without credentials."""
        return shown_url(self.url)

    @classmethod
    def from_url(
        cls, url: str, *, filename: str | None = None, bytes: int | None = None, sha256: str | None = None
    ) -> Remote:
        """A file by its URL. Name and hash default to the name in the URL and the digits of the hash in that name.

        Raises:
            ConfigError: not an http or https URL of a file.
        """
        last = parse_url(url).file_name
        if last == ".." or not last.isprintable():
            raise ConfigError(f"{shown_url(url)} does not end with a file name: give the URL of the weights themselves")
        if not (filename or last):
            raise ConfigError(f"{shown_url(url)} has no file name: give the URL of the weights themselves")
        digits = HASH_IN_NAME.search(last)
        return cls(url, local_name(filename or last), bytes, sha256 or (digits[1] if digits else None))


def doubt(path: Path) -> bool:
    """Marks a downloaded file that cannot be used: the next `fetch` asks the server whether it has another one now.

    Returns:
        whether the file was downloaded at all.
    """
    if read_receipt(path) is None:
        return False
    with suppress(OSError):
        if not doubt_path(path).is_file():
            make_way(doubt_path(path))
        doubt_path(path).touch()
    return True


def problem_of(remote: Remote, target: Path) -> str:
    """Why an existing file must be downloaded again, for a message; empty if it need not."""
    receipt = read_receipt(target)
    fits = receipt is not None and receipt[0].sha256.startswith(remote.sha256 or "")
    if receipt is None or not fits or remote.bytes not in (None, receipt[0].size):
        try:
            verify(target, remote, advice="")
        except CheckpointError as error:
            return str(error).removeprefix(f"{target} ").rstrip(". ")
        write_receipt(target)
        return ""
    if has_changed(target):
        return "has changed since it was downloaded"
    if doubt_path(target).is_file() and _has_changed_on_server(remote, receipt[1].get("validator", "")):
        return "could not be used, and the server may have another one now"
    make_way(doubt_path(target), ignore_errors=True)
    return ""


def _has_changed_on_server(remote: Remote, validator: str) -> bool:
    """Whether the server may have another file than the one with that validator; False if it cannot be asked."""
    if not is_validator(validator):
        return True
    headers = {**HEADERS, "If-None-Match" if validator.endswith('"') else "If-Modified-Since": validator}
    try:
        with TransferWatch() as watch:
            open_url(remote.url, headers, watch).close()
    except (OSError, http.client.HTTPException, UnicodeError, ResourceError) as error:  # among them: 304 Not Modified
        logger.debug("%s: %s", remote.shown, connection_error(error))
        return False
    return True


def verify(path: Path, remote: Remote, *, advice: str) -> None:
    """Verifies size and hash of a file; `advice` is the last sentence of the error message.

    Without a published hash, files that cannot be weights are refused: text and cut archives.

    Raises:
        CheckpointError: another file, truncated or damaged.
    """
    size = path.stat().st_size
    if remote.bytes is not None and size != remote.bytes:
        raise CheckpointError(f"{path} has {size} bytes, the published file has {remote.bytes}. {advice}")
    if remote.sha256 is None:
        check_kind(path, advice)
    else:
        with open_file(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(remote.sha256):
            raise CheckpointError(
                f"{path} has the SHA-256 {found}, the published file has {remote.sha256}: it is damaged or another "
                f"file. {advice}"
            )


def check_kind(path: Path, advice: str) -> None:
    """Refuses a file that cannot be weights, by its first and last bytes.

    Raises:
        CheckpointError: it is empty, a text, or an archive that is cut short.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        start = file.read(512)
    if not start:
        raise CheckpointError(f"{path} is empty. {advice}")
    if start.isascii() and start.decode("ascii").replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        shown = " ".join(start[:60].decode("ascii").split())
        raise CheckpointError(f"{path} is a text and not a file of weights, it starts with {shown!r}. {advice}")
    if start.startswith(b"PK\3\4") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is an archive without an end: it is cut short. {advice}")


def doubt_path(path: Path) -> Path:
    """The mark beside a file that could not be used."""
    return path.with_name(f".{path.name}.doubt")


def is_validator(text: object) -> bool:
    """Whether a text can be sent back in a header."""
    return isinstance(text, str) and 0 < len(text) <= MAX_VALIDATOR and text.isascii() and text.isprintable()
