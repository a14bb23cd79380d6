"""From an exported file to a network and the settings that it detects with."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import torch

from codetr_cli.config.checkpoint_settings import settings_of_checkpoint
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from codetr_cli.inference.exported.engine import open_engine
from codetr_cli.inference.exported.metadata import ExportMetadata
from codetr_cli.inference.exported.network import ExportedNetwork
from codetr_cli.inference.options import TileOptions

FIXED = ("data.pad_divisor", "data.mean", "data.std", "test.head")
"""Settings, besides those of the model, that are part of an exported file."""
SIZES = ("test.short_side", "test.long_side", "test.canvas", "test.fixed_size")


def load_network(path: Path, device: torch.device, overrides: Sequence[str]) -> tuple[ExportedNetwork, Settings]:
    """The network in a file, and its settings with `overrides`.

    Raises:
        CheckpointError: the file cannot be read, or was not written by `codetr export`.
        ConfigError: an override of what is part of the file.
        ResourceError: the library for the file is not installed, or cannot use the device.
    """
    engine = open_engine(path, device, processor_of(overrides))
    stored = engine.metadata.parsed_settings(str(path))
    settings = settings_of_checkpoint(stored, overrides, source=str(path))
    check_settings(engine.metadata, stored, settings, path)
    return ExportedNetwork(engine, path), settings


def default_tiles(metadata: ExportMetadata) -> TileOptions | None:
    """The tiles that large images are cut into unless others are asked for."""
    rule = metadata.tiles
    return None if rule is None else TileOptions(size=rule.size, overlap=rule.overlap, whole=rule.whole)


def processor_of(overrides: Sequence[str]) -> str | None:
    """The last value of `test.openvino_device` in settings as `key=value`; None: there is none, or the CPU."""
    pairs = [override.partition("=") for override in overrides]
    found = [value.strip() for key, _, value in pairs if key.strip() == "test.openvino_device"]
    return found[-1].upper() if found and found[-1].upper() != "CPU" else None


def check_settings(metadata: ExportMetadata, stored: Settings, settings: Settings, path: Path) -> None:
    """Refuses settings other than those that an exported file has decided.

    Args:
        metadata: of the file.
        stored: settings in the file.
        settings: to use it with.
        path: of the file.

    Raises:
        ConfigError: names the setting, and how to export with it.
    """
    if settings.model != stored.model:
        raise ConfigError(
            f"the settings below model are part of the exported file {path}: export the checkpoint again with them"
        )
    fixed = FIXED if metadata.input.height is None else (*FIXED, *SIZES)
    for key in fixed:
        value = attrgetter(key)(settings)
        if value == attrgetter(key)(stored):
            continue
        if key == "test.head":
            raise ConfigError(f"the {value} head is not part of the exported file {path}: use the checkpoint itself")
        how = "another --size, or with --dynamic-size" if key in SIZES else f"--set {key}={value}"
        raise ConfigError(f"{key} is part of the exported file {path}: export the checkpoint again with {how}")
