"""The text of files whose encoding is known by a mark, by a declaration, or by their bytes."""

from __future__ import annotations

import codecs
import re

ENCODINGS = re.compile(
    r"(?i)utf-?(8|16|32)(-?[lb]e)?(-sig)?|(us-)?ascii|iso-?8859-?\d{1,2}|iso_8859-\d{1,2}|latin-?\d{1,2}|macintosh"
    r"|(windows-|cp)125\d|koi8-[ru]|gb-?2312|gbk|gb-?18030|euc-(cn|jp|kr)|cp9(36|32|49|50)|big5|shift[-_]jis"
)
"""Those that a file may declare: Python has others, which are not all meant for text."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHINESE = re.compile(rb"(?:[\x00-\x7f]|[\xa1-\xf7][\xa1-\xfe])*+")
"""GB2312 as it is stored: letters of ASCII, and pairs of bytes above it. Latin-1 hardly ever has only pairs."""


def decode_text(content: bytes, declared: str | None = None) -> str:
    """The text of a file, without a byte order mark.

    The encoding is that of the mark, if there is one; else UTF-16 if every second byte at the start is zero; else the
    declared one, unless the bytes are UTF-8 with characters of three bytes, which no other encoding gives by chance;
    else UTF-8; else GB2312 (read as GB18030) if all bytes above ASCII are pairs of it.

    Args:
        content: of the file.
        declared: the encoding that the file itself names, as XML does.

    Raises:
        ValueError: none of these; the message names the first byte that is not UTF-8, or the encoding.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], encoding)
    if len(content) > 3 and (content[:4:2] == b"\0\0") != (content[1:4:2] == b"\0\0"):  # two letters of ASCII
        return _decoded(content, "utf-16-le" if content[1] == 0 else "utf-16-be")
    declares_other = declared is not None and not declared.lower().replace("-", "").startswith("utf8")
    try:
        text = content.decode("utf-8")
        if declared is None or not declares_other or max(text, default="") > "\u07ff" or content.isascii():
            return text
        return _decoded(content, declared)  # characters of two bytes in UTF-8 are letters of other encodings, too
    except UnicodeDecodeError as error:
        if declared is not None and declares_other:
            return _decoded(content, declared)
        if _CHINESE.fullmatch(content):
            return _decoded(content, "gb18030")
        raise ValueError(
            f"its text is not UTF-8 (byte {error.start:,} of {len(content):,}) and names no other encoding: save it "
            "as UTF-8"
        ) from None


def _decoded(content: bytes, encoding: str) -> str:
    if not ENCODINGS.fullmatch(encoding):
        raise ValueError(f"its encoding {encoding:.40} is not supported: save it as UTF-8")
    if encoding.lower().replace("-", "") in ("gb2312", "gbk", "euccn", "cp936"):
        encoding = "gb18030"  # which has all their characters, and those that writers of the name "gb2312" use
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"its text is not {encoding} at byte {error.start:,}: save it as UTF-8") from None
    except LookupError:
        raise ValueError(f"its encoding {encoding:.40} is not supported: save it as UTF-8") from None
