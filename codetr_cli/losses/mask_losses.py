"""Targets and losses of both kinds of masks.

Behaviour of mmdet's FCNMaskHead and MaskIoUHead, and of Sense-X/Co-DETR's SimpleRefineMaskHead with
BARCrossEntropyLoss. Shape letters: B images, G objects, P positive regions, S cells along a mask's side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import Size, Target, Targets, clip_boxes, cxcywh_to_xyxy, host_numbers, host_values
from codetr_cli.losses.assigners import pad_objects
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.random import RandomSource
from codetr_cli.losses.roi import SampledRegions, sample_regions
from codetr_cli.models.aux_heads.rpn import ABSENT, RegionProposals
from codetr_cli.models.mask_grid import MASK_THRESHOLD, boundary, enlarge
from codetr_cli.models.mask_heads.branch import MaskBranch, RegionMasks
from codetr_cli.models.mask_heads.fcn import FcnMaskHead, of_class
from codetr_cli.models.pooling import number_regions, pool_map

LOSS_BOUNDARY_WIDTH = 2
FIRST_BOUNDARY_STAGE = 2
"""Mask sizes from this index on are trained at boundaries only."""
AREA_EPS = 1e-7
OBJECTS_AT_ONCE = 16
"""Bitmaps converted to floating point at once: those of a large image take 15 MB each."""


# --------------------------------------------------------------------------------------------------------- targets


@torch.no_grad()
def mask_targets(target: Target, boxes: Tensor, objects: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
    """The part of each region's object inside the region, as zeros and ones.

    Args:
        target: `masks` uint8 (G, h, w) of the image's padded size.
        boxes: (P, 4) xyxy pixels.
        objects: index of each region's object.
        sizes: values of S.

    Returns:
        Of each size (P, S, S) with the dtype of the boxes.
    """
    masks = target["masks"]
    used = sorted(set(objects))  # regions are few, objects can be many
    order = sorted(range(len(objects)), key=lambda row: objects[row])
    number_of = {index: number % OBJECTS_AT_ONCE for number, index in enumerate(used)}
    numbers = host_values([number_of[objects[row]] for row in order], boxes)[:, None]
    rows, of_masks = _on_device(order, used, like=boxes)
    # Objects take the place of images.
    regions = torch.cat([numbers, clip_boxes(boxes, (masks.shape[1], masks.shape[2]))[rows]], 1)
    chunks = [used[first : first + OBJECTS_AT_ONCE] for first in range(0, len(used), OBJECTS_AT_ONCE)]
    counts = [sum(objects.count(index) for index in chunk) for chunk in chunks]
    shares: list[list[Tensor]] = [[boxes.new_zeros(0, size, size)] for size in sizes]
    for indices, own in zip(torch.split(of_masks, OBJECTS_AT_ONCE), torch.split(regions, counts), strict=False):
        bitmaps = masks[indices, None].to(boxes.dtype)
        for parts, size in zip(shares, sizes, strict=True):
            parts.append(pool_map(bitmaps, own, size=size, stride=1)[:, 0])
    of_sizes = (torch.cat(parts) for parts in shares)
    return [(torch.empty_like(s).index_copy(0, rows, s) >= MASK_THRESHOLD).to(boxes.dtype) for s in of_sizes]


def _on_device(*lists: Sequence[int], like: Tensor) -> Iterator[Tensor]:
    """Lists of indices as int64 tensors on the device of `like`, in one upload."""
    return iter(torch.split(host_values([i for each in lists for i in each], like).long(), [*map(len, lists)]))


@torch.no_grad()
def visible_shares(target: Target, corners: Sequence[Sequence[int]], objects: Sequence[int], like: Tensor) -> Tensor:
    """The share (P,) of each region's object that is inside the region, counted in whole pixels.

    Args:
        target: `masks` uint8 (G, h, w).
        corners: of each region, xyxy in whole pixels inside the image.
        objects: index of each region's object.
        like: a tensor whose dtype and device the result takes.
    """
    masks = target["masks"]
    # Parity: a region has at least one pixel, unless it is outside the image.
    inside = [
        masks[index, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].sum()
        for index, (x1, y1, x2, y2) in zip(objects, corners, strict=True)
    ]
    if not inside:
        return like.new_zeros(0)
    used = sorted(set(objects))
    of_masks, rows = _on_device(used, [used.index(index) for index in objects], like=like)
    # In chunks: a sum of bytes converts them to eight times as many first.
    areas = torch.cat([masks[some].sum((1, 2)) for some in torch.split(of_masks, OBJECTS_AT_ONCE)])
    return torch.stack(inside).to(like.dtype) / (areas[rows].to(like.dtype) + AREA_EPS)


# ------------------------------------------------------------------------------------------------ masks of the RoI head


@dataclass(frozen=True)
class RoiMaskOutput:
    """Masks of the positive regions of the RoI head, concatenated over images.

    Attributes:
        regions: (P, 5) image index and xyxy pixels.
        labels: (P,) classes.
        targets: (P, S, S).
        pooled: (P, C, S / 2, S / 2).
        logits: (P, K, S, S).
        loss: unweighted.
    """

    regions: Tensor
    labels: Tensor
    targets: Tensor
    pooled: Tensor
    logits: Tensor
    loss: Tensor


def roi_mask_losses(
    head: FcnMaskHead,
    maps: Sequence[Tensor],
    roi_regions: SampledRegions,
    targets: Targets,
    normalizers: Normalizers = SINGLE_PROCESS,
) -> RoiMaskOutput:
    """Predicts the masks of the positive regions that the RoI head was trained on, and computes their loss.

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        roi_regions: those that the RoI head was trained on.
        targets: per image `masks`.
        normalizers: of the losses.
    """
    boxes, labels_of_image = roi_regions.positives()
    labels = torch.cat(labels_of_image)
    regions = number_regions(boxes)
    pooled = head.pooling(maps, regions)
    logits = head(pooled)
    objects_of_image = host_numbers(*roi_regions.matched_objects)
    images = zip(targets, boxes, objects_of_image, strict=True)
    target_masks = torch.cat([mask_targets(*image, [int(logits.shape[-1])])[0] for image in images])
    own_class = of_class(logits, labels)[:, 0]
    return RoiMaskOutput(
        regions, labels, target_masks, pooled, logits, _mean_cross_entropy(own_class, target_masks, normalizers)
    )


def _mean_cross_entropy(logits: Tensor, targets: Tensor, normalizers: Normalizers) -> Tensor:
    """Without any region it is zero but still part of the graph."""
    total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / normalizers.per_rank(targets.numel(), total)


# -------------------------------------------------------------------------------------------------- refined masks


@dataclass(frozen=True)
class MaskBranchOutput:
    """Refined masks of positive detections, concatenated over images.

    Attributes:
        candidates: the detections that regions were sampled from.
        regions: (P, 5) image index and xyxy pixels.
        labels: (P,) classes.
        objects: (P,) index of the object among those of its image.
        targets: of each size, (P, S, S).
        masks: outputs of the network.
        boundaries: bool (P, S, S), the trained cells of the third and the fourth size.
        stage_losses: of each size, unweighted.
        iou_targets: (P,) IoU of each mask with its whole object.
        iou_loss: unweighted.
    """

    candidates: RegionProposals
    regions: Tensor
    labels: Tensor
    objects: Tensor
    targets: list[Tensor]
    masks: RegionMasks
    boundaries: list[Tensor]
    stage_losses: list[Tensor]
    iou_targets: Tensor
    iou_loss: Tensor


def mask_branch_losses(
    branch: MaskBranch,
    maps: Sequence[Tensor],
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    *,
    candidates: int,
    samples: int,
    random: RandomSource,
    normalizers: Normalizers = SINGLE_PROCESS,
) -> MaskBranchOutput:
    """Predicts the masks of detections that overlap an object and of the objects' own boxes, and computes their losses.

    Parity: denoising queries take part; the classes of detections do not matter.

    Args:
        branch: the network.
        maps: per level (B, C, H, W).
        logits: (B, Q, K) of the last decoder layer, denoising queries included.
        boxes: (B, Q, 4) cxcywh in [0, 1] of the same queries.
        targets: per image `boxes`, `labels`, `masks`, `norm_size`.
        candidates: best detections per image that take part.
        samples: regions sampled per image; at most a quarter of them is positive and used.
        random: random numbers of the sampling.
        normalizers: of the losses.
    """
    detections = best_boxes(logits, boxes, [target["norm_size"] for target in targets], candidates)
    sampled = sample_regions(
        detections,
        pad_objects(targets, detections.boxes.dtype),
        num_classes=logits.shape[-1],
        samples=samples,
        random=random,
    )
    limits = host_values([[*target["masks"].shape[:0:-1]] * 2 for target in targets], sampled.boxes)[:, None]
    corners = torch.minimum(sampled.boxes.trunc().clamp(min=0), limits).long()
    # One download: how many there are, the object of each, and its pixels.
    *counts, matched, pixels = host_numbers(sampled.num_positives, sampled.num_regions, sampled.matched, corners)
    chosen = sampled.cut(*counts)
    regions_of_image, labels_of_image = chosen.positives()
    regions, labels = number_regions(regions_of_image), torch.cat(labels_of_image)
    masks = branch(maps, branch.head.semantic_maps(maps[0]), regions, labels)
    sizes, rows = [int(m.shape[-1]) for m in masks.logits], sampled.matched.shape[1]
    of_images, shares = [], []
    for i, (target, own, count) in enumerate(zip(targets, regions_of_image, counts[0], strict=True)):
        objects = matched[i * rows : i * rows + count]
        own_pixels = [pixels[4 * row : 4 * row + 4] for row in range(i * rows, i * rows + count)]
        of_images.append(mask_targets(target, own, objects, sizes))
        shares.append(visible_shares(target, own_pixels, objects, own))
    target_masks = [torch.cat(of_size) for of_size in zip(*of_images, strict=True)]
    stage_losses, boundaries = boundary_losses([m[:, 0] for m in masks.logits], target_masks, normalizers)
    iou_targets = mask_iou(masks.logits[1][:, 0], target_masks[1], torch.cat(shares))
    return MaskBranchOutput(
        detections,
        regions,
        labels,
        torch.cat(chosen.matched_objects),
        target_masks,
        masks,
        boundaries,
        stage_losses,
        iou_targets,
        _iou_loss(masks.iou, iou_targets, normalizers),
    )


@torch.no_grad()
def best_boxes(logits: Tensor, boxes: Tensor, sizes: Sequence[Size], count: int) -> RegionProposals:
    """The best detections of each image over queries and classes with a positive score, without NMS.

    Args:
        logits: (B, Q, K).
        boxes: (B, Q, 4) cxcywh in [0, 1].
        sizes: (height, width) of each image in pixels.
        count: maximum number per image.
    """
    scores = logits.sigmoid().flatten(1)
    scores, flat = scores.topk(min(count, scores.shape[1]))
    rows = (flat // logits.shape[2])[..., None].expand(-1, -1, 4)
    factors = host_values([[w, h, w, h] for h, w in sizes], boxes)[:, None]
    chosen = cxcywh_to_xyxy(boxes.gather(1, rows)) * factors
    inside = torch.minimum(chosen.clamp(min=0), factors)
    kept = scores > 0
    return RegionProposals(inside.masked_fill(~kept[..., None], 0), torch.where(kept, scores, ABSENT))


def boundary_losses(
    masks: Sequence[Tensor], targets: Sequence[Tensor], normalizers: Normalizers = SINGLE_PROCESS
) -> tuple[list[Tensor], list[Tensor]]:
    """Cross-entropy of every mask size: over all cells of the first two, at boundaries of the others.

    The boundary is that of the merged prediction or that of the next smaller target. The merged prediction takes the
    cells of a finer size at its own boundary, as the final mask does.

    Args:
        masks: logits (P, S, S), coarse to fine.
        targets: (P, S, S) zeros and ones.
        normalizers: of the losses.

    Returns:
        The losses and, for the sizes trained at boundaries, the boundaries as bool (P, S, S).
    """
    losses = [_mean_cross_entropy(m, t, normalizers) for m, t in zip(masks[:2], targets[:2], strict=True)]
    boundaries = []
    predicted = masks[1].detach().sigmoid() >= MASK_THRESHOLD
    for stage in range(FIRST_BOUNDARY_STAGE, len(masks)):
        mask, size = masks[stage], masks[stage].shape[-1]
        of_both = boundary(predicted, LOSS_BOUNDARY_WIDTH) | boundary(targets[stage - 1] > 0, LOSS_BOUNDARY_WIDTH)
        region = _enlarged_region(of_both, size, mask.dtype)
        boundaries.append(region)
        per_cell = F.binary_cross_entropy_with_logits(mask, targets[stage], reduction="none")
        losses.append((per_cell * region).sum() / normalizers.per_rank(region.sum(), per_cell))
        # Parity: a cell exactly between boundary and inside is taken from the finer size here, but not at inference.
        finer = _enlarged_region(boundary(predicted, 1), size, mask.dtype)
        coarse = enlarge(masks[stage - 1].detach()[:, None], size)[:, 0]
        predicted = torch.where(finer, mask.detach(), coarse).sigmoid() >= MASK_THRESHOLD
    return losses, boundaries


def _enlarged_region(region: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return enlarge(region[:, None].to(dtype), size)[:, 0] >= 0.5


@torch.no_grad()
def mask_iou(logits: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
    """IoU (P,) of each mask with its whole object, of which only a share is inside the region.

    Args:
        logits: (P, S, S).
        targets: (P, S, S) zeros and ones.
        shares: (P,) of `visible_shares`.
    """
    predicted = (logits.sigmoid() > MASK_THRESHOLD).to(targets.dtype)
    overlap = (predicted * targets).sum((1, 2))
    whole = targets.sum((1, 2)) / (shares + AREA_EPS)
    return overlap / (predicted.sum((1, 2)) + whole - overlap)


def _iou_loss(estimated: Tensor, targets: Tensor, normalizers: Normalizers) -> Tensor:
    """Mean squared error over the masks that overlap their object; without any it is zero but part of the graph."""
    counts = targets > 0
    squared = torch.where(counts, estimated - targets, torch.zeros_like(estimated)) ** 2
    return squared.sum() / normalizers.per_rank(counts.sum(), squared)
