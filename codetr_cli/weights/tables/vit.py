"""ViT backbones and their neck, with the names of Sense-X, the only publisher."""

from __future__ import annotations

_BLOCK = "backbone.blocks.{}."

VIT = {
    "backbone.pos_embed": "backbone.pos_embed",
    "backbone.patch_embed.proj.*": "backbone.patch_embed.proj.*",
    _BLOCK + "norm1.*": _BLOCK + "norm1.*",
    _BLOCK + "attn.q_proj.weight": _BLOCK + "attn.q_proj.weight",
    _BLOCK + "attn.q_bias": _BLOCK + "attn.q_proj.bias",
    _BLOCK + "attn.k_proj.weight": _BLOCK + "attn.k_proj.weight",
    _BLOCK + "attn.v_proj.weight": _BLOCK + "attn.v_proj.weight",
    _BLOCK + "attn.v_bias": _BLOCK + "attn.v_proj.bias",
    _BLOCK + "attn.proj.*": _BLOCK + "attn.proj.*",
    _BLOCK + "norm2.*": _BLOCK + "norm2.*",
    _BLOCK + "mlp.w1.*": _BLOCK + "mlp.w1.*",
    _BLOCK + "mlp.w2.*": _BLOCK + "mlp.w2.*",
    _BLOCK + "mlp.ffn_ln.*": _BLOCK + "mlp.norm.*",
    _BLOCK + "mlp.w3.*": _BLOCK + "mlp.w3.*",
    "backbone.out_norm.*": "backbone.out_norm.*",
    "neck.p{}.{}.*": "neck.p{}.{}.*",
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
