"""The auxiliary heads."""

from __future__ import annotations

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
