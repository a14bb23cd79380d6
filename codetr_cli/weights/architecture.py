"""Derives the architecture of a checkpoint, as model settings, from the names and shapes of its entries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor

from codetr_cli.config.model_settings import ModelConfig
from codetr_cli.errors import CheckpointError


def describe(state: Mapping[str, Tensor], published: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Derives model settings from the entries. Of attention heads and points, only the product is known.

    Args:
        state: our names -> tensors.
        published: the entries under published names: some that we drop determine further settings.

    Returns:
        dotted name below `model` -> value; `num_heads*num_points` is the product of the two.

    Raises:
        CheckpointError: an entry that every checkpoint has is missing or has too few dimensions.
    """
    num_levels, embed_dim = _sizes(state, "encoder.level_embed", 2)
    attention = _sizes(state, "encoder.layers.0.self_attn.attention_weights.weight", 2)[0]
    roi = _sizes(state, "aux_heads.roi.fcs.0.weight", 2)
    num_classes = _sizes(state, "class_heads.0.weight", 2)[0]
    box_rows = _sizes(state, "aux_heads.roi.box_head.weight", 2)[0]
    return {
        "family": "co_deformable" if "query_positions.projection.weight" in state else "co_dino",
        "num_classes": num_classes,
        **_describe_backbone(state, published or {}),
        "embed_dim": embed_dim,
        "num_levels": num_levels,
        "num_heads*num_points": attention // max(num_levels, 1),
        "ffn_dim": _sizes(state, "encoder.layers.0.ffn.linear1.weight", 2)[0],
        "encoder_layers": _count(state, r"encoder\.layers\.(\d+)\..*"),
        "decoder_layers": _count(state, r"decoder\.layers\.(\d+)\..*"),
        "num_queries": _sizes(state, "query_embed.weight", 2)[0],
        "roi.fc_dim": roi[0],
        "roi.output_size": math.isqrt(roi[1] // max(embed_dim, 1)),
        "roi.num_convs": _count(state, r"aux_heads\.roi\.convs\.(\d+)\..*"),
        "roi.num_fcs": _count(state, r"aux_heads\.roi\.fcs\.(\d+)\..*"),
        # With one class, class-specific and class-agnostic boxes have the same shape.
        **({} if num_classes == 1 else {"roi.class_agnostic": box_rows == 4}),
        **_describe_masks(state),
    }


def _describe_backbone(state: Mapping[str, Tensor], published: Mapping[str, Tensor]) -> dict[str, Any]:
    if "backbone.pos_embed" in state:
        return _describe_vit(state, published)
    if "backbone.patch_embed.proj.weight" in state:
        return _describe_swin(state)
    channels, bottleneck = _sizes(state, "backbone.conv1.weight", 4)[0], "backbone.layer1.0.conv3.weight" in state
    first = _sizes(state, "neck.convs.0.conv.weight", 4)[1]
    return {
        "finest_stride": 4 if first == channels * (4 if bottleneck else 1) else 8,
        "backbone.kind": "resnet",
        "backbone.block": "bottleneck" if bottleneck else "basic",
        "backbone.layers": tuple(_count(state, rf"backbone\.layer{i}\.(\d+)\..*") for i in range(1, 5)),
        "backbone.base_channels": channels,
    }


def _describe_swin(state: Mapping[str, Tensor]) -> dict[str, Any]:
    tables = [
        _sizes(state, f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in range(4)
    ]
    return {
        "finest_stride": 4 if "backbone.norm0.weight" in state else 8,
        "backbone.kind": "swin",
        "backbone.embed_dim": _sizes(state, "backbone.patch_embed.proj.weight", 4)[0],
        "backbone.layers": tuple(_count(state, rf"backbone\.layers\.{stage}\.blocks\.(\d+)\..*") for stage in range(4)),
        "backbone.num_heads": tuple(heads for _, heads in tables),
        "backbone.window_size": (math.isqrt(tables[0][0]) + 1) // 2,
    }


def _describe_vit(state: Mapping[str, Tensor], published: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of a ViT; some are known only if the published file has rotary tables."""
    embed_dim, _, patch_size, _ = _sizes(state, "backbone.patch_embed.proj.weight", 4)
    depth = _count(state, r"backbone\.blocks\.(\d+)\..*")
    tokens = _sizes(state, "backbone.pos_embed", 3)[1]
    settings: dict[str, Any] = {
        "finest_stride": 4,
        "backbone.kind": "vit",
        "backbone.embed_dim": embed_dim,
        "backbone.depth": depth,
        "backbone.hidden_dim": _sizes(state, "backbone.blocks.0.mlp.w1.weight", 2)[0],
        "backbone.patch_size": patch_size,
        "backbone.pretrain_size": math.isqrt(max(tokens - 1, 0)) * patch_size,
    }
    if "backbone.rope_win.freqs_cos" not in published:
        return settings
    window_tokens, head_dim = _sizes(published, "backbone.rope_win.freqs_cos", 2)
    window_blocks = {
        i
        for i in range(depth)
        if (table := published.get(f"backbone.blocks.{i}.attn.rope.freqs_cos")) is not None
        and table.shape[:1] == (window_tokens,)
    }
    fixed = published.get("backbone.rope_glb.freqs_cos")
    if fixed is not None and fixed.dim() != 2:
        raise CheckpointError("backbone.rope_glb.freqs_cos is no table: the file has another architecture.")
    settings |= {
        "backbone.num_heads": embed_dim // max(head_dim, 1),
        "backbone.window_size": math.isqrt(window_tokens),
        "backbone.fixed_size": None if fixed is None else math.isqrt(fixed.shape[0]) * patch_size,
    }
    if (
        fixed is None or fixed.shape[0] != window_tokens
    ):  # else all blocks have the same tables: the image is one window
        settings["backbone.global_blocks"] = tuple(i for i in range(depth) if i not in window_blocks)
    return settings


def _describe_masks(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "aux_heads.roi.mask_head.logits.weight" in state:
        return {
            "mask.kind": "fcn",
            "mask.dim": _sizes(state, "aux_heads.roi.mask_head.logits.weight", 4)[1],
            "mask.num_convs": _count(state, r"aux_heads\.roi\.mask_head\.convs\.(\d+)\..*"),
        }
    if "mask_branch.head.logits.0.weight" not in state:
        return {"mask.kind": "none"}
    dim = _sizes(state, "mask_branch.head.logits.0.weight", 4)[1]
    fc = _sizes(state, "mask_branch.iou_head.fc.weight", 2)
    return {
        "mask.kind": "refine",
        "mask.dim": dim,
        "mask.pooled_size": 2 * math.isqrt(fc[1] // max(dim, 1)),
        "mask.instance_convs": _count(state, r"mask_branch\.head\.instance_convs\.(\d+)\..*"),
        "mask.semantic_convs": _count(state, r"mask_branch\.head\.semantic_convs\.(\d+)\..*"),
        "mask.iou_convs": _count(state, r"mask_branch\.iou_head\.convs\.(\d+)\..*"),
        "mask.iou_fc_dim": fc[0],
    }


def differences(model: ModelConfig, checkpoint: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compares model settings with those of `describe`; of two kinds of backbone, only the kind is compared.

    Returns:
        dotted name -> (value of `model`, value of the checkpoint), for every setting that differs.
    """
    found = {}
    same_backbone = checkpoint.get("backbone.kind", model.backbone.kind) == model.backbone.kind
    for key, theirs in checkpoint.items():
        if key.startswith("backbone.") and key != "backbone.kind" and not same_backbone:
            continue
        values = [attrgetter(name)(model) for name in key.split("*")]
        ours = math.prod(values) if len(values) > 1 else values[0]
        if ours != theirs:
            found[f"model.{key}"] = (ours, theirs)
    return found


def _sizes(state: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in state:
        raise CheckpointError(f"the entry {name} is missing: the file is incomplete or has another architecture.")
    if state[name].dim() != dims:
        raise CheckpointError(
            f"{name} has {state[name].dim()} dimensions instead of {dims}: the file has another architecture."
        )
    return tuple(state[name].shape)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """The number of different values of the pattern's group."""
    matches = (re.fullmatch(pattern, name) for name in state)
    return len({match.group(1) for match in matches if match})
