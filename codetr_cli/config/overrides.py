"""Changing settings: parse tables and `key=value` text, replace single values, track what the user set, write TOML.

Pydantic's `model_fields_set` of each section holds the settings that the user set: on the command line or in a settings
file of their own. Values of a preset that ships with the program and values that the program replaces do not count.
Error messages suggest the nearest known name.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, nearest
from codetr_cli.reading import check_counts, parse_toml

logger = logging.getLogger(__name__)

# Former name of a setting -> current name. Older run folders, checkpoints and settings files are read with it.
RENAMED = {
    "data.more": "data.extra_roots",
    "model.backbone.width": "model.backbone.embed_dim",  # a ResNet: see `_current_name`
    "train.recipe": "train.auto_recipe",
    "train.least_steps": "train.min_steps",
    "train.same_at_any_width": "train.global_batch_losses",
    "train.shard": "train.fsdp",
    "train.preflight": "train.memory_check",
    "train.patience": "train.early_stop_patience",
    "train.max_bad_steps": "train.max_nonfinite_steps",
}
# Removed setting -> reason. It is accepted and ignored.
REMOVED = dict.fromkeys(("data.cache_mb", "data.file_cache_mb"), "the page cache of the system keeps image files")
# Former values of settings whose type changed with the name.
RENAMED_VALUES: dict[str, dict[Any, Any]] = {"train.recipe": {"auto": True, "preset": False}}
_ABSENT = object()
MAX_ITEMS = 10_000  # of a list or table, far more than any has
MAX_EXPLAINED, MAX_SHOWN = 10, 100  # wrong settings of one file; characters of a wrong value

AnySection = TypeVar("AnySection", bound=BaseModel)


def parse_settings(table: dict[str, Any], where: str) -> Settings:
    """Validates a nested table of settings.

    Args:
        table: as read from TOML or JSON; settings may have former names (`RENAMED`) or be `REMOVED` ones.
        where: source of the table, for error messages.

    Raises:
        ConfigError: one sentence per wrong field, with the nearest known name for an unknown key.
    """
    try:
        check_counts(table, items=MAX_ITEMS, total=2 * MAX_ITEMS, text=10 * MAX_ITEMS)
    except ValueError as error:
        raise ConfigError(f"wrong settings in {where}: {error}") from error
    try:
        return Settings.model_validate(_with_current_names(table, where))
    except ValidationError as error:
        raise ConfigError(f"wrong settings in {where}: " + "; ".join(_explain(error))) from error


def apply_overrides(settings: Settings, overrides: list[str]) -> Settings:
    """Applies `table.key=value` overrides of the user; values are parsed as TOML, or taken as plain text.

    Raises:
        ConfigError: not of the form key=value, an unknown key, or a value out of range.
    """
    if not overrides:
        return settings
    table, changed = settings.model_dump(mode="json"), set(user_set(settings))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {override!r} is not of the form key=value, e.g. --set train.lr=1e-4")
        if key.strip() in REMOVED:
            logger.warning("the setting %s is ignored: %s", key.strip(), REMOVED[key.strip()])
            continue
        former, key = key.strip(), _current_name(key.strip(), table)
        _check_key(key)
        value = _parse_value(text.strip(), optional=_is_optional(key))
        if key != former:
            value = _current_value(former, value)
            logger.warning("the setting %s is now called %s", former, key)
        _set_value(table, key, value)
        changed.add(key)
    return with_user_set(parse_settings(table, where="--set"), changed)


def replace_settings(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Replaces values by dotted name and validates the result; what counts as set by the user stays the same.

    Args:
        settings: any.
        values: e.g. {"train.epochs": 5, "data.root": "/data/coco"}.

    Raises:
        ConfigError: an unknown key or a value out of range.
    """
    if not values:
        return settings
    table = settings.model_dump()
    for key, value in values.items():
        _check_key(key)
        _set_value(table, key, value)
    return with_user_set(parse_settings(table, where=", ".join(values)), user_set(settings))


def _set_value(table: dict[str, Any], key: str, value: Any) -> None:
    """Sets one value of a nested table; a new `kind` drops the settings of the former one."""
    *parents, leaf = key.split(".")
    node = table
    for parent in parents:
        node = node[parent]
    if leaf == "kind" and node.get("kind") != value:
        node.clear()
    node[leaf] = value


def user_set(section: BaseModel, prefix: str = "") -> frozenset[str]:
    """Dotted names of the settings that the user set; all others have their preset's or default value."""
    names: set[str] = set()
    for name, value in section:
        if isinstance(value, BaseModel):
            names |= user_set(value, f"{prefix}{name}.")
        elif name in section.model_fields_set:
            names.add(prefix + name)
    return frozenset(names)


def with_user_set(settings: Settings, names: Collection[str]) -> Settings:
    """The same settings, of which exactly `names` (dotted) count as set by the user."""
    return _with_user_set(settings, names, "")


def _with_user_set(section: AnySection, names: Collection[str], prefix: str) -> AnySection:
    values: dict[str, Any] = {}
    fields: set[str] = set()
    for name, value in section:
        nested = isinstance(value, BaseModel)
        key = f"{prefix}{name}"
        values[name] = _with_user_set(value, names, f"{key}.") if nested else value
        if key in names or (nested and any(each.startswith(f"{key}.") for each in names)):
            fields.add(name)
    return type(section).model_construct(_fields_set=fields, **values)


def _current_name(key: str, table: dict[str, Any]) -> str:
    """Current name of a setting, given its current or a former name; `table` holds the other settings."""
    if key == "model.backbone.width":
        kind = table.get("model", {}).get("backbone", {}).get("kind", "resnet")
        return "model.backbone.base_channels" if kind == "resnet" else RENAMED[key]
    return RENAMED.get(key, key)


def _current_value(former: str, value: Any) -> Any:
    values = RENAMED_VALUES.get(former, {})
    return values.get(value, value) if isinstance(value, str) else value


def _with_current_names(table: dict[str, Any], where: str) -> dict[str, Any]:
    """A copy of a table of settings with former names replaced and removed settings dropped.

    Raises:
        ConfigError: a setting is given under both names.
    """
    for key in REMOVED:
        if _value_at(table, key) is not _ABSENT:
            table = _without(table, key.split("."))
    for former in RENAMED:
        value = _value_at(table, former)
        if value is _ABSENT:
            continue
        current = _current_name(former, table)
        if _value_at(table, current) is not _ABSENT:
            raise ConfigError(f"{where} sets both {former} and its current name {current}: keep only {current}")
        table = _moved(table, former.split("."), current.rsplit(".", 1)[1], _current_value(former, value))
    return table


def _value_at(table: Any, key: str) -> Any:
    for name in key.split("."):
        table = table.get(name, _ABSENT) if isinstance(table, dict) else _ABSENT
    return table


def _moved(table: dict[str, Any], path: list[str], name: str, value: Any) -> dict[str, Any]:
    """A copy of a nested table in which the entry at `path` has a new name and value."""
    first, *rest = path
    if rest:
        return {**table, first: _moved(table[first], rest, name, value)}
    return {key: kept for key, kept in table.items() if key != first} | {name: value}


def _without(table: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """A copy of a nested table without the entry at `path`."""
    first, *rest = path
    if rest:
        return {**table, first: _without(table[first], rest)}
    return {key: kept for key, kept in table.items() if key != first}


def to_toml(settings: Settings) -> str:
    """All settings except None values as TOML text; `load_preset` reads it back to an equal object."""
    lines: list[str] = []
    _write_table(settings.model_dump(mode="json", exclude_none=True), [], lines)
    return "\n".join(lines).strip() + "\n"


def _write_table(table: dict[str, Any], path: list[str], lines: list[str]) -> None:
    if path:
        lines += ["", f"[{'.'.join(path)}]"]
    lines += [f"{key} = {_toml_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(value, [*path, key], lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON escapes what TOML does, except the delete character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)


def _parse_value(text: str, *, optional: bool) -> Any:
    if optional and text.lower() in ("none", "null"):
        return None
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _fields(section: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """Field names of a section with the section classes of each: none for a value, several for a table with `kind`."""
    return {name: _sections(info.annotation) for name, info in section.model_fields.items()}


def _sections(annotation: Any) -> list[type[BaseModel]]:
    choices = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    return [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]


@functools.cache  # every changed setting is looked up in them
def setting_names(section: type[BaseModel] = Settings, prefix: str = "") -> tuple[str, ...]:
    """Dotted names of all settings, in the order of definition."""
    names: list[str] = []
    for name, children in _fields(section).items():
        for child in children:
            names += [known for known in setting_names(child, f"{prefix}{name}.") if known not in names]
        if not children:
            names.append(prefix + name)
    return tuple(names)


def _is_optional(key: str) -> bool:
    """Whether the setting can be None, so that the text "none" means None instead of a choice with that name."""
    sections: list[type[BaseModel]] = [Settings]
    *parents, leaf = key.split(".")
    for parent in parents:
        sections = [child for section in sections for child in _fields(section).get(parent, [])]
    annotations = [section.model_fields[leaf].annotation for section in sections if leaf in section.model_fields]
    return any(type(None) in get_args(annotation) for annotation in annotations)


def _check_key(key: str) -> None:
    names = setting_names()
    if key in names:
        return
    if any(name.startswith(key + ".") for name in names):
        raise ConfigError(f"--set {key} names a table: set one of its values, e.g. --set {key}.<name>=...")
    by_leaf = [name for name in names if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = f"did you mean {by_leaf[0]!r}?" if by_leaf else nearest(key, names)
    raise ConfigError(f"unknown setting {key!r}: {hint}")


def _explain(error: ValidationError) -> list[str]:
    """One sentence per wrong field: its dotted name, what is wrong, and the nearest name of an unknown field."""
    sentences = []
    for item in error.errors(include_url=False)[:MAX_EXPLAINED]:
        # The location inside a table with `kind` contains the kind too.
        places = [str(part) for part in item["loc"]]
        key = ".".join(part for before, part in zip(["", *places], places, strict=False) if before != "backbone")
        if item["type"] == "extra_forbidden":
            known = setting_names()
            hint = "it belongs to another kind of backbone" if key in known else nearest(key, known)
            sentences.append(f"unknown setting {_shortened(key)} ({hint})")
        else:
            sentences.append(
                f"{key or 'settings'}: {item['msg'].removeprefix('Value error, ')} (got {_shortened(item['input'])})"
            )
    others = error.error_count() - len(sentences)
    return [*sentences, f"and {others:,} more"] if others else sentences


def _shortened(value: Any) -> str:
    """A value as text of limited length."""
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply; a number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
