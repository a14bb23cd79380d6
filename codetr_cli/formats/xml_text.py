"""XML files of a data set: decoded, and read by expat in one pass, in time and memory linear in their size.

Entities, and with them every kind of amplification and every reference to other files, are refused; nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat

from codetr_cli.annotations.encodings import ENCODINGS, decode_text
from codetr_cli.reading import open_file

MAX_DEPTH = 100
HEADS_READ = 20
HEAD_BYTES = 400
"""Of a declaration, at the start of a file."""
_DECLARED = re.compile(rb"""<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([^"'>]*)""")
_TAG = re.compile(r"<([^\s<>/!?&;'\"=]{1,200})[\s/>]")
_SKIPPED = (("<?", "?>"), ("<!--", "-->"), ("<!", ">"))


def decode_xml(content: bytes) -> str:
    """The text of an XML file, in the encoding that it declares, see `decode_text`.

    Raises:
        ValueError: it declares an encoding that is not supported, or its bytes are in none.
    """
    head = content[:HEAD_BYTES]
    wide = b"\0" in head
    match = _DECLARED.search(head.replace(b"\0", b"") if wide else head)
    declared = match[1].decode("latin-1") if match else None
    if declared is not None and not ENCODINGS.fullmatch(declared):
        raise ValueError(f"its encoding {declared:.40} is not supported, save it as UTF-8")
    if declared is not None and not wide and re.match(r"(?i)utf-?(16|32)", declared):
        declared = None  # a text in memory had this encoding, but not the file: its declaration is readable as ASCII
    return decode_text(content, declared).lstrip("\ufeff \t\r\n")


def root_of(text: str) -> str:
    """The name of the first element in the start of an XML text; empty if there is none."""
    place = 0
    while (place := text.find("<", place)) >= 0:
        opened = next(((start, end) for start, end in _SKIPPED if text.startswith(start, place)), None)
        if opened is None:
            match = _TAG.match(text, place)
            return match[1] if match else ""
        place = text.find(opened[1], place)
        if place < 0:
            return ""
    return ""


def root_of_file(path: Path) -> str:
    """The name of the first element of a file; empty if it cannot be read, or is no XML."""
    try:
        with open_file(path) as file:
            content = file.read(1 << 16)
    except OSError:
        return ""
    for cut in range(4):  # the last character may be cut in the middle
        try:
            return root_of(decode_xml(content[: len(content) - cut]))
        except ValueError:
            continue
    return ""


def likely_names(names: list[str], usual: str = "") -> list[str]:
    """A few of some files, to open: those with a usual name, the first of each folder, and the first of all."""
    named = [name for name in names if name.rpartition("/")[2] == usual]
    first = {name.rpartition("/")[0]: name for name in reversed(names)}
    tried = (*named[:HEADS_READ], *sorted(first.values())[:HEADS_READ], *names[:HEADS_READ])
    return list(dict.fromkeys(tried))


def new_parser(
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    characters: Callable[[str], None] | None = None,
) -> expat.XMLParserType:
    """A parser that calls functions at the start and the end of each element, and with its text.

    It raises a ValueError for declarations of entities and attributes.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.EntityDeclHandler = _refuse
    parser.AttlistDeclHandler = _refuse  # each costs time in every element
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    if characters is not None:
        parser.CharacterDataHandler = characters
    return parser


def _refuse(*_declared: object) -> None:
    raise ValueError("it declares entities or attributes in its DOCTYPE, which are not supported")
