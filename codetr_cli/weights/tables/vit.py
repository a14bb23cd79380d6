"""ViT backbones and their neck, with the names of Sense-X, the only publisher."""

from __future__ import annotations

_BLOCK = "backbone.blocks.{}."

VIT = {
    "backbone.pos_embed": "backbone.pos_embed",
    "backbone.patch_embed.proj.weight": "backbone.patch_embed.proj.weight",
    "backbone.patch_embed.proj.bias": "backbone.patch_embed.proj.bias",
    _BLOCK + "norm1.weight": _BLOCK + "norm1.weight",
    _BLOCK + "norm1.bias": _BLOCK + "norm1.bias",
    _BLOCK + "attn.q_proj.weight": _BLOCK + "attn.q_proj.weight",
    _BLOCK + "attn.q_bias": _BLOCK + "attn.q_proj.bias",
    _BLOCK + "attn.k_proj.weight": _BLOCK + "attn.k_proj.weight",
    _BLOCK + "attn.v_proj.weight": _BLOCK + "attn.v_proj.weight",
    _BLOCK + "attn.v_bias": _BLOCK + "attn.v_proj.bias",
    _BLOCK + "attn.proj.weight": _BLOCK + "attn.proj.weight",
    _BLOCK + "attn.proj.bias": _BLOCK + "attn.proj.bias",
    _BLOCK + "norm2.weight": _BLOCK + "norm2.weight",
    _BLOCK + "norm2.bias": _BLOCK + "norm2.bias",
    _BLOCK + "mlp.w1.weight": _BLOCK + "mlp.w1.weight",
    _BLOCK + "mlp.w1.bias": _BLOCK + "mlp.w1.bias",
    _BLOCK + "mlp.w2.weight": _BLOCK + "mlp.w2.weight",
    _BLOCK + "mlp.w2.bias": _BLOCK + "mlp.w2.bias",
    _BLOCK + "mlp.ffn_ln.weight": _BLOCK + "mlp.norm.weight",
    _BLOCK + "mlp.ffn_ln.bias": _BLOCK + "mlp.norm.bias",
    _BLOCK + "mlp.w3.weight": _BLOCK + "mlp.w3.weight",
    _BLOCK + "mlp.w3.bias": _BLOCK + "mlp.w3.bias",
    "backbone.out_norm.weight": "backbone.out_norm.weight",
    "backbone.out_norm.bias": "backbone.out_norm.bias",
    "neck.p{}.{}.weight": "neck.p{}.{}.weight",
    "neck.p{}.{}.bias": "neck.p{}.{}.bias",
}

ROTARY_TABLES = (
    "backbone.rope_win.freqs_cos",
    "backbone.rope_win.freqs_sin",
    "backbone.rope_glb.freqs_cos",
    "backbone.rope_glb.freqs_sin",
    _BLOCK + "attn.rope.freqs_cos",
    _BLOCK + "attn.rope.freqs_sin",
)
"""Published entries that the model computes from the sizes of windows and image."""
