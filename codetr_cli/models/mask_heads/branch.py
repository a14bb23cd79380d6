"""Instance masks of the decoder's detections: regions of the encoder's maps, their masks, and how good those are.

Behaviour of Sense-X/Co-DETR, projects/models/co_detr.py (`simple_test_mask`), for any number of images.
Shape letters: B images, C channels, N detections, R regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from codetr_cli.boxes import host_values
from codetr_cli.models.mask_heads.iou import MaskIouHead
from codetr_cli.models.mask_heads.refine import RefineMaskHead, keep_fine_boundaries
from codetr_cli.models.pooling import RegionPooling, number_regions
from codetr_cli.models.postprocess import Detections


@dataclass(frozen=True)
class RegionMasks:
    """What was drawn for regions.

    Attributes:
        pooled: (R, C, s, s) the regions' features.
        logits: of each size, (R, 1, s, s) to (R, 1, 8 s, 8 s).
        iou: (R,) estimated IoU of each mask with its object's.
    """

    pooled: Tensor
    logits: list[Tensor]
    iou: Tensor


class MaskBranch(nn.Module):
    """Draws masks in boxes.

    Args:
        head: draws.
        iou_head: judges.
        pooling: cuts out the regions.
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
        """Draws the masks of regions.

        Args:
            maps: (B, C, H, W) of every level.
            semantic_maps: `head.semantic_maps` of the finest.
            regions: (R, 5) image number and xyxy pixels of the network's input.
            labels: (R,) classes.
        """
        pooled = self.pooling(maps, regions)
        logits = self.head(pooled, semantic_maps, regions, labels)
        return RegionMasks(pooled, logits, self.iou_head(pooled, logits[1], labels))

    @torch.no_grad()
    def detect(
        self, maps: Sequence[Tensor], found: Sequence[Detections], metas: Sequence[Mapping[str, Any]]
    ) -> list[Detections]:
        """The same detections with masks and the masks' scores.

        Args:
            maps: (B, C, H, W) of every level.
            found: per image, boxes in pixels of the original image.
            metas: per image `scale_factor` (w, h).
        """
        boxes = []
        for detections, meta in zip(found, metas, strict=True):
            own = detections.boxes.to(maps[0])
            boxes.append(own * host_values([*meta["scale_factor"], *meta["scale_factor"]], own))
        regions = number_regions(boxes)
        labels = torch.cat([detections.labels for detections in found]).to(regions.device)
        semantic_maps = self.head.semantic_maps(maps[0])
        masks, ious = [], []
        count = self.regions_per_chunk
        for chunk, chunk_labels in zip(torch.split(regions, count), torch.split(labels, count), strict=True):
            drawn = self.forward(maps, semantic_maps, chunk, chunk_labels)
            masks.append(keep_fine_boundaries(drawn.logits)[:, 0].sigmoid())
            ious.append(drawn.iou)
        counts = [len(detections) for detections in found]
        of_images = zip(found, torch.split(torch.cat(masks), counts), torch.split(torch.cat(ious), counts), strict=True)
        return [
            replace(
                detections,
                masks=own.to(detections.boxes.device),
                mask_scores=detections.scores * iou.to(detections.scores),
            )
            for detections, own, iou in of_images
        ]
