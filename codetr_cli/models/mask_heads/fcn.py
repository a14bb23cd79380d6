"""A mask per class of every region (Mask R-CNN, arXiv 1703.06870). Behaviour of mmdet's FCNMaskHead.

Shape letters: C channels, K classes, N detections, R regions, s cells along a pooled region's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.models.pooling import RegionPooling, number_regions
from codetr_cli.models.postprocess import Detections


class FcnMaskHead(nn.Module):
    """Convolutions on pooled regions, enlarged to twice their size.

    Args:
        in_dim: channels of the maps.
        dim: C.
        num_convs: convolutions before the upsampling.
        num_classes: K.
        pooling: pools the regions.
        regions_per_chunk: regions whose masks `detect` computes at once.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        num_convs: int,
        num_classes: int,
        pooling: RegionPooling,
        regions_per_chunk: int,
    ) -> None:
        super().__init__()
        self.pooling, self.regions_per_chunk = pooling, regions_per_chunk
        self.convs = nn.ModuleList(nn.Conv2d(in_dim if i == 0 else dim, dim, 3, padding=1) for i in range(num_convs))
        self.upsample = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.logits = nn.Conv2d(dim, num_classes, 1)
        init_mask_convs(self)

    def forward(self, pooled: Tensor) -> Tensor:
        """Maps pooled regions (R, in_dim, s, s) to logits (R, K, 2 s, 2 s)."""
        x = pooled
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.logits(F.relu(self.upsample(x)))

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], detections: Sequence[Detections]) -> list[Detections]:
        """Adds masks to detections.

        Args:
            maps: (B, in_dim, H, W) of every level.
            detections: per image, boxes in pixels of the network's input.
        """
        regions = number_regions([of_image.boxes for of_image in detections])
        labels = torch.cat([of_image.labels for of_image in detections])
        masks = []
        count = self.regions_per_chunk
        for chunk, chunk_labels in zip(torch.split(regions, count), torch.split(labels, count), strict=True):
            logits = self.forward(self.pooling(maps, chunk))
            masks.append(of_class(logits, chunk_labels)[:, 0].sigmoid())
        masks_of_images = torch.split(torch.cat(masks), [len(of_image) for of_image in detections])
        return [replace(of_image, masks=own) for of_image, own in zip(detections, masks_of_images, strict=True)]


def of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """The channel (R, 1, s, s) of each region's class, out of (R, K, s, s)."""
    return logits[torch.arange(len(labels), device=labels.device), labels][:, None]


def init_mask_convs(module: nn.Module) -> None:
    """Initializes all convolutions of a mask head: normal weights by fan-out and zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
