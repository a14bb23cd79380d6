"""Activation checkpointing: recomputation in the backward pass, which trades time for memory and changes no number."""

from __future__ import annotations

from typing import Any

from torch import nn

from codetr_cli.config.model_settings import ModelConfig
from codetr_cli.config.schema import Settings


def set_checkpointing(model: nn.Module, config: ModelConfig) -> None:
    """Switches activation checkpointing of a built network, or of those of its parts that it has, on or off."""
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


def all_checkpointing(settings: Settings) -> dict[str, int | bool]:
    """The settings for activation checkpointing everywhere, those that save most first; only those not yet on."""
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
