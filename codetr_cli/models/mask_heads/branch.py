"""Instance masks of the decoder's detections: pooled regions of the encoder's maps, their masks and mask scores.

Behaviour of Sense-X/Co-DETR, projects/models/co_detr.py (`simple_test_mask`), for any number of images.
Shape letters: B images, C channels, N detections, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from codetr_cli.boxes import Targets, host_values
from codetr_cli.models.mask_heads.iou import MaskIouHead
from codetr_cli.models.mask_heads.refine import RefineMaskHead, keep_fine_boundaries
from codetr_cli.models.pooling import RegionPooling, number_regions
from codetr_cli.models.postprocess import Detections


@dataclass(frozen=True)
class RegionMasks:
    """Masks of regions.

    Attributes:
        pooled: (R, C, s, s) features of the regions.
        logits: of each size, (R, 1, s, s) to (R, 1, 8 s, 8 s).
        iou: (R,) estimated IoU of each mask with its object's.
    """

    pooled: Tensor
    logits: list[Tensor]
    iou: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(R, 8 s, 8 s) of the final masks."""
        return keep_fine_boundaries(self.logits)[:, 0].sigmoid()


class MaskBranch(nn.Module):
    """Predicts masks in boxes.

    Args:
        head: predicts masks.
        iou_head: estimates their IoU.
        pooling: pools the regions.
        regions_per_chunk: regions whose masks `detect` computes at once.
    """

    def __init__(
        self, *, head: RefineMaskHead, iou_head: MaskIouHead, pooling: RegionPooling, regions_per_chunk: int
    ) -> None:
        super().__init__()
        self.head, self.iou_head, self.pooling = head, iou_head, pooling
        self.regions_per_chunk = regions_per_chunk

    def forward(
        self, maps: Sequence[Tensor], semantic_maps: Sequence[Tensor], regions: Tensor, labels: Tensor
    ) -> RegionMasks:
        """Predicts the masks of regions.

        Args:
            maps: (B, C, H, W) of every level.
            semantic_maps: `head.semantic_maps` of the finest.
            regions: (R, 5) image index and xyxy pixels of the network's input.
            labels: (R,) classes.
        """
        pooled = self.pooling(maps, regions)
        logits = self.head(pooled, semantic_maps, regions, labels)
        return RegionMasks(pooled, logits, self.iou_head(pooled, logits[1], labels))

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], detections: Sequence[Detections], targets: Targets) -> list[Detections]:
        """Adds masks and their scores to detections.

        Args:
            maps: (B, C, H, W) of every level.
            detections: per image, boxes in pixels of the original image.
            targets: per image `scale_factor` (w, h).
        """
        boxes = []
        for of_image, target in zip(detections, targets, strict=True):
            own = of_image.boxes.to(maps[0])
            boxes.append(own * host_values([*target["scale_factor"], *target["scale_factor"]], own))
        regions = number_regions(boxes)
        labels = torch.cat([of_image.labels for of_image in detections]).to(regions.device)
        semantic_maps = self.head.semantic_maps(maps[0])
        masks, ious = [], []
        count = self.regions_per_chunk
        for chunk, chunk_labels in zip(torch.split(regions, count), torch.split(labels, count), strict=True):
            chunk_masks = self.forward(maps, semantic_maps, chunk, chunk_labels)
            masks.append(chunk_masks.probabilities)
            ious.append(chunk_masks.iou)
        counts = [len(of_image) for of_image in detections]
        split = torch.split(torch.cat(masks), counts), torch.split(torch.cat(ious), counts)
        return [
            replace(
                of_image,
                masks=own.to(of_image.boxes.device),
                mask_scores=of_image.scores * iou.to(of_image.scores),
            )
            for of_image, own, iou in zip(detections, *split, strict=True)
        ]
