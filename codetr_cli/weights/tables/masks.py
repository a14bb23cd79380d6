"""The mask head of the RoI head, and the branch that refines masks of the decoder's detections."""

from __future__ import annotations

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
