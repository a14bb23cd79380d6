"""Encoder, query selection, decoder and its heads."""

from __future__ import annotations

_ENCODER = "query_head.transformer.encoder.layers.{}."
_DECODER = "query_head.transformer.decoder.layers.{}."

TRANSFORMER = {
    "query_head.transformer.level_embeds": "encoder.level_embed",
    _ENCODER + "attentions.0.sampling_offsets.*": "encoder.layers.{}.self_attn.sampling_offsets.*",
    _ENCODER + "attentions.0.attention_weights.*": "encoder.layers.{}.self_attn.attention_weights.*",
    _ENCODER + "attentions.0.value_proj.*": "encoder.layers.{}.self_attn.value_proj.*",
    _ENCODER + "attentions.0.output_proj.*": "encoder.layers.{}.self_attn.output_proj.*",
    _ENCODER + "ffns.0.layers.0.0.*": "encoder.layers.{}.ffn.linear1.*",
    _ENCODER + "ffns.0.layers.1.*": "encoder.layers.{}.ffn.linear2.*",
    _ENCODER + "norms.0.*": "encoder.layers.{}.self_attn_norm.*",
    _ENCODER + "norms.1.*": "encoder.layers.{}.ffn_norm.*",
    _DECODER + "attentions.0.attn.in_proj_*": "decoder.layers.{}.self_attn.in_proj_*",
    _DECODER + "attentions.0.attn.out_proj.*": "decoder.layers.{}.self_attn.out_proj.*",
    _DECODER + "attentions.1.sampling_offsets.*": "decoder.layers.{}.cross_attn.sampling_offsets.*",
    _DECODER + "attentions.1.attention_weights.*": "decoder.layers.{}.cross_attn.attention_weights.*",
    _DECODER + "attentions.1.value_proj.*": "decoder.layers.{}.cross_attn.value_proj.*",
    _DECODER + "attentions.1.output_proj.*": "decoder.layers.{}.cross_attn.output_proj.*",
    _DECODER + "ffns.0.layers.0.0.*": "decoder.layers.{}.ffn.linear1.*",
    _DECODER + "ffns.0.layers.1.*": "decoder.layers.{}.ffn.linear2.*",
    _DECODER + "norms.0.*": "decoder.layers.{}.self_attn_norm.*",
    _DECODER + "norms.1.*": "decoder.layers.{}.cross_attn_norm.*",
    _DECODER + "norms.2.*": "decoder.layers.{}.ffn_norm.*",
    "query_head.transformer.enc_output.*": "proposals.memory_proj.*",
    "query_head.transformer.enc_output_norm.*": "proposals.memory_norm.*",
    "query_head.transformer.aux_pos_trans.{}.*": "positive_queries.projections.{}.*",
    "query_head.transformer.aux_pos_trans_norm.{}.*": "positive_queries.norms.{}.*",
    "query_head.cls_branches.{}.*": "class_heads.{}.*",
    "query_head.reg_branches.{}.0.*": "box_heads.{}.layers.0.*",
    "query_head.reg_branches.{}.2.*": "box_heads.{}.layers.1.*",
    "query_head.reg_branches.{}.4.*": "box_heads.{}.layers.2.*",
    "query_head.downsample.0.*": "downsample.conv.*",
    "query_head.downsample.1.*": "downsample.norm.*",
}

CO_DINO = {
    "query_head.transformer.decoder.ref_point_head.0.*": "decoder.query_pos_mlp.layers.0.*",
    "query_head.transformer.decoder.ref_point_head.2.*": "decoder.query_pos_mlp.layers.1.*",
    "query_head.transformer.decoder.norm.*": "decoder.norm.*",
    "query_head.transformer.query_embed.weight": "query_embed.weight",
}

CO_DEFORMABLE = {
    "query_head.query_embedding.weight": "query_embed.weight",
    "query_head.transformer.pos_trans.*": "query_positions.projection.*",
    "query_head.transformer.pos_trans_norm.*": "query_positions.norm.*",
    "query_head.transformer.pos_feats_trans.{}.*": "positive_queries.feature_projections.{}.*",
    "query_head.transformer.pos_feats_norm.{}.*": "positive_queries.feature_norms.{}.*",
    "query_head.transformer.head_pos_embed.weight": "positive_queries.head_embed",
}
