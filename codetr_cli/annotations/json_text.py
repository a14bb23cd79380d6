"""Reads JSON files of any common encoding, and explains what makes a file no JSON.

What other programs leave in the place of a JSON file is named: compressed files, pointers of Git LFS, web pages.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codetr_cli import reading
from codetr_cli.annotations.encodings import decode_text

CHUNK_BYTES = 1 << 24
BLOCK_BYTES = 512
"""The unit of `st_blocks`."""
_HOLE = b"\0" * 8
"""Longer than the zeros between any two characters in UTF-16 or UTF-32."""
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_OTHER_FILES = (
    (b"\x1f\x8b", "it is compressed by gzip: unpack it"),
    (b"PK\x03\x04", "it is a ZIP archive: unpack it"),
    (b"BZh", "it is compressed by bzip2: unpack it"),
    (b"\xfd7zXZ\0", "it is compressed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd: unpack it"),
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file itself: run `git lfs pull`"),
)
_WEB_PAGE = re.compile(rb"(?i)(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html)\b")


class UnusableFileError(Exception):
    """A file as a whole cannot be used: the kind of finding of `codetr prepare`, and what exactly was found."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def read_utf8(path: Path) -> bytes:
    """The content of a JSON file without a byte order mark, in UTF-8 if it is in UTF-8, UTF-16 or UTF-32.

    Holes of a sparse file, which take no space on the disk but all memory, are read up to the first one only.

    Raises:
        UnusableFileError: it cannot be read, or is another kind of file.
    """
    chunks: list[bytes] = []
    size = 0
    is_wide = False
    try:
        with reading.open_file(path) as file:
            status = os.fstat(file.fileno())
            is_sparse = status.st_blocks * BLOCK_BYTES < status.st_size
            while chunk := file.read(CHUNK_BYTES if is_sparse else status.st_size + 1):
                if not chunks:
                    check_kind_of_file(chunk)
                    is_wide = _is_wide(chunk)
                zeros = _HOLE if is_wide else b"\0"
                if zeros in chunk:
                    raise UnusableFileError("not_json", f"no text: byte {size + chunk.index(zeros):,} is zero")
                chunks.append(chunk)
                size += len(chunk)
    except OSError as error:
        raise UnusableFileError("unreadable_json", error.strerror or str(error)) from error
    content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return _recoded(content) if is_wide else content.removeprefix(codecs.BOM_UTF8)


def as_utf8(content: bytes) -> bytes:
    """Content that is not UTF-8, in UTF-8, if its bytes show its encoding.

    Raises:
        UnusableFileError: they do not; names the first byte that is not UTF-8.
    """
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise UnusableFileError(
                "truncated_json", f"no UTF-8 text at byte {error.start:,} of {len(content):,}"
            ) from error
        try:
            return decode_text(content).encode()
        except ValueError:
            detail = f"no UTF-8 text at byte {error.start:,} of {len(content):,}: save it as UTF-8"
            raise UnusableFileError("not_json", detail) from error
    return content


def check_kind_of_file(head: bytes) -> None:
    """Raises an UnusableFileError for the start of a file that is of another kind than text."""
    for mark, words in _OTHER_FILES:
        if head.startswith(mark):
            raise UnusableFileError("not_json", words)
    if _WEB_PAGE.match(head[:1000]):
        words = "it is a web page (HTML), as a failed download leaves one: download the file again"
        raise UnusableFileError("not_json", words)


def _is_wide(head: bytes) -> bool:
    """Whether a text has two or four bytes a character: by its mark or, without one, by two letters of ASCII."""
    if head.startswith(_WIDE_MARKS):
        return True
    return len(head) > 3 and (head[:4:2] == b"\0\0") != (head[1:4:2] == b"\0\0")


def _recoded(content: bytes) -> bytes:
    try:
        return decode_text(content).encode()
    except ValueError as error:
        raise UnusableFileError("not_json", str(error)) from error


# ------------------------------------------------------------------------------------------------------------- parsing


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Turns the garbage collector off, for code that makes millions of objects and no cycles."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def parse(content: str | bytes) -> Any:
    """A JSON value, made without the garbage collector, which would visit its millions of parts again and again.

    Raises:
        ValueError: not JSON; a UnicodeDecodeError if it is not UTF-8.
    """
    with without_collector():
        return reading.parse_json(content)


_LONG_NUMBER = re.compile(r"(?<![0-9])[0-9]{4301}")
_NUMBER_ENDS = (".", "e", "E", "e-", "E-", "e+", "E+")
_JSON_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")


def parse_or_explain(content: bytes) -> Any:
    """A JSON value of UTF-8 text.

    Raises:
        UnusableFileError: not JSON; names the first byte that is not, and the probable cause.
    """
    text, size = as_utf8(content).decode(), len(content)
    if not text.strip():
        raise UnusableFileError("truncated_json", "it contains only white space" if size else "it has zero bytes")
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        raise _explained(text, error, size) from error
    except ValueError as error:
        number = _LONG_NUMBER.search(text)
        where = f" (the number at character {number.start():,})" if number else ""
        raise UnusableFileError("not_json", f"{error}{where}") from error


def _explained(text: str, error: json.JSONDecodeError, size: int) -> UnusableFileError:
    rest = text[error.pos : error.pos + 100].strip()
    # A string, an escape, a number or a word that is cut by the end of the file fails before the end.
    cut = error.msg.startswith("Unterminated string") or any(word.startswith(rest) for word in _JSON_WORDS)
    cut = cut or rest in _NUMBER_ENDS
    if cut or (len(rest) < 8 and "escape" in error.msg):
        byte = _bytes_before(text, error.pos)
        detail = f"it ends at byte {size:,} while the JSON is still open since byte {byte:,}"
        return UnusableFileError("truncated_json", detail)
    comma = _trailing_comma(text, error.pos)
    if comma is not None:
        error = json.JSONDecodeError("a trailing comma", text, comma)
    hint = ": remove it" if comma is not None else _hint(rest, error.msg)
    place = f"byte {_bytes_before(text, error.pos):,} (line {error.lineno}, column {error.colno})"
    return UnusableFileError("not_json", f"{error.msg} at {place}{hint}")


def _bytes_before(text: str, position: int) -> int:
    return len(text[:position].encode("utf-8", "surrogatepass"))


def _trailing_comma(text: str, position: int) -> int | None:
    """The position of a comma before the bracket at or after a position of an error, if that is the error."""
    if text[position] == ",":  # where newer versions of Python see it
        return position if text[position + 1 : position + 1000].lstrip()[:1] in ("}", "]") else None
    before = text[max(position - 1000, 0) : position]
    if text[position] in "}]" and before.rstrip().endswith(","):
        return position - len(before) + len(before.rstrip()) - 1
    return None


def _hint(rest: str, message: str) -> str:
    """What the text at an error probably is."""
    if message == "Extra data":
        if rest.startswith(("{", "[")):
            return ": it has several JSON values one after the other, as JSON Lines has; one value is needed"
        return ": there is text after the end of the JSON value"
    if rest.startswith(("//", "/*", "#")):
        return ": JSON has no comments, remove it"
    if rest.startswith(("'", "True", "False", "None")):
        return ": this is Python's notation; write it with json.dump, which gives double quotes, true, false and null"
    return ""
