"""The preset files that ship with the program, and loading of any settings file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codetr_cli.config.overrides import apply_overrides, parse_settings, user_set, with_user_set
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError, nearest
from codetr_cli.reading import MAX_TOML_BYTES, parse_toml, read_bytes


def presets_dir() -> Path:
    """The folder of preset files: inside an installed package, or next to it in a checkout."""
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
    """Loads a preset by name, or any TOML file by path, and applies `key=value` overrides.

    Everything in a file given by path counts as set by the user (see `user_set`); the values of a preset do not.

    Raises:
        ConfigError: unknown preset, broken TOML, unknown key or a value out of range; suggests the nearest known name.
    """
    path, shipped = Path(name), False
    if path.suffix != ".toml":
        path, shipped = presets_dir() / f"{name}.toml", True
        if name not in preset_names():
            raise ConfigError(f"unknown preset {name!r}: {nearest(name, preset_names())}")
    try:
        table = parse_toml(read_bytes(path, MAX_TOML_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"cannot read settings {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    settings = parse_settings({"name": path.stem, **table}, where=str(path))
    settings = with_user_set(settings, () if shipped else user_set(settings) - {"name"})
    return apply_overrides(settings, overrides or [])
