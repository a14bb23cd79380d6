"""An HTML page of one file that needs nothing else: no address, no library, no font.

Jinja2 escapes every value; only `Markup`, which this room makes, is inserted as it is. The page's policy allows its own
style and script by their digests and pictures by their data: what a class name injects, if it ever could, cannot run.
Control characters, and marks that would change the direction of the text around a name, are shown as their codes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from codetr_cli.escaping import visible_lines

TEMPLATES = "report/templates"
LONG_NAME = 60
"""Characters of a name from which it may not be shown as a whole, and is in a tooltip, too."""
_NO_CHARACTER = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)) + "]"
)
"""Code points that no text has; HTML forbids them."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: of the column.
        kind: "text", "text word" (which is never broken), "text name" (of classes and files: the end of a long one is
            not shown), "text prose" (sentences), "number" (as given), "share" (0 to 1, shown in percent) or "score"
            (three digits); numbers are aligned to the right. "chart": `Markup` that rows cannot be sorted by. A value
            of None is shown as a dash and sorted last.
        hint: what the column means; listed below the table.
    """

    title: str
    kind: str = "text"
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """A value that is shown as something else, such as a link.

    Attributes:
        shown: what the reader sees.
        key: what rows are sorted by.
    """

    shown: Markup
    key: str | float


@dataclass(frozen=True)
class Table:
    """A table that the reader can sort.

    Attributes:
        caption: what the rows are.
        columns: of the table.
        rows: a value for each column; `Markup` for what is not text, such as a small chart, `Cell` for links.
        shown: rows that are shown at first; the others come with a button, and in print.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    shown: int = 100


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        key: its address within the page, of letters, digits and "-".
        title: its heading.
        lead: one sentence or two: how to read it.
        parts: tables, and `Markup` such as charts and pictures, in order.
    """

    key: str
    title: str
    lead: str
    parts: Sequence[Table | Markup] = field(default_factory=list)


def render_page(
    title: str, *, facts: Mapping[str, str], summary: Markup | str = "", sections: Sequence[Section]
) -> str:
    """The text of a page.

    Args:
        title: of the page.
        facts: what it is about, by name: shown at its head; values may have several lines.
        summary: the answer in a sentence or a few numbers, above everything else.
        sections: in order; the page has a list of links to them.
    """
    text = template("page.html").render(
        title=title, facts=facts, summary=summary, sections=sections, css=_asset("page.css"), js=_asset("page.js")
    )
    return _NO_CHARACTER.sub("\ufffd", visible_lines(text))


def table_markup(table: Table) -> Markup:
    """A table as a part of something else, such as a grid."""
    return Markup(template("table.html").render(part=table))


@cache
def template(name: str) -> Any:
    """A template of this room; its values are escaped, and a missing one is an error."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("codetr_cli", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["sort_key"] = _sort_key
    environment.filters["hidden_name"] = _hidden_name
    environment.tests["markup"] = lambda value: isinstance(value, Markup)
    return environment


@cache
def _asset(name: str) -> dict[str, str]:
    """Text of a style or script with its digest, as policies name it."""
    environment = _environment()
    assert environment.loader is not None
    text, _, _ = environment.loader.get_source(environment, name)
    text = "\n" + text
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": Markup(text), "digest": f"sha256-{digest}"}


def _cell(value: Any, kind: str) -> Any:
    """How a value is shown."""
    if isinstance(value, Cell):
        return value.shown
    if value is None or value == "":
        return "-"
    if isinstance(value, Markup | str):
        return value
    if kind == "share":
        return f"{100 * value:.1f} %"
    if kind == "score":
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _hidden_name(value: Any, kind: str) -> str:
    """The name in a cell if its end may not be shown; else empty."""
    name = _sort_key(value)
    return name if kind == "text name" and len(name) > LONG_NAME else ""


def _sort_key(value: Any) -> str:
    """What a value is sorted by; empty: last."""
    if isinstance(value, Cell):
        value = value.key
    if isinstance(value, Markup) or value is None:
        return ""
    return str(value)
