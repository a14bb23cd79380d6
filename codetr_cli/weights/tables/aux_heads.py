"""The auxiliary heads."""

from __future__ import annotations

AUX_HEADS = {
    "rpn_head.rpn_conv.weight": "aux_heads.rpn.conv.weight",
    "rpn_head.rpn_conv.bias": "aux_heads.rpn.conv.bias",
    "rpn_head.rpn_cls.weight": "aux_heads.rpn.objectness.weight",
    "rpn_head.rpn_cls.bias": "aux_heads.rpn.objectness.bias",
    "rpn_head.rpn_reg.weight": "aux_heads.rpn.box_deltas.weight",
    "rpn_head.rpn_reg.bias": "aux_heads.rpn.box_deltas.bias",
    "roi_head.0.bbox_head.shared_convs.{}.conv.weight": "aux_heads.roi.convs.{}.conv.weight",
    "roi_head.0.bbox_head.shared_convs.{}.gn.weight": "aux_heads.roi.convs.{}.norm.weight",
    "roi_head.0.bbox_head.shared_convs.{}.gn.bias": "aux_heads.roi.convs.{}.norm.bias",
    "roi_head.0.bbox_head.shared_fcs.{}.weight": "aux_heads.roi.fcs.{}.weight",
    "roi_head.0.bbox_head.shared_fcs.{}.bias": "aux_heads.roi.fcs.{}.bias",
    "roi_head.0.bbox_head.fc_cls.weight": "aux_heads.roi.class_head.weight",
    "roi_head.0.bbox_head.fc_cls.bias": "aux_heads.roi.class_head.bias",
    "roi_head.0.bbox_head.fc_reg.weight": "aux_heads.roi.box_head.weight",
    "roi_head.0.bbox_head.fc_reg.bias": "aux_heads.roi.box_head.bias",
    "bbox_head.0.cls_convs.0.conv.weight": "aux_heads.atss.class_tower.conv.weight",
    "bbox_head.0.cls_convs.0.gn.weight": "aux_heads.atss.class_tower.norm.weight",
    "bbox_head.0.cls_convs.0.gn.bias": "aux_heads.atss.class_tower.norm.bias",
    "bbox_head.0.reg_convs.0.conv.weight": "aux_heads.atss.box_tower.conv.weight",
    "bbox_head.0.reg_convs.0.gn.weight": "aux_heads.atss.box_tower.norm.weight",
    "bbox_head.0.reg_convs.0.gn.bias": "aux_heads.atss.box_tower.norm.bias",
    "bbox_head.0.atss_cls.weight": "aux_heads.atss.class_head.weight",
    "bbox_head.0.atss_cls.bias": "aux_heads.atss.class_head.bias",
    "bbox_head.0.atss_reg.weight": "aux_heads.atss.box_head.weight",
    "bbox_head.0.atss_reg.bias": "aux_heads.atss.box_head.bias",
    "bbox_head.0.atss_centerness.weight": "aux_heads.atss.centerness_head.weight",
    "bbox_head.0.atss_centerness.bias": "aux_heads.atss.centerness_head.bias",
    "bbox_head.0.scales.{}.scale": "aux_heads.atss.scales.{}",
}
