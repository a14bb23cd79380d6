"""Swin backbones: Sense-X and we use Microsoft's names; MMDetection 3 has its own."""

from __future__ import annotations

_OURS = "backbone.layers.{}.blocks.{}."
_MMDET3 = "backbone.stages.{}.blocks.{}."

SWIN_SENSEX = {
    "backbone.patch_embed.proj.*": "backbone.patch_embed.proj.*",
    _OURS + "norm1.*": _OURS + "norm1.*",
    _OURS + "attn.relative_position_bias_table": _OURS + "attn.relative_position_bias_table",
    _OURS + "attn.qkv.*": _OURS + "attn.qkv.*",
    _OURS + "attn.proj.*": _OURS + "attn.proj.*",
    _OURS + "norm2.*": _OURS + "norm2.*",
    _OURS + "mlp.fc1.*": _OURS + "mlp.fc1.*",
    _OURS + "mlp.fc2.*": _OURS + "mlp.fc2.*",
    "backbone.layers.{}.downsample.norm.*": "backbone.layers.{}.downsample.norm.*",
    "backbone.layers.{}.downsample.reduction.weight": "backbone.layers.{}.downsample.reduction.weight",
}

SWIN_MMDET3 = {
    "backbone.patch_embed.projection.*": "backbone.patch_embed.proj.*",
    _MMDET3 + "norm1.*": _OURS + "norm1.*",
    _MMDET3 + "attn.w_msa.relative_position_bias_table": _OURS + "attn.relative_position_bias_table",
    _MMDET3 + "attn.w_msa.qkv.*": _OURS + "attn.qkv.*",
    _MMDET3 + "attn.w_msa.proj.*": _OURS + "attn.proj.*",
    _MMDET3 + "norm2.*": _OURS + "norm2.*",
    _MMDET3 + "ffn.layers.0.0.*": _OURS + "mlp.fc1.*",
    _MMDET3 + "ffn.layers.1.*": _OURS + "mlp.fc2.*",
    "backbone.stages.{}.downsample.norm.*": "backbone.layers.{}.downsample.norm.*",
    "backbone.stages.{}.downsample.reduction.weight": "backbone.layers.{}.downsample.reduction.weight",
}

SWIN = {
    "backbone.patch_embed.norm.*": "backbone.patch_embed.norm.*",
    "backbone.norm{}.*": "backbone.norm{}.*",
}

MERGED = (
    "backbone.layers.{}.downsample.norm.weight",
    "backbone.layers.{}.downsample.norm.bias",
    "backbone.layers.{}.downsample.reduction.weight",
)
"""Our entries whose last dimension is the merged channels of 2 x 2 tokens."""
