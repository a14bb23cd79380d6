"""The rows of the published zoo as settings: the value that each preset must have, setting by setting.

`zoo_figures.json` next to this file keeps them for all rows, so that presets are checked without the recorded
material: `python -m tests.golden.zoo ZOO_JSON` writes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).with_name("zoo_figures.json")
CONFIGS = "projects/configs/"
KINDS = {"ResNet": "resnet", "SwinTransformerV1": "swin", "ViT": "vit"}
LOSSES = {"co_dino": "QualityFocalLoss", "co_deformable": "FocalLoss"}
RESNET_LAYERS = {50: [3, 4, 6, 3]}
NMS = {"nms": "hard", "soft_nms": "soft"}
TTA_ROWS = ("co_dino_5scale_vit_large_coco", "co_dino_5scale_vit_large_coco_instance")
"""Rows whose published figures are those with test-time augmentation (the weights' model cards give both)."""


def read_zoo(path: Path) -> dict[str, dict[str, Any]]:
    """Published configuration -> dotted name of a setting -> its published value, for every row of zoo.json."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {CONFIGS + row["config"]: figures_of(row) for row in rows}


def figures_of(row: dict[str, Any]) -> dict[str, Any]:
    """Dotted name of a setting -> value, for all settings that a row determines."""
    return {
        **_network(row),
        **{f"model.backbone.{name}": value for name, value in _backbone(row).items()},
        **_heads(row),
        **{f"train.loss.{name}": value for name, value in _loss(row).items()},
        **{f"data.{name}": value for name, value in _data(row).items()},
        **{f"train.{name}": value for name, value in _training(row).items()},
        **{f"test.{name}": value for name, value in _test(row).items()},
        **{f"source.{name}": value for name, value in _source(row).items()},
    }


def _network(row: dict[str, Any]) -> dict[str, Any]:
    masks = "refine" if row["mask_head"] else "fcn" if row["roi_mask_head"] else "none"
    if (masks != "none") != row["instance_segmentation"]:
        raise ValueError(f"{row['name']}: masks without a mask head, or the reverse")
    if row["anchor_strides"] != [row["anchor_strides"][0] * 2**i for i in range(row["feature_levels"] + 1)]:
        raise ValueError(f"{row['name']}: strides that do not double")
    return {
        "model.family": row["detector"],
        "model.num_classes": row["classes"],
        "model.num_queries": row["queries"],
        "model.num_levels": row["feature_levels"],
        "model.finest_stride": row["anchor_strides"][0],
        "model.encoder_layers": row["encoder_layers"],
        "model.encoder_checkpointing": max(0, row["encoder_with_cp"]),
        "model.decoder_layers": row["decoder_layers"],
        "model.mask.kind": masks,
    }


def _backbone(row: dict[str, Any]) -> dict[str, Any]:
    backbone = row["backbone"]
    kind = KINDS[backbone["type"]]
    if kind == "resnet":
        return {
            "kind": kind,
            "layers": RESNET_LAYERS[backbone["depth"]],
            "frozen_stages": backbone["frozen_stages"],
            "norm": "frozen_batch",
        }
    if kind == "swin":
        return {
            "kind": kind,
            "embed_dim": backbone["embed_dim"],
            "layers": backbone["depths"],
            "num_heads": backbone["num_heads"],
            "window_size": backbone["window_size"],
            "drop_path": backbone["drop_path_rate"],
            "checkpointing": backbone["use_checkpoint"],
        }
    windowed = backbone["window_block_indexes"]
    return {
        "kind": kind,
        "embed_dim": backbone["embed_dim"],
        "depth": backbone["depth"],
        "num_heads": backbone["num_heads"],
        "hidden_dim": int(backbone["embed_dim"] * backbone["mlp_ratio"]),
        "patch_size": backbone["patch_size"],
        "window_size": backbone["window_size"],
        "global_blocks": [index for index in range(backbone["depth"]) if index not in windowed],
        "pretrain_size": backbone["pretrain_img_size"],
        "fixed_size": backbone["img_size"] if backbone.get("use_lsj") else None,
        "drop_path": backbone["drop_path_rate"],
        "checkpointing": backbone["use_act_checkpoint"],
    }


def _heads(row: dict[str, Any]) -> dict[str, Any]:
    roi, tests = row["roi_box_head"], row["test_cfg"]["others"]
    with_rpn, atss = next(test for test in tests if "rpn" in test), tests[-1]
    rpn, rcnn = with_rpn["rpn"], with_rpn["rcnn"]
    if rpn["nms"]["type"] != "nms":
        raise ValueError(f"{row['name']}: proposals with {rpn['nms']['type']}")
    return {
        "model.roi.num_convs": roi["num_shared_convs"],
        "model.roi.num_fcs": roi["num_shared_fcs"],
        "model.roi.class_agnostic": roi["class_agnostic"],
        "model.roi.target_stds": roi["target_stds"],
        "model.roi.finest_scale": roi["finest_scale"],
        "model.rpn.proposals_pre_nms_test": rpn["nms_pre"],
        "model.rpn.num_proposals_test": rpn["max_per_img"],
        "model.rpn.nms_iou_test": rpn["nms"]["iou_threshold"],
        "model.roi.nms": NMS[rcnn["nms"]["type"]],
        "model.roi.nms_iou": rcnn["nms"]["iou_threshold"],
        "model.roi.max_detections": rcnn["max_per_img"],
        "model.atss.pre_nms": atss["nms_pre"],
        "model.atss.nms": NMS[atss["nms"]["type"]],
        "model.atss.nms_iou": atss["nms"]["iou_threshold"],
        "model.atss.max_detections": atss["max_per_img"],
    }


def _loss(row: dict[str, Any]) -> dict[str, Any]:
    weights = row["loss_weights"]
    if weights["query"]["cls"]["type"] != LOSSES[row["detector"]]:
        raise ValueError(f"{row['name']}: the other family's classification loss")
    figures = {
        "class_weight": weights["query"]["cls"]["weight"],
        "l1_weight": weights["query"]["bbox"],
        "giou_weight": weights["query"]["iou"]["weight"],
        "rpn_class_weight": weights["rpn"]["cls"],
        "rpn_l1_weight": weights["rpn"]["bbox"]["weight"],
        "roi_class_weight": weights["rcnn"]["cls"],
        "roi_giou_weight": weights["rcnn"]["bbox"]["weight"],
        "atss_class_weight": weights["atss"]["cls"],
        "atss_giou_weight": weights["atss"]["bbox"],
        "atss_centerness_weight": weights["atss"]["centerness"],
        "positive_queries_weight": row["lambda_1"],
        "max_positive_queries": row["max_pos_coords"],
    }
    if row["dn_cfg"]:
        figures["denoising_queries"] = row["dn_cfg"]["group_cfg"]["num_dn_queries"]
        figures["label_noise"] = row["dn_cfg"]["noise_scale"]["label"]
        figures["box_noise"] = row["dn_cfg"]["noise_scale"]["box"]
    for theirs, ours in (
        ("roi_mask", "roi_mask_weight"),
        ("mask", "mask_weight"),
        ("mask_stage", "mask_stage_weights"),
        ("mask_iou", "mask_iou_weight"),
    ):
        if theirs in weights:
            figures[ours] = weights[theirs]
    if row["mask_head"]:
        figures["mask_candidates"] = row["test_cfg"]["query"]["max_per_img"]
    return figures


def _data(row: dict[str, Any]) -> dict[str, Any]:
    wrappers = row["train_dataset_wrappers"]
    thresholds = [wrapper["oversample_thr"] for wrapper in wrappers if "oversample_thr" in wrapper]
    figures = {
        "dataset": "lvis" if row["dataset"].startswith("LVIS") else "coco",
        "augmentation": row["aug"].lower(),
        "copy_paste": "masks" if row["copy_paste"] else "none",
        "filter_empty": row["filter_empty_gt"],
        "oversample_threshold": thresholds[0] if thresholds else None,
    }
    if row["aug"] == "LSJ":
        figures["canvas"] = row["image_size"]["test_img_scale"][0]
    steps = {step["type"]: step for step in row["train_pipeline"] or []}
    if "Normalize" in steps:
        figures["mean"], figures["std"] = steps["Normalize"]["mean"], steps["Normalize"]["std"]
        figures["flip_probability"] = steps["RandomFlip"]["flip_ratio"]
    if "AutoAugment" in steps:
        (whole,), (first, crop, again) = steps["AutoAugment"]["policies"]
        if whole["img_scale"] != again["img_scale"]:
            raise ValueError(f"{row['name']}: policies of different scales")
        figures["short_sides"] = [min(scale) for scale in whole["img_scale"]]
        figures["long_side"] = max(whole["img_scale"][0])
        figures["crop_short_sides"] = [min(scale) for scale in first["img_scale"]]
        figures["crop_long_side"] = max(first["img_scale"][0])
        figures["crop_size"] = crop["crop_size"]
        figures["pad_divisor"] = steps["Pad"]["size_divisor"]
    elif "CopyPaste" in steps:
        figures["lsj_ratio"] = steps["Resize"]["ratio_range"]
        figures["canvas"] = steps["RandomCrop"]["crop_size"][0]
        figures["max_pasted"] = steps["CopyPaste"]["max_num_pasted"]
    return figures


def _training(row: dict[str, Any]) -> dict[str, Any]:
    keys = row["lr_mult"].get("custom_keys", {})
    by_layer = row["optimizer"].get("constructor") == "LayerDecayOptimizerConstructor"
    schedule = row["lr_schedule"]
    momenta = [hook["momentum"] for hook in row["ema"] if "EMA" in hook["type"]]
    table_epochs = (row["published"] or {}).get("epochs", row["epochs"])
    figures = {
        "epochs": table_epochs,
        "batch_size": row["batch_size_total"],
        "micro_batch": row["samples_per_gpu"],
        "lr": row["lr"],
        "weight_decay": row["weight_decay"],
        "decay_norms": not by_layer,
        "backbone_lr_scale": keys.get("backbone", {"lr_mult": 1.0})["lr_mult"],
        "offsets_lr_scale": keys.get("sampling_offsets", {"lr_mult": 1.0})["lr_mult"],
        "layer_decay": row["lr_mult"].get("layer_decay_rate", 1.0),
        "lr_schedule": schedule["policy"],
        "lr_gamma": schedule.get("gamma", 0.1),
        "warmup_steps": schedule.get("warmup_iters", 0),
        "clip_norm": (row["grad_clip"] or {"max_norm": 0.0})["max_norm"],
        "ema_momentum": momenta[0] if momenta else 0.0,
        "scale_lr": row["auto_scale_lr"]["enable"],
        "eval_every": row["evaluation"].get("interval", 1),
    }
    if table_epochs == row["epochs"]:  # one test configuration inherits fewer epochs than its weights were trained for
        figures["lr_milestones"] = schedule["step"]
    if "warmup" in schedule:
        figures["warmup_start"] = schedule["warmup_ratio"]
    return figures


def _test(row: dict[str, Any]) -> dict[str, Any]:
    query, sizes = row["test_cfg"]["query"], row["image_size"]["test_img_scale"]
    figures = {
        "max_detections": query["max_per_img"],
        "nms": NMS[query["nms"]["type"]] if "nms" in query else "none",
        "head": "decoder",
    }
    if "nms" in query:
        figures["nms_iou"] = query["nms"]["iou_threshold"]
        figures["candidates"] = "num_queries"
    if row["aug"] == "LSJ":
        figures["canvas"] = sizes[0]
    else:
        figures["canvas"] = None
        figures["short_side"], figures["long_side"] = min(sizes), max(sizes)
    return figures


def _source(row: dict[str, Any]) -> dict[str, Any]:
    published = row["published"] or {}
    suffix = "_tta" if row["name"] in TTA_ROWS else ""
    return {
        "config": CONFIGS + row["config"],
        "recipe": "published" if row["trainable_as_published"] else "reasoned",
        **{f"{name}{suffix}": published.get(name) for name in ("box_ap", "mask_ap")},
    }


if __name__ == "__main__":
    lines = [f" {json.dumps(config)}: {json.dumps(figures)}" for config, figures in read_zoo(Path(sys.argv[1])).items()]
    FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
