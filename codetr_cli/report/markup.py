"""Elements of HTML and SVG as escaped text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape

VOID = frozenset(("img", "br", "hr"))
"""Elements of HTML that have no content and no end."""


def element(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element with escaped content and attributes.

    Args:
        name: of the element.
        content: `Markup` is inserted as it is, everything else is escaped.
        attributes: "_" stands for "-", and a trailing one is for names that Python has ("class_"); None: no attribute.
            Numbers have at most two digits behind the point.
    """
    parts = ["<", name]  # joined as plain text, since pages have a hundred thousand elements: all values are escaped
    for key, value in attributes.items():
        if value is not None:
            parts += [" ", key.rstrip("_").replace("_", "-"), '="', escape(_number(value)), '"']
    parts.append(">")
    if name not in VOID:
        parts += [*(escape(part) for part in content), "</", name, ">"]
    return Markup("".join(parts))


def joined(parts: Iterable[Any]) -> Markup:
    """Parts one after the other, escaped unless they are `Markup`."""
    return Markup().join(escape(part) for part in parts)


def _number(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
