"""Published entry names -> ours, one table per part of the network.

`{}` is an index, and `*` at the end stands for `weight` and `bias`.
"""

from __future__ import annotations

# ResNet backbones, with torchvision's names.
RESNET = {
    "backbone.conv1.weight": "backbone.conv1.weight",
    "backbone.bn1.*": "backbone.bn1.*",
    "backbone.bn1.running_mean": "backbone.bn1.running_mean",
    "backbone.bn1.running_var": "backbone.bn1.running_var",
    "backbone.layer{}.{}.conv{}.weight": "backbone.layer{}.{}.conv{}.weight",
    "backbone.layer{}.{}.bn{}.*": "backbone.layer{}.{}.bn{}.*",
    "backbone.layer{}.{}.bn{}.running_mean": "backbone.layer{}.{}.bn{}.running_mean",
    "backbone.layer{}.{}.bn{}.running_var": "backbone.layer{}.{}.bn{}.running_var",
    "backbone.layer{}.{}.downsample.0.weight": "backbone.layer{}.{}.downsample.0.weight",
    "backbone.layer{}.{}.downsample.1.*": "backbone.layer{}.{}.downsample.1.*",
    "backbone.layer{}.{}.downsample.1.running_mean": "backbone.layer{}.{}.downsample.1.running_mean",
    "backbone.layer{}.{}.downsample.1.running_var": "backbone.layer{}.{}.downsample.1.running_var",
}

# Swin backbones: Sense-X and we use Microsoft's names; MMDetection 3 has its own.
_SWIN_LAYER = "backbone.layers.{}.blocks.{}."
_SWIN_STAGE = "backbone.stages.{}.blocks.{}."

SWIN_SENSEX = {
    "backbone.patch_embed.proj.*": "backbone.patch_embed.proj.*",
    _SWIN_LAYER + "norm1.*": _SWIN_LAYER + "norm1.*",
    _SWIN_LAYER + "attn.relative_position_bias_table": _SWIN_LAYER + "attn.relative_position_bias_table",
    _SWIN_LAYER + "attn.qkv.*": _SWIN_LAYER + "attn.qkv.*",
    _SWIN_LAYER + "attn.proj.*": _SWIN_LAYER + "attn.proj.*",
    _SWIN_LAYER + "norm2.*": _SWIN_LAYER + "norm2.*",
    _SWIN_LAYER + "mlp.fc1.*": _SWIN_LAYER + "mlp.fc1.*",
    _SWIN_LAYER + "mlp.fc2.*": _SWIN_LAYER + "mlp.fc2.*",
    "backbone.layers.{}.downsample.norm.*": "backbone.layers.{}.downsample.norm.*",
    "backbone.layers.{}.downsample.reduction.weight": "backbone.layers.{}.downsample.reduction.weight",
}

SWIN_MMDET3 = {
    "backbone.patch_embed.projection.*": "backbone.patch_embed.proj.*",
    _SWIN_STAGE + "norm1.*": _SWIN_LAYER + "norm1.*",
    _SWIN_STAGE + "attn.w_msa.relative_position_bias_table": _SWIN_LAYER + "attn.relative_position_bias_table",
    _SWIN_STAGE + "attn.w_msa.qkv.*": _SWIN_LAYER + "attn.qkv.*",
    _SWIN_STAGE + "attn.w_msa.proj.*": _SWIN_LAYER + "attn.proj.*",
    _SWIN_STAGE + "norm2.*": _SWIN_LAYER + "norm2.*",
    _SWIN_STAGE + "ffn.layers.0.0.*": _SWIN_LAYER + "mlp.fc1.*",
    _SWIN_STAGE + "ffn.layers.1.*": _SWIN_LAYER + "mlp.fc2.*",
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

# ViT backbones and their neck, with the names of Sense-X, the only publisher.
_VIT_BLOCK = "backbone.blocks.{}."

VIT = {
    "backbone.pos_embed": "backbone.pos_embed",
    "backbone.patch_embed.proj.*": "backbone.patch_embed.proj.*",
    _VIT_BLOCK + "norm1.*": _VIT_BLOCK + "norm1.*",
    _VIT_BLOCK + "attn.q_proj.weight": _VIT_BLOCK + "attn.q_proj.weight",
    _VIT_BLOCK + "attn.q_bias": _VIT_BLOCK + "attn.q_proj.bias",
    _VIT_BLOCK + "attn.k_proj.weight": _VIT_BLOCK + "attn.k_proj.weight",
    _VIT_BLOCK + "attn.v_proj.weight": _VIT_BLOCK + "attn.v_proj.weight",
    _VIT_BLOCK + "attn.v_bias": _VIT_BLOCK + "attn.v_proj.bias",
    _VIT_BLOCK + "attn.proj.*": _VIT_BLOCK + "attn.proj.*",
    _VIT_BLOCK + "norm2.*": _VIT_BLOCK + "norm2.*",
    _VIT_BLOCK + "mlp.w1.*": _VIT_BLOCK + "mlp.w1.*",
    _VIT_BLOCK + "mlp.w2.*": _VIT_BLOCK + "mlp.w2.*",
    _VIT_BLOCK + "mlp.ffn_ln.*": _VIT_BLOCK + "mlp.norm.*",
    _VIT_BLOCK + "mlp.w3.*": _VIT_BLOCK + "mlp.w3.*",
    "backbone.out_norm.*": "backbone.out_norm.*",
    "neck.p{}.{}.*": "neck.p{}.{}.*",
}

ROTARY_TABLES = (
    "backbone.rope_win.freqs_cos",
    "backbone.rope_win.freqs_sin",
    "backbone.rope_glb.freqs_cos",
    "backbone.rope_glb.freqs_sin",
    _VIT_BLOCK + "attn.rope.freqs_cos",
    _VIT_BLOCK + "attn.rope.freqs_sin",
)
"""Published entries that the model computes from the sizes of windows and image."""

# Necks.
CHANNEL_MAPPER = {
    "neck.convs.{}.conv.weight": "neck.convs.{}.conv.weight",
    "neck.convs.{}.gn.*": "neck.convs.{}.norm.*",
    "neck.extra_convs.{}.conv.weight": "neck.extra_convs.{}.conv.weight",
    "neck.extra_convs.{}.gn.*": "neck.extra_convs.{}.norm.*",
}

# Encoder, query selection, decoder and its heads.
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

# The auxiliary heads.
AUX_HEADS = {
    "rpn_head.rpn_conv.*": "aux_heads.rpn.conv.*",
    "rpn_head.rpn_cls.*": "aux_heads.rpn.objectness.*",
    "rpn_head.rpn_reg.*": "aux_heads.rpn.box_deltas.*",
    "roi_head.0.bbox_head.shared_convs.{}.conv.weight": "aux_heads.roi.convs.{}.conv.weight",
    "roi_head.0.bbox_head.shared_convs.{}.gn.*": "aux_heads.roi.convs.{}.norm.*",
    "roi_head.0.bbox_head.shared_fcs.{}.*": "aux_heads.roi.fcs.{}.*",
    "roi_head.0.bbox_head.fc_cls.*": "aux_heads.roi.class_head.*",
    "roi_head.0.bbox_head.fc_reg.*": "aux_heads.roi.box_head.*",
    "bbox_head.0.cls_convs.0.conv.weight": "aux_heads.atss.class_tower.conv.weight",
    "bbox_head.0.cls_convs.0.gn.*": "aux_heads.atss.class_tower.norm.*",
    "bbox_head.0.reg_convs.0.conv.weight": "aux_heads.atss.box_tower.conv.weight",
    "bbox_head.0.reg_convs.0.gn.*": "aux_heads.atss.box_tower.norm.*",
    "bbox_head.0.atss_cls.*": "aux_heads.atss.class_head.*",
    "bbox_head.0.atss_reg.*": "aux_heads.atss.box_head.*",
    "bbox_head.0.atss_centerness.*": "aux_heads.atss.centerness_head.*",
    "bbox_head.0.scales.{}.scale": "aux_heads.atss.scales.{}",
}

# The mask head of the RoI head, and the branch that refines masks of the decoder's detections.
MASK_HEADS = {
    "roi_head.0.mask_head.convs.{}.conv.*": "aux_heads.roi.mask_head.convs.{}.*",
    "roi_head.0.mask_head.upsample.*": "aux_heads.roi.mask_head.upsample.*",
    "roi_head.0.mask_head.conv_logits.*": "aux_heads.roi.mask_head.logits.*",
    "mask_head.instance_convs.{}.conv.weight": "mask_branch.head.instance_convs.{}.conv.weight",
    "mask_head.instance_convs.{}.norm_layer.*": "mask_branch.head.instance_convs.{}.norm.*",
    "mask_head.semantic_convs.{}.conv.weight": "mask_branch.head.semantic_convs.{}.conv.weight",
    "mask_head.semantic_convs.{}.norm_layer.*": "mask_branch.head.semantic_convs.{}.norm.*",
    "mask_head.stages.{}.semantic_transform_in.*": "mask_branch.head.semantic.{}.*",
    "mask_head.stages.{}.fuse_conv.0.*": "mask_branch.head.stages.{}.fuse.*",
    "mask_head.stages.{}.fuse_conv.1.dilation_conv_1.conv.*": "mask_branch.head.stages.{}.branches.0.*",
    "mask_head.stages.{}.fuse_conv.1.dilation_conv_2.conv.*": "mask_branch.head.stages.{}.branches.1.*",
    "mask_head.stages.{}.fuse_conv.1.dilation_conv_3.conv.*": "mask_branch.head.stages.{}.branches.2.*",
    "mask_head.stages.{}.fuse_conv.1.merge_conv.conv.*": "mask_branch.head.stages.{}.merge.*",
    "mask_head.stages.{}.fuse_transform_out.*": "mask_branch.head.stages.{}.out.*",
    "mask_head.stage_instance_logits.{}.*": "mask_branch.head.logits.{}.*",
    "mask_iou_head.convs.{}.conv.weight": "mask_branch.iou_head.convs.{}.weight",
    "mask_iou_head.convs.{}.norm_layer.*": "mask_branch.iou_head.norms.{}.*",
    "mask_iou_head.fcs.0.*": "mask_branch.iou_head.fc.*",
    "mask_iou_head.fc_mask_iou.*": "mask_branch.iou_head.iou.*",
}
