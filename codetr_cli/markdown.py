"""Text of any origin in Markdown files: it must not become markup, and tables must keep their columns."""

from __future__ import annotations

from collections.abc import Sequence

MARKS = str.maketrans({"\\": "\\\\", "`": "'", "<": "&lt;", "[": "\\[", "*": "\\*"})


def plain(text: str) -> str:
    """Text of any origin in one line that Markdown does not take for code, HTML, emphasis or a link."""
    text = _line(text).translate(MARKS)
    return text.replace("://", ":\\//").replace("www.", "www\\.")  # the Hub makes links of bare addresses


def code(text: str) -> str:
    """Text of any origin in one line as code, in which nothing else is markup."""
    return f"`{_line(text).replace('`', chr(39))}`"


def _line(text: str) -> str:
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are text of any origin."""
    marked = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(plain(cell).replace("|", "\\|") for cell in row) + " |" for row in marked]
