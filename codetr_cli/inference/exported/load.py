"""From an exported file to a network and the settings that it detects with."""

from __future__ import annotations

from collections.abc import Sequence
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
    network = ExportedNetwork(open_engine(path, device))
    metadata = network.engine.metadata
    stored = metadata.parsed_settings(str(path))
    check_overrides(metadata, overrides, path)
    return network, settings_of_checkpoint(stored, overrides, source=str(path))


def default_tiles(metadata: ExportMetadata) -> TileOptions | None:
    """The tiles that large images are cut into unless others are asked for."""
    rule = metadata.tiles
    return None if rule is None else TileOptions(size=rule.size, overlap=rule.overlap, whole=rule.whole)


def check_overrides(metadata: ExportMetadata, overrides: Sequence[str], path: Path) -> None:
    """Refuses settings that an exported file has decided.

    Raises:
        ConfigError: names the setting, and how to export with it.
    """
    is_fixed = metadata.input.height is not None
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key.startswith("model.") or key in FIXED or (is_fixed and key in SIZES):
            how = "--size or --dynamic-size" if key in SIZES else f"--set {override}"
            raise ConfigError(f"{key} is part of the exported file {path}: export the checkpoint again with {how}")
