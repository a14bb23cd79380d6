"""What our mask heads compute, under the keys of recorded cases."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.losses.mask_losses import MaskBranchOutput, RoiMaskOutput
from codetr_cli.losses.record import ForwardRecord
from codetr_cli.models.codetr import CoDETR, Encoded
from codetr_cli.models.mask_heads.fcn import FcnMaskHead, of_class
from codetr_cli.models.mask_heads.refine import keep_fine_boundaries
from codetr_cli.models.pooling import number_regions
from codetr_cli.models.postprocess import Detections, PostProcess
from tests.golden import synth
from tests.golden.case import Case
from tests.golden.network_stages import Values
from tests.models.pasted_masks import paste_masks

Targets = list[dict[str, Any]]

SHOWN = 5
"""Detections whose masks are recorded stage by stage."""


# ----------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def eval_mask_values(
    case: Case, model: CoDETR, encoded: Encoded, found: list[Detections], metas: Targets, postprocess: PostProcess
) -> Values:
    """Masks of the decoder's detections, or of the RoI head's where that draws them."""
    sizes = [tuple(entry["original_size"]) for entry in case.description["images"]]
    if model.mask_branch is not None:
        return _branch_values(case, model, encoded, found, metas, sizes)
    if model.aux_heads is not None and model.aux_heads.roi.mask_head is not None:
        of_head = model.detect_encoded(encoded, metas, dataclasses.replace(postprocess, head="roi"))
        return _roi_head_values(model.aux_heads.roi.mask_head, model.aux_maps(encoded), of_head, metas, sizes)
    return {}


def _roi_head_values(
    head: FcnMaskHead, maps: list[Tensor], found: list[Detections], metas: Targets, sizes: list[tuple[int, int]]
) -> Values:
    values: Values = {}
    for i, (detections, size) in enumerate(zip(found, sizes, strict=True)):
        boxes = [
            _in_network(d, meta)[: SHOWN if i == j else 0] for j, (d, meta) in enumerate(zip(found, metas, strict=True))
        ]
        regions, labels = number_regions(boxes), detections.labels[:SHOWN]
        pooled = head.pooling(maps, regions)
        values |= {
            f"mask/{i}/rois": regions,
            f"mask/{i}/labels": labels,
            f"mask/{i}/roi_feats": pooled,
            f"mask/{i}/logits": of_class(head(pooled), labels)[:, 0],
            **_pasted_values(f"mask/{i}", detections, size),
        }
    return values


def _branch_values(
    case: Case,
    model: CoDETR,
    encoded: Encoded,
    found: list[Detections],
    metas: Targets,
    sizes: list[tuple[int, int]],
) -> Values:
    """The best detections' masks, and masks of fixed boxes. Cases have one image, as the published code draws one."""
    count = case.tensors["mask/areas"]["shape"][0]
    values = _drawn_values("mask", model, encoded, found[0][:count], metas, sizes[0])
    fixed = case.facts.get("mask2")
    if fixed is None:
        return values
    entry = case.description["images"][0]
    boxes = case.tensor(synth.boxes(fixed["boxes_key"], len(fixed["labels"]), entry["height"], entry["width"]))
    detections = Detections(
        boxes / boxes.new_tensor([*metas[0]["scale_factor"]] * 2),
        case.tensor(synth.uniform(fixed["scores_key"], (len(boxes),))),
        torch.tensor(fixed["labels"], device=case.device),
    )
    return values | _drawn_values("mask2", model, encoded, detections, metas, sizes[0])


def _drawn_values(
    prefix: str, model: CoDETR, encoded: Encoded, found: Detections, metas: Targets, size: tuple[int, int]
) -> Values:
    branch = model.mask_branch
    assert branch is not None
    maps = encoded.layout.split_levels(encoded.memory)
    regions, labels = number_regions([_in_network(found, metas[0])[:SHOWN]]), found.labels[:SHOWN]
    drawn = branch(maps, branch.head.semantic_maps(maps[0]), regions, labels)
    (with_masks,) = model.predict_masks(encoded, [found], metas)
    return {
        f"{prefix}/rois": regions,
        f"{prefix}/labels": labels,
        f"{prefix}/roi_feats": drawn.pooled,
        **{f"{prefix}/stage{i}": logits for i, logits in enumerate(drawn.logits)},
        f"{prefix}/refined": keep_fine_boundaries(drawn.logits),
        f"{prefix}/iou_pred": drawn.iou,
        f"{prefix}/scores": with_masks.mask_scores,
        **_pasted_values(prefix, with_masks, size),
    }


def _in_network(detections: Detections, meta: dict[str, Any]) -> Tensor:
    """Boxes in pixels of the network's input."""
    return detections.boxes * detections.boxes.new_tensor([*meta["scale_factor"]] * 2)


def _pasted_values(prefix: str, detections: Detections, size: tuple[int, int]) -> Values:
    assert detections.masks is not None
    masks = paste_masks(detections.masks, detections.boxes, size)
    values: Values = {f"{prefix}/areas": masks.sum((1, 2))}
    for i, mask in enumerate(masks[:SHOWN]):
        values[f"{prefix}/binary/{i}"] = np.packbits(mask.cpu().numpy())
    return values


# ------------------------------------------------------------------------------------------------------------- training


def train_mask_values(record: ForwardRecord, targets: Targets) -> Values:
    """Targets, masks and where they were trained."""
    values: Values = {}
    for i, target in enumerate(targets):
        if "masks" in target:
            values[f"gt/{i}/mask_areas"] = target["masks"].sum((1, 2), dtype=torch.int64)
    if record.aux is not None and record.aux.roi_masks is not None:
        values |= _trained_roi_values(record.aux.roi_masks)
        values["mask/pos_gt"] = torch.cat(record.aux.roi.regions.matched_objects)
    if record.masks is not None:
        values |= _trained_branch_values(record.masks)
    return values


def _trained_roi_values(masks: RoiMaskOutput) -> Values:
    return {
        "mask/rois": masks.regions,
        "mask/pos_labels": masks.labels,
        "mask/targets": masks.targets.to(torch.uint8),
        "mask/target_areas": masks.targets.sum((1, 2)),
        "mask/roi_feats": masks.pooled,
        "mask/logits": of_class(masks.logits, masks.labels)[:, 0],
        "mask/logits_all_classes": masks.logits,
    }


def _trained_branch_values(masks: MaskBranchOutput) -> Values:
    values: Values = {
        "mask/rois": masks.regions,
        "mask/pos_labels": masks.labels,
        "mask/pos_gt": masks.objects,
        "mask/roi_feats": masks.masks.pooled,
        "mask/iou_targets": masks.iou_targets,
        "mask/iou_pred": masks.masks.iou,
    }
    for i, (boxes, scores) in enumerate(masks.candidates.per_image()):
        values[f"mask/candidates/{i}"] = torch.cat([boxes, scores[:, None]], 1)[:60]
    for i, (wanted, logits) in enumerate(zip(masks.targets, masks.masks.logits, strict=True)):
        values |= {
            f"mask/targets/{i}": wanted[:6].to(torch.uint8) if i >= 2 else wanted.to(torch.uint8),
            f"mask/target_areas/{i}": wanted.sum((1, 2)),
            f"mask/logits/{i}": logits[:, 0],
        }
    first = len(masks.targets) - len(masks.boundaries)
    values |= {f"mask/boundary/{first + i}": region[:6] for i, region in enumerate(masks.boundaries)}
    return values
