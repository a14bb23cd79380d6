"""The preset files that ship with the program, and reading any settings file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from codetr_cli.config.overrides import apply_overrides, parse_settings
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, nearest


def presets_dir() -> Path:
    """The folder of preset files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Names of all presets that ship with the program, sorted."""
    return sorted(path.stem for path in presets_dir().glob("*.toml"))


def preset_figures() -> dict[str, dict[str, Any]]:
    """Name of a preset -> its `parameters`, `detection_parameters`, `gflops` and `size`, see benchmark/flops.py."""
    figures: dict[str, dict[str, Any]] = json.loads((presets_dir() / "figures.json").read_text(encoding="utf-8"))
    return figures


def load_preset(name: str, overrides: list[str] | None = None) -> Settings:
    """Reads a preset by name, or any TOML file by path, and applies `key=value` overrides.

    Raises:
        ConfigError: unknown preset, broken TOML, unknown key or a value out of range; names the nearest right name.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = presets_dir() / f"{name}.toml"
        if not path.is_file():
            raise ConfigError(f"unknown preset {name!r}: {nearest(name, preset_names())}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    table.setdefault("name", path.stem)
    return apply_overrides(parse_settings(table, where=str(path)), overrides or [])


def chosen_settings(name: str, overrides: list[str] | None = None) -> frozenset[str]:
    """Dotted names of the settings that a person chose: of `overrides`, and all in a preset file of their own.

    Args:
        name: as for `load_preset`, which has read it without an error.
        overrides: `key=value` each.
    """
    chosen = {override.partition("=")[0].strip() for override in overrides or []}
    if Path(name).suffix == ".toml":
        pending: list[tuple[str, Any]] = [("", tomllib.loads(Path(name).read_text(encoding="utf-8")))]
        while pending:
            prefix, value = pending.pop()
            if isinstance(value, dict):
                pending += [(f"{prefix}.{key}" if prefix else key, item) for key, item in value.items()]
            else:
                chosen.add(prefix)
    return frozenset(chosen)
