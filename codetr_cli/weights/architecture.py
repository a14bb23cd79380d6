"""What the names and shapes of a checkpoint say about its architecture, in terms of the model's settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from codetr_cli.config.schema import ModelConfig
from codetr_cli.errors import CheckpointError


def describe(state: Mapping[str, Tensor], published: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Reads the model's settings off the entries. Heads and points of attention show as their product only.

    Args:
        state: our names -> tensors.
        published: the entries under published names: some that we drop tell what ours do not.

    Returns:
        dotted name below `model` -> value; `num_heads*num_points` is the product of the two.

    Raises:
        CheckpointError: an entry that every checkpoint has is missing or has too few dimensions.
    """
    num_levels, embed_dim = _sizes(state, "encoder.level_embed", 2)
    attention = _sizes(state, "encoder.layers.0.self_attn.attention_weights.weight", 2)[0]
    roi = _sizes(state, "aux_heads.roi.fcs.0.weight", 2)
    num_classes = _sizes(state, "class_heads.0.weight", 2)[0]
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
        **_describe_boxes(state, num_classes),
        **_describe_masks(state),
    }


def _describe_boxes(state: Mapping[str, Tensor], num_classes: int) -> dict[str, Any]:
    rows = _sizes(state, "aux_heads.roi.box_head.weight", 2)[0]
    # With one class, boxes for each class and boxes for all have the same shape.
    return {} if num_classes == 1 else {"roi.class_agnostic": rows == 4}


def _describe_backbone(state: Mapping[str, Tensor], published: Mapping[str, Tensor]) -> dict[str, Any]:
    if "backbone.pos_embed" in state:
        return _describe_vit(state, published)
    if "backbone.patch_embed.proj.weight" in state:
        return _describe_swin(state)
    width, bottleneck = _sizes(state, "backbone.conv1.weight", 4)[0], "backbone.layer1.0.conv3.weight" in state
    first = _sizes(state, "neck.convs.0.conv.weight", 4)[1]
    return {
        "finest_stride": 4 if first == width * (4 if bottleneck else 1) else 8,
        "backbone.kind": "resnet",
        "backbone.block": "bottleneck" if bottleneck else "basic",
        "backbone.layers": tuple(_count(state, rf"backbone\.layer{i}\.(\d+)\..*") for i in range(1, 5)),
        "backbone.base_channels": width,
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
    """Sizes of a ViT; what only its rotary tables tell is told only when the publisher's file has them."""
    width, _, patch_size, _ = _sizes(state, "backbone.patch_embed.proj.weight", 4)
    depth = _count(state, r"backbone\.blocks\.(\d+)\..*")
    positions = _sizes(state, "backbone.pos_embed", 3)[1]
    facts: dict[str, Any] = {
        "finest_stride": 4,
        "backbone.kind": "vit",
        "backbone.embed_dim": width,
        "backbone.depth": depth,
        "backbone.hidden_dim": _sizes(state, "backbone.blocks.0.mlp.w1.weight", 2)[0],
        "backbone.patch_size": patch_size,
        "backbone.pretrain_size": math.isqrt(max(positions - 1, 0)) * patch_size,
    }
    if "backbone.rope_win.freqs_cos" not in published:
        return facts
    tokens, head_dim = _sizes(published, "backbone.rope_win.freqs_cos", 2)
    window_blocks = {
        i
        for i in range(depth)
        if (table := published.get(f"backbone.blocks.{i}.attn.rope.freqs_cos")) is not None and len(table) == tokens
    }
    fixed = published.get("backbone.rope_glb.freqs_cos")
    facts |= {
        "backbone.num_heads": width // max(head_dim, 1),
        "backbone.window_size": math.isqrt(tokens),
        "backbone.fixed_size": None if fixed is None else math.isqrt(len(fixed)) * patch_size,
    }
    if fixed is None or len(fixed) != tokens:  # an image of one window's size: the tables of all blocks look the same
        facts["backbone.global_blocks"] = tuple(i for i in range(depth) if i not in window_blocks)
    return facts


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


def differences(model: ModelConfig, facts: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that are not as the checkpoint's: dotted name -> (the setting, the checkpoint's).

    Settings of a part of another kind are not compared one by one.
    """
    gaps = {}
    same_backbone = facts.get("backbone.kind", model.backbone.kind) == model.backbone.kind
    for key, theirs in facts.items():
        if key.startswith("backbone.") and key != "backbone.kind" and not same_backbone:
            continue
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
