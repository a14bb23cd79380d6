"""Swin backbones: Sense-X and we use Microsoft's names; MMDetection 3 has its own."""

from __future__ import annotations

_OURS = "backbone.layers.{}.blocks.{}."
_MMDET3 = "backbone.stages.{}.blocks.{}."

SWIN_SENSEX = {
    "backbone.patch_embed.proj.weight": "backbone.patch_embed.proj.weight",
    "backbone.patch_embed.proj.bias": "backbone.patch_embed.proj.bias",
    _OURS + "norm1.weight": _OURS + "norm1.weight",
    _OURS + "norm1.bias": _OURS + "norm1.bias",
    _OURS + "attn.relative_position_bias_table": _OURS + "attn.relative_position_bias_table",
    _OURS + "attn.qkv.weight": _OURS + "attn.qkv.weight",
    _OURS + "attn.qkv.bias": _OURS + "attn.qkv.bias",
    _OURS + "attn.proj.weight": _OURS + "attn.proj.weight",
    _OURS + "attn.proj.bias": _OURS + "attn.proj.bias",
    _OURS + "norm2.weight": _OURS + "norm2.weight",
    _OURS + "norm2.bias": _OURS + "norm2.bias",
    _OURS + "mlp.fc1.weight": _OURS + "mlp.fc1.weight",
    _OURS + "mlp.fc1.bias": _OURS + "mlp.fc1.bias",
    _OURS + "mlp.fc2.weight": _OURS + "mlp.fc2.weight",
    _OURS + "mlp.fc2.bias": _OURS + "mlp.fc2.bias",
    "backbone.layers.{}.downsample.norm.weight": "backbone.layers.{}.downsample.norm.weight",
    "backbone.layers.{}.downsample.norm.bias": "backbone.layers.{}.downsample.norm.bias",
    "backbone.layers.{}.downsample.reduction.weight": "backbone.layers.{}.downsample.reduction.weight",
}

SWIN_MMDET3 = {
    "backbone.patch_embed.projection.weight": "backbone.patch_embed.proj.weight",
    "backbone.patch_embed.projection.bias": "backbone.patch_embed.proj.bias",
    _MMDET3 + "norm1.weight": _OURS + "norm1.weight",
    _MMDET3 + "norm1.bias": _OURS + "norm1.bias",
    _MMDET3 + "attn.w_msa.relative_position_bias_table": _OURS + "attn.relative_position_bias_table",
    _MMDET3 + "attn.w_msa.qkv.weight": _OURS + "attn.qkv.weight",
    _MMDET3 + "attn.w_msa.qkv.bias": _OURS + "attn.qkv.bias",
    _MMDET3 + "attn.w_msa.proj.weight": _OURS + "attn.proj.weight",
    _MMDET3 + "attn.w_msa.proj.bias": _OURS + "attn.proj.bias",
    _MMDET3 + "norm2.weight": _OURS + "norm2.weight",
    _MMDET3 + "norm2.bias": _OURS + "norm2.bias",
    _MMDET3 + "ffn.layers.0.0.weight": _OURS + "mlp.fc1.weight",
    _MMDET3 + "ffn.layers.0.0.bias": _OURS + "mlp.fc1.bias",
    _MMDET3 + "ffn.layers.1.weight": _OURS + "mlp.fc2.weight",
    _MMDET3 + "ffn.layers.1.bias": _OURS + "mlp.fc2.bias",
    "backbone.stages.{}.downsample.norm.weight": "backbone.layers.{}.downsample.norm.weight",
    "backbone.stages.{}.downsample.norm.bias": "backbone.layers.{}.downsample.norm.bias",
    "backbone.stages.{}.downsample.reduction.weight": "backbone.layers.{}.downsample.reduction.weight",
}

SWIN = {
    "backbone.patch_embed.norm.weight": "backbone.patch_embed.norm.weight",
    "backbone.patch_embed.norm.bias": "backbone.patch_embed.norm.bias",
    "backbone.norm{}.weight": "backbone.norm{}.weight",
    "backbone.norm{}.bias": "backbone.norm{}.bias",
}

MERGED = (
    "backbone.layers.{}.downsample.norm.weight",
    "backbone.layers.{}.downsample.norm.bias",
    "backbone.layers.{}.downsample.reduction.weight",
)
"""Our entries whose last dimension is the merged channels of 2 x 2 tokens."""
