"""docs/settings.md: every setting with default, values and meaning; `python -m tests.settings_page` rewrites it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from codetr_cli.config.overrides import RENAMED
from codetr_cli.config.schema import Settings
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "settings.md"
HEAD = """# Settings

Every setting of a run: its name for `--set NAME=VALUE`, its default and its values. The defaults are those of the
published Co-DINO R50, 5 scales, 12 epochs; a preset holds only what differs (`codetr presets NAME` shows all of one).
Sides and sizes are in pixels, sizes are (height, width). A settings file of your own is TOML with the tables below:
`--preset my.toml`.

*Written by `python -m tests.settings_page` from `codetr_cli/config/schema.py` and the files of its tables.*
"""


def settings_page() -> str:
    """The whole page in Markdown."""
    lines = [HEAD]
    for title, section in sections(Settings, ""):
        rows = [row(title, name, field) for name, field in section.model_fields.items() if not tables_of(field)]
        if not rows:
            continue
        summary = (section.__doc__ or "").strip().splitlines()[0]
        lines += [f"## {heading(title, section)}", "", summary, "", "| setting | default | values | meaning |"]
        lines += ["|---|---|---|---|", *rows, ""]
    lines += ["## Former names", "", "Run folders, checkpoints and `--set` understand these too.", ""]
    lines += ["| former name | name |", "|---|---|", *(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())]
    return "\n".join(lines) + "\n"


def heading(title: str, section: type[BaseModel]) -> str:
    """The table's name in TOML, and the kind where there are several."""
    kind = section.model_fields.get("kind")
    several = kind is not None and title == "model.backbone"
    return (title or "top level") + (f", kind {kind.default}" if several and kind is not None else "")


def sections(section: type[BaseModel], title: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Name and class of every table of settings, outer ones first."""
    yield title, section
    for name, field in section.model_fields.items():
        for inner in tables_of(field):
            yield from sections(inner, f"{title}.{name}" if title else name)


def tables_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The classes of a setting that is a table itself."""
    choices = get_args(field.annotation) if is_union(field.annotation) else (field.annotation,)
    return [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]


def row(title: str, name: str, field: FieldInfo) -> str:
    """One setting as a row of the table."""
    key = f"{title}.{name}" if title else name
    default = "required" if field.is_required() else f"`{shown(field.default)}`"
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{key}` | {default} | {values_of(field.annotation, field.metadata)} | {meaning} |"


def shown(value: Any) -> str:
    """A default as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        steps = {b - a for a, b in pairwise(value)} if all(isinstance(item, int) for item in value) else set()
        if len(value) > 6 and len(steps) == 1:
            return f"[{value[0]}, {value[1]}, ..., {value[-1]}]"
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return value if isinstance(value, str) and value else json.dumps(value)


def values_of(annotation: Any, metadata: list[Any]) -> str:
    """The type or the choices, and the range."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return values_of(inner, [*metadata, *(m for extra in more for m in getattr(extra, "metadata", [extra]))])
    if is_union(annotation):
        kinds = [values_of(choice, metadata) for choice in get_args(annotation) if choice is not NoneType]
        return " or ".join(kinds) + (" or `none`" if NoneType in get_args(annotation) else "")
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        return (
            "list of " + values_of(parts[0], [])
            if parts[-1] is Ellipsis
            else f"{len(parts)} x {values_of(parts[0], [])}"
        )
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    name = {bool: "true, false", int: "integer", float: "number", str: "text"}.get(annotation, str(annotation))
    bounds = [
        f"{sign} {getattr(limit, field):g}"
        for limit in metadata
        for field, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if getattr(limit, field, None) is not None
    ]
    return " ".join([name, ", ".join(bounds)]).strip()


def is_union(annotation: Any) -> bool:
    """Whether an annotation is a choice of types."""
    return get_origin(annotation) in (UnionType, Union)


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
