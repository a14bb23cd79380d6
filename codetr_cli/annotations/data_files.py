"""Reads text files of a data set: regular files of text in UTF-8, or in UTF-16 or UTF-32 as Windows saves it.

Anything else is a `DatasetError`: a named pipe would wait for ever, and a device has no end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from codetr_cli.annotations.encodings import decode_text
from codetr_cli.errors import DatasetError
from codetr_cli.reading import read_bytes

MAX_LIST_BYTES = 128 << 20
"""Objects365, with 1.7 million images, needs less."""
MAX_LINES = 2_000_000
MAX_LINE = 10_000
"""Letters of a line of a list, more than any system takes in a path."""
MAX_COUNTED = 10_000
"""Wrong names that are counted; looking for more could take minutes."""
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, limit: int, *, errors: str = "replace") -> str:
    """The text of a file, with line ends of any system as newlines.

    Args:
        path: the file.
        limit: in bytes.
        errors: how bytes that are not UTF-8 are decoded where the file has no mark of another encoding.

    Raises:
        DatasetError: not a regular file, larger than the limit, or not text.
    """
    try:
        content = read_bytes(path, limit)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}. Replace or remove it") from error
    is_wide = b"\0" in content or content.startswith(_WIDE_MARKS)
    text = _wide_text(content) if is_wide else content.decode("utf-8-sig", errors)
    if text is None or "\0" in text:
        raise DatasetError(f"{path} is not UTF-8 text, but binary: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _wide_text(content: bytes) -> str | None:
    """The text of a file with zero bytes: UTF-16 or UTF-32; None if it is neither."""
    try:
        return decode_text(content)
    except ValueError:
        return None


def read_lines(path: Path, *, limit: int = MAX_LIST_BYTES, max_lines: int = MAX_LINES) -> list[str]:
    """The lines of a list, without spaces around them; empty ones are kept, so that the index is the line's number.

    Bytes that are not UTF-8 are kept as in names of files.

    Raises:
        DatasetError: as `read_text`, there are more lines than `max_lines`, or one has more than `MAX_LINE` letters.
    """
    text = read_text(path, limit, errors="surrogateescape")
    if text.count("\n") > max_lines:
        raise DatasetError(f"{path} has more than {max_lines:,} lines, the limit for such a file")
    lines = text.split("\n")
    if len(longest := max(lines, key=len)) > MAX_LINE:
        raise DatasetError(f"{path} has a line of {len(longest):,} letters, {MAX_LINE:,} are possible: {longest:.80}")
    return [line.strip() for line in lines]


def without_file(names: Iterable[str], has_file: Callable[[str], bool]) -> tuple[list[str], str]:
    """The names without a file, up to `MAX_COUNTED`, and their number as text."""
    absent = list(islice((name for name in names if not has_file(name)), MAX_COUNTED))
    return absent, f"{len(absent):,}{' or more' if len(absent) == MAX_COUNTED else ''}"


def check_length(folder: Path) -> None:
    """Raises a DatasetError for a folder with a name that is too long for this system."""
    try:
        folder.is_dir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DatasetError(
                f"no folder can have a name as long as {folder!s:.100}...: give the folder of the data"
            ) from error


def is_file(path: Path | str) -> bool:
    """Whether there is a file of any kind, a named pipe too; False for names that no file can have."""
    return os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 (a Path raises for such names)


def is_folder(path: Path | str) -> bool:
    """Whether there is a folder; False for names that no folder can have."""
    return os.path.isdir(path)  # noqa: PTH112 (as above)
