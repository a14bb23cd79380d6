"""Recomputation in the backward pass: it trades time for memory and changes no number."""

from __future__ import annotations

from typing import Any

from torch import nn

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import ModelConfig, Settings


def set_checkpointing(model: nn.Module, config: ModelConfig) -> None:
    """Has a network that is built already recompute in the backward pass what the settings say; changes no number.

    Args:
        model: a CoDETR, or a stand-in that has not all of its parts.
        config: the settings.
    """
    wanted: dict[str, int | bool] = {
        "encoder": config.encoder_checkpointing,
        "decoder": config.decoder_checkpointing,
        "aux_heads": config.aux_checkpointing,
        "backbone": config.backbone.checkpointing,
    }
    for name, value in wanted.items():
        part: Any = getattr(model, name, None)
        if part is not None:
            part.checkpointing = value


def with_all_checkpointing(settings: Settings) -> Settings:
    """The settings with everything recomputed that can be."""
    return replace_settings(settings, all_checkpointing(settings))


def all_checkpointing(settings: Settings) -> dict[str, int | bool]:
    """The settings that recompute everything, by name, in the order of what they save; only those not on already."""
    model = settings.model
    keys: dict[str, int | bool] = {}
    if model.encoder_checkpointing < model.encoder_layers:
        keys["model.encoder_checkpointing"] = model.encoder_layers
    if not model.decoder_checkpointing:
        keys["model.decoder_checkpointing"] = True
    if not model.aux_checkpointing:
        keys["model.aux_checkpointing"] = True
    if not model.backbone.checkpointing:
        keys["model.backbone.checkpointing"] = True
    return keys
