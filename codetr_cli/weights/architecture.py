"""What the names and shapes of a checkpoint say about its architecture, in terms of the model's settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from codetr_cli.config import ModelConfig
from codetr_cli.errors import CheckpointError


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads the model's settings off the entries. Heads and points of attention show as their product only.

    Args:
        state: our names -> tensors.

    Returns:
        dotted name below `model` -> value; `num_heads*num_points` is the product of the two.

    Raises:
        CheckpointError: an entry that every checkpoint has is missing or has too few dimensions.
    """
    num_levels, embed_dim = _sizes(state, "encoder.level_embed", 2)
    attention = _sizes(state, "encoder.layers.0.self_attn.attention_weights.weight", 2)[0]
    roi = _sizes(state, "aux_heads.roi.fcs.0.weight", 2)
    return {
        "num_classes": _sizes(state, "class_heads.0.weight", 2)[0],
        "backbone.block": "bottleneck" if "backbone.layer1.0.conv3.weight" in state else "basic",
        "backbone.layers": tuple(_count(state, rf"backbone\.layer{i}\.(\d+)\..*") for i in range(1, 5)),
        "backbone.width": _sizes(state, "backbone.conv1.weight", 4)[0],
        "embed_dim": embed_dim,
        "num_levels": num_levels,
        "num_heads*num_points": attention // max(num_levels, 1),
        "ffn_dim": _sizes(state, "encoder.layers.0.ffn.linear1.weight", 2)[0],
        "encoder_layers": _count(state, r"encoder\.layers\.(\d+)\..*"),
        "decoder_layers": _count(state, r"decoder\.layers\.(\d+)\..*"),
        "num_queries": _sizes(state, "query_embed.weight", 2)[0],
        "roi.fc_dim": roi[0],
        "roi.output_size": math.isqrt(roi[1] // max(embed_dim, 1)),
    }


def differences(model: ModelConfig, facts: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that are not as the checkpoint's: dotted name -> (the setting, the checkpoint's)."""
    gaps = {}
    for key, theirs in facts.items():
        ours = _product(model, key)
        if ours != theirs:
            gaps[f"model.{key}"] = (ours, theirs)
    return gaps


def _product(model: ModelConfig, key: str) -> Any:
    """The value of a dotted setting, or the product of several joined by `*`."""
    values = []
    for name in key.split("*"):
        value: Any = model
        for part in name.split("."):
            value = getattr(value, part)
        values.append(value)
    return math.prod(values) if len(values) > 1 else values[0]


def _sizes(state: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in state:
        raise CheckpointError(f"the entry {name} is missing: the file is incomplete or of another architecture.")
    if state[name].dim() != dims:
        raise CheckpointError(
            f"{name} has {state[name].dim()} dimensions instead of {dims}: the file is of another architecture."
        )
    return tuple(state[name].shape)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in the pattern's place."""
    matches = (re.fullmatch(pattern, name) for name in state)
    return len({match.group(1) for match in matches if match})
