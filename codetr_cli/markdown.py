"""Text of any origin in Markdown files: it must not become markup, and tables must keep their columns."""

from __future__ import annotations

from collections.abc import Sequence


def plain(text: str) -> str:
    """Text of any origin in one line that Markdown does not take for code, HTML or a link."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text.replace("`", "'").replace("<", "&lt;").replace("[", "\\[")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are text of any origin."""
    marked = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(plain(cell).replace("|", "\\|") for cell in row) + " |" for row in marked]
