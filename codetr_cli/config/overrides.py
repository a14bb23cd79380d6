"""Tables and `key=value` texts into validated settings, and settings into TOML; errors name the nearest right key."""

from __future__ import annotations

import logging
import tomllib
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, nearest

logger = logging.getLogger(__name__)

# Former name of a setting -> its name now. Run folders, checkpoints and settings written earlier are read with it.
RENAMED = {
    "data.more": "data.extra_roots",
    "model.backbone.width": "model.backbone.embed_dim",  # a ResNet's: see `_current_name`
    "train.recipe": "train.auto_recipe",
    "train.least_steps": "train.min_steps",
    "train.same_at_any_width": "train.global_batch_losses",
    "train.shard": "train.fsdp",
    "train.preflight": "train.memory_check",
    "train.patience": "train.early_stop_patience",
    "train.max_bad_steps": "train.max_nonfinite_steps",
}
# Setting that does not exist any more -> why. It is accepted and ignored.
REMOVED = dict.fromkeys(("data.cache_mb", "data.file_cache_mb"), "the page cache of the system keeps image files")
# Values whose form changed with the name.
RENAMED_VALUES: dict[str, dict[Any, Any]] = {"train.recipe": {"auto": True, "preset": False}}
_ABSENT = object()


def parse_settings(table: dict[str, Any], where: str) -> Settings:
    """Validates a nested table of settings.

    Args:
        table: as read from TOML or JSON; settings may have former names (`RENAMED`) or be `REMOVED` ones.
        where: the source named in error messages.

    Raises:
        ConfigError: one line a wrong field, with the nearest right name for an unknown key.
    """
    try:
        return Settings.model_validate(_with_current_names(table, where))
    except ValidationError as error:
        raise ConfigError(f"wrong settings in {where}: " + "; ".join(_explain(error))) from error


def apply_overrides(settings: Settings, overrides: list[str]) -> Settings:
    """Applies `table.key=value` overrides; values are read as TOML and, failing that, as plain text.

    Raises:
        ConfigError: not of the form key=value, an unknown key, or a value out of range.
    """
    table = settings.model_dump(mode="json", exclude_unset=False)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {override!r} is not of the form key=value, e.g. --set train.lr=1e-4")
        if key.strip() in REMOVED:
            logger.warning("the setting %s is ignored: %s", key.strip(), REMOVED[key.strip()])
            continue
        former, key = key.strip(), _current_name(key.strip(), table)
        *parents, leaf = key.split(".")
        _check_key(key)
        node = table
        for parent in parents:
            node = node[parent]
        value = _parse_value(text.strip(), optional=_is_optional(key))
        if key != former:
            value = _current_value(former, value)
            logger.warning("the setting %s is now called %s", former, key)
        if leaf == "kind" and node.get("kind") != value:
            node.clear()  # the other kind's settings mean nothing here: this one starts from its defaults
        node[leaf] = value
    return parse_settings(table, where="--set") if overrides else settings


def _current_name(key: str, table: dict[str, Any]) -> str:
    """The name of a setting now, by its name now or a former one; `table` has the settings around it."""
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
        ConfigError: a setting is there under both names.
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
            raise ConfigError(f"{where} has both {former} and {current}, its name now: keep the second")
        table = _moved(table, former.split("."), current.rsplit(".", 1)[1], _current_value(former, value))
    return table


def _value_at(table: Any, key: str) -> Any:
    for name in key.split("."):
        table = table.get(name, _ABSENT) if isinstance(table, dict) else _ABSENT
    return table


def _moved(table: dict[str, Any], path: list[str], name: str, value: Any) -> dict[str, Any]:
    """A copy of a nested table in which the entry at `path` has another name and value."""
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
    """The complete settings, without None values, as TOML text that `load_preset` reads back to an equal object."""
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
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)


def _parse_value(text: str, *, optional: bool) -> Any:
    if optional and text.lower() in ("none", "null"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fields(section: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """Field names of a section, each with its section classes when it is a table: several for tables with a `kind`."""
    return {name: _sections(info.annotation) for name, info in section.model_fields.items()}


def _sections(annotation: Any) -> list[type[BaseModel]]:
    choices = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    return [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]


def setting_names(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Dotted names of every single setting, in the order of definition."""
    names: list[str] = []
    for name, children in _fields(section).items():
        for child in children:
            names += [known for known in setting_names(child, f"{prefix}{name}.") if known not in names]
        if not children:
            names.append(prefix + name)
    return names


def _is_optional(key: str) -> bool:
    """Whether the setting may be absent, so that the word none means that and not a choice of this name."""
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
        raise ConfigError(f"--set {key} names a table: set one value of it, e.g. --set {key}.<name>=...")
    by_leaf = [name for name in names if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = f"did you mean {by_leaf[0]!r}?" if by_leaf else nearest(key, names)
    raise ConfigError(f"unknown setting {key!r}: {hint}")


def _explain(error: ValidationError) -> list[str]:
    """One sentence a wrong field: its dotted name, what is wrong, and the nearest name for an unknown one."""
    sentences = []
    for item in error.errors():
        # Of a table that comes in kinds, the place names the kind too.
        places = [str(part) for part in item["loc"]]
        key = ".".join(part for before, part in zip(["", *places], places, strict=False) if before != "backbone")
        if item["type"] == "extra_forbidden":
            known = setting_names()
            hint = "it is one of another kind of backbone" if key in known else nearest(key, known)
            sentences.append(f"unknown setting {key!r} ({hint})")
        else:
            sentences.append(
                f"{key or 'settings'}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"
            )
    return sentences
