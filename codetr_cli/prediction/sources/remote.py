"""Bytes at addresses such as `s3://bucket/a.jpg`, through fsspec and the package that it needs for each kind.

Credentials are those of the environment, as each of these packages finds them. What an address contains of them is
never printed.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from codetr_cli.errors import CodetrError, ConfigError, DatasetError, ResourceError, nearest
from codetr_cli.images.image_files import IMAGE_SUFFIXES, suffix_of
from codetr_cli.weights.urls import MAX_URL, shown_url

PROTOCOLS = (
    *(
        "s3",
        "s3a",
        "gs",
        "gcs",
        "az",
        "abfs",
        "abfss",
        "adl",
        "oci",
        "oss",
        "hf",
        "http",
        "https",
        "ftp",
        "sftp",
        "ssh",
    ),
    *("hdfs", "webhdfs", "webdav", "smb", "memory"),
)
"""Kinds of addresses: those that hold files, and start no program here."""
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
TRIES = 3
WAIT_S = 0.5
"""Before the second try; twice as long before each further one."""


class RemoteError(Exception):
    """An address that cannot be read; the text is the reason."""


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of an address, as fsspec has it, and the path in it.

    Raises:
        ConfigError: there are no such addresses.
        ResourceError: a package is missing.
    """
    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS or "::" in url or len(url) > MAX_URL:
        problem = "too long" if len(url) > MAX_URL else nearest(protocol, list(PROTOCOLS))
        raise ConfigError(f"{shown_url(url[:MAX_URL])} is no address of images that can be read; {problem}")
    try:
        core = importlib.import_module("fsspec.core")
        return core.url_to_fs(url)
    except ImportError as error:
        raise _missing(protocol, error) from error
    except Exception as error:
        raise ConfigError(f"{shown_url(url)} is not a valid address: {_reason(url, error)}") from None


def _missing(protocol: str, error: ImportError) -> ResourceError:
    more = f" {PACKAGES[protocol]}" if protocol in PACKAGES else ""
    return ResourceError(
        f"{protocol}:// needs a package that is not installed ({error}): pip install 'codetr-cli[fs]'{more}"
    )


def check_package(protocol: str) -> None:
    """Ensures that a kind of addresses can be read here, without a connection; unknown kinds are errors later.

    Raises:
        ResourceError: a package is missing.
    """
    if protocol in PROTOCOLS:
        try:
            importlib.import_module("fsspec").get_filesystem_class(protocol)
        except ImportError as error:
            raise _missing(protocol, error) from error


def file_name_of(url: str) -> str:
    """The last part of the path of an address, as a name."""
    return PurePosixPath(unquote(urlsplit(url).path)).name


def read_url(url: str, *, limit: int, start: int = 0, size: int | None = None) -> bytes:
    """The bytes at an address, or a range of them; tried again where the connection fails.

    Args:
        url: the address.
        limit: bytes that it may have.
        start: of the range.
        size: of the range; None: all.

    Raises:
        RemoteError: it cannot be read, or has more or fewer bytes.
    """
    wanted = limit + 1 if size is None else size
    if wanted > limit + 1:
        raise RemoteError(f"it has {wanted:,} bytes, and the limit is {limit:,}")
    content = _with_tries(url, lambda: _fetch(url, start, wanted, whole=size is None))
    if size is None and len(content) > limit:
        raise RemoteError(f"it has more than {limit:,} bytes, the limit for an image")
    if size is not None and len(content) != size:
        raise RemoteError(f"{len(content):,} bytes came where {size:,} should be")
    return content


def _fetch(url: str, start: int, count: int, *, whole: bool) -> bytes:
    files, path = filesystem(url)
    if whole and url.lower().startswith("http"):
        # As a stream: many servers send no parts, nor the size before.
        parts: list[bytes] = []
        with files.open(path, "rb", block_size=0) as stream:
            while count > 0 and (part := stream.read(min(count, 1 << 20))):
                parts.append(part)
                count -= len(part)
        return b"".join(parts)
    return bytes(files.cat_file(path, start=start, end=start + count))


def _with_tries(url: str, read: Any) -> Any:
    for number in range(TRIES):
        try:
            return read()
        except CodetrError:
            raise
        except Exception as error:  # each kind of address has its own
            final = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
            final = final and _status(error) in (None, 404, 410) and not _is_connection(error)
            if final or number + 1 == TRIES:
                raise RemoteError(_reason(url, error)) from None
            time.sleep(WAIT_S * 2**number)
    raise AssertionError


def _status(error: Exception) -> int | None:
    """The status code of a web server's answer, which fsspec reports as a file that does not exist."""
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)
    return status if isinstance(status, int) else None


def _is_connection(error: Exception) -> bool:
    """Whether a connection failed, which fsspec reports as a file that does not exist, too."""
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError | PermissionError) or _status(error) is not None:
        return False
    return isinstance(cause, OSError | TimeoutError) or type(cause).__module__.partition(".")[0] == "aiohttp"


def _reason(url: str, error: Exception) -> str:
    """What went wrong, without the credentials of an address, which messages of other packages may contain."""
    if (status := _status(error)) is not None and status != 404:
        return f"the server answers with status {status}"
    if _is_connection(error):
        return f"no connection to the server ({type(error.__cause__).__name__})"
    words = {FileNotFoundError: "no such file", PermissionError: "no permission", IsADirectoryError: "it is a folder"}
    for kind, text in words.items():
        if isinstance(error, kind):
            return text
    name = type(error).__name__
    if shown_url(url) != url:
        return name
    lines = str(error).strip().splitlines()
    return f"{name}: {lines[0][:300]}" if lines else name


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """A list or an archive at an address, open for reading.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        files, path = filesystem(url)
        with files.open(path, "rb") as file:
            yield file
    except CodetrError:
        raise
    except Exception as error:
        raise DatasetError(f"cannot read {shown_url(url)}: {_reason(url, error)}") from None


def images_below(url: str) -> list[str]:
    """The addresses of the images in a folder, at any depth, or those that match a pattern, in alphabetical order.

    Raises:
        DatasetError: it cannot be read, or has no image.
    """
    files, path = filesystem(url)
    try:
        names = files.glob(path) if "*" in path else files.find(path)
    except Exception as error:
        raise DatasetError(f"cannot read {shown_url(url)}: {_reason(url, error)}") from None
    protocol = url.partition("://")[0]
    found = sorted(
        name if "://" in name else f"{protocol}://{name.lstrip('/')}"
        for name in names
        if suffix_of(name) in IMAGE_SUFFIXES
    )
    if not found:
        raise DatasetError(f"there are no images at {shown_url(url)}: check the address")
    return found
