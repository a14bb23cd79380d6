"""Fenced blocks and commands of the documents."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.conftest import REPOSITORY


class Block(NamedTuple):
    """A fenced block: where it starts, its language, whether it is marked `tested`, its text."""

    line: int
    language: str
    tested: bool
    text: str


def blocks(document: str) -> list[Block]:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)( tested)?\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(text[: m.start()].count("\n") + 1, m[1], bool(m[2]), m[3]) for m in found]


def fenced(text: str, language: str) -> list[str]:
    """The texts of the fenced blocks of a language in any Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    """Every `codetr ...` of a document's shell blocks and of its inline code."""
    lines = [
        line
        for block in blocks(document)
        if block.language == "bash"
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    prose = re.sub(r"^```.*?^```$", "", (REPOSITORY / document).read_text(encoding="utf-8"), flags=re.M | re.S)
    lines += re.findall(r"`(codetr [^`]+)`", prose)
    return [line.split("#")[0].strip() for line in lines if re.match(r"codetr \w", line)]
