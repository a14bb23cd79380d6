"""The metadata of our checkpoints besides the settings: typed, within limits, and checked against each other."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codetr_cli.class_names import MAX_NAME, has_control_characters, spaced_class_name, storable_class_name
from codetr_cli.errors import listed
from codetr_cli.reading import parse_json

logger = logging.getLogger(__name__)

JSON_ENTRIES = ("class_names", "category_ids", "extra")
MAX_VERSION = 40  # characters
MAX_REASONS = 3
MAX_EXTRA = 100  # entries

CategoryId = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class ClassMetadata(BaseModel):
    """Classes and further metadata, as JSON in the metadata of a checkpoint.

    Attributes:
        class_names: class name of each label.
        category_ids: id of each label in annotation and result files.
        extra: further texts.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    class_names: list[Annotated[str, Field(max_length=MAX_NAME)]]
    category_ids: list[CategoryId]
    extra: Annotated[
        dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=100_000)]],
        Field(max_length=MAX_EXTRA),
    ]


def parse_classes(metadata: Mapping[str, str], num_classes: int, where: str) -> ClassMetadata:
    """The classes of a checkpoint.

    White space in class names that is a control character, e.g. a line break, becomes a space. Such names, and classes
    with the same name, are warned of: data sets have them.

    Args:
        metadata: of the file.
        num_classes: of its settings.
        where: the file, for warnings.

    Raises:
        ValueError: missing entries, wrong types, other numbers of classes, ids that are not unique, or names with
            control characters; the message names the entry.
    """
    table: dict[str, Any] = {}
    for key in JSON_ENTRIES:
        if key not in metadata:
            raise ValueError(f"{key} is missing")
        try:
            table[key] = parse_json(metadata[key], unique_keys=True)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        if isinstance(table[key], (list, dict)) and len(table[key]) > max(num_classes, MAX_EXTRA):
            raise ValueError(f"{key} has {len(table[key]):,} items, and the settings have {num_classes} classes")
    try:
        found = ClassMetadata.model_validate(table)
    except ValidationError as error:
        raise ValueError("; ".join(_reasons(error))) from error
    for key, values in (("class_names", found.class_names), ("category_ids", found.category_ids)):
        if len(values) != num_classes:
            raise ValueError(f"{key} has {len(values)} items, and the settings have {num_classes} classes")
    twice = [value for value, count in Counter(found.category_ids).items() if count > 1]
    if twice:
        raise ValueError(f"category_ids has {listed(twice)} twice")
    for key, text in found.extra.items():
        if has_control_characters(key) or has_control_characters(text.replace("\n", " ")):
            raise ValueError(f"extra has control characters in {key[:40]!r}")
    return found.model_copy(update={"class_names": _checked_names(found.class_names, where)})


def _checked_names(stored: Sequence[str], where: str) -> list[str]:
    """Names without control characters; warns of odd ones.

    Raises:
        ValueError: a name has a control character that is not white space.
    """
    names = [spaced_class_name(name) for name in stored]
    wrong = [name for name in names if has_control_characters(name)]
    if wrong:
        shown = listed([ascii(name[:40]) for name in wrong])
        raise ValueError(f"class_names has control characters, which could change a terminal, in {shown}")
    odd = [ascii(before[:40]) for before, after in zip(stored, names, strict=True) if before != after]
    if odd:
        logger.warning("%s has class names with line breaks or tabs, read as spaces: %s", where, listed(odd))
    twice = [name[:40] for name, count in Counter(names).items() if count > 1]
    if twice:
        logger.warning("%s has several classes of the same name: %s", where, listed(twice))
    return names


def storable_text(text: str) -> str:
    """A text that JSON in UTF-8 can hold: parts of file names that are not UTF-8 are shown as escapes."""
    lines = text.encode("utf-8", "backslashreplace").decode().split("\n")
    return "\n".join(storable_class_name(line) if has_control_characters(line) else line for line in lines)


def version_of(metadata: Mapping[str, str]) -> str:
    """The version of codetr that wrote a file, as a short text."""
    version = metadata.get("codetr_version", "")
    return version if re.fullmatch(rf"[\w.+-]{{1,{MAX_VERSION}}}", version, re.ASCII) else "of an unknown version"


def _reasons(error: ValidationError) -> list[str]:
    """What is wrong, in the words of Pydantic, of the first wrong entries."""
    errors = error.errors(include_url=False, include_input=False)
    reasons = [f"{'.'.join(str(part)[:40] for part in item['loc'])}: {item['msg']}" for item in errors[:MAX_REASONS]]
    others = len(errors) - len(reasons)
    return [*reasons, f"and {others:,} more"] if others else reasons
