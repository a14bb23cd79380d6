"""Class and box of pooled regions of the encoder's maps. Behaviour of mmdet's SingleRoIExtractor and ConvFCBBoxHead.

Shape letters: C channels, K classes, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.boxes import Size, size_scale
from codetr_cli.models.aux_heads.anchors import decode_deltas
from codetr_cli.models.layers import ConvNorm, at_least_float32, full_precision
from codetr_cli.models.mask_heads.fcn import FcnMaskHead
from codetr_cli.models.pooling import RegionPooling, number_regions
from codetr_cli.models.postprocess import Detections
from codetr_cli.ops.nms import batched_nms, batched_soft_nms


class RoiHead(nn.Module):
    """Class and box of every region.

    Args:
        dim: channels of the maps.
        num_classes: K; background is an extra last class.
        strides: pixels per cell of the maps that are pooled from; other maps are ignored.
        num_convs: normed convolutions on each region.
        num_fcs: shared layers after them.
        fc_dim: channels of the shared layers.
        norm_groups: groups of the convolutions' norms.
        class_agnostic: whether all classes of a region share one box.
        output_size: side of a pooled region in cells.
        finest_scale: regions up to this size (square root of the area, pixels) use the first map.
        target_stds: divisors of the box deltas.
        nms: "hard" or "soft", of `detect`.
        nms_iou: its threshold.
        max_detections: kept per image by `detect`.
        mask_head: predicts masks of the boxes of `detect`; None: no masks.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        strides: Sequence[int],
        num_convs: int,
        num_fcs: int,
        fc_dim: int,
        norm_groups: int,
        class_agnostic: bool,
        output_size: int,
        finest_scale: int,
        target_stds: Sequence[float],
        nms: str,
        nms_iou: float,
        max_detections: int,
        mask_head: FcnMaskHead | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.class_agnostic, self.target_stds = num_classes, class_agnostic, tuple(target_stds)
        self.pooling = RegionPooling(strides=strides, output_size=output_size, finest_scale=finest_scale)
        self.nms, self.nms_iou, self.max_detections = nms, nms_iou, max_detections
        self.convs = nn.ModuleList(ConvNorm(dim, dim, kernel_size=3, norm_groups=norm_groups) for _ in range(num_convs))
        fcs = [nn.Linear(dim * output_size**2 if i == 0 else fc_dim, fc_dim) for i in range(num_fcs)]
        self.fcs = nn.ModuleList(fcs)
        self.class_head = nn.Linear(fc_dim, num_classes + 1)
        self.box_head = nn.Linear(fc_dim, 4 if class_agnostic else 4 * num_classes)
        for module in self.convs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for layer in fcs:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.class_head.weight, std=0.01)
        nn.init.normal_(self.box_head.weight, std=0.001)
        for layer in (*fcs, self.class_head, self.box_head):
            nn.init.zeros_(layer.bias)
        self.mask_head = mask_head

    def pool(self, maps: Sequence[Tensor], regions: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Pools each region from the map for its size, in float32 at least: half precision would move the regions.

        Args:
            maps: (B, C, H, W), at least as many as there are strides.
            regions: (R, 5) image index and xyxy pixels.
            counts: regions of each map, of `RegionPooling.count_levels`; None: counted here.

        Returns:
            (R, C, output_size, output_size).
        """
        with full_precision(maps[0]):
            return self.pooling([at_least_float32(m) for m in maps], regions, counts)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Maps pooled regions (R, C, s, s) to logits (R, K + 1) and deltas, (R, 4 K) or (R, 4) for all classes."""
        for conv in self.convs:
            pooled = F.relu(conv(pooled))
        x = pooled.flatten(1)
        for layer in self.fcs:
            x = F.relu(layer(x))
        return self.class_head(x), self.box_head(x)

    def deltas_of(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """The deltas (R, 4) that belong to the classes (R,) of regions, from those of all classes."""
        if self.class_agnostic:
            return deltas
        of_classes = deltas.view(len(labels), self.num_classes, 4)
        return of_classes.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[tuple[Tensor, Tensor]],
        sizes: Sequence[Size],
    ) -> list[Detections]:
        """Detections in the pixels of the network's input.

        Args:
            maps: the encoder's maps.
            proposals: per image boxes (R_i, 4) xyxy pixels and scores, of the RPN.
            sizes: per image (height, width) that boxes are clipped to.
        """
        counts = [len(boxes) for boxes, _ in proposals]
        regions = number_regions([boxes for boxes, _ in proposals])
        logits, deltas = self.forward(self.pool(maps, regions))
        with full_precision(maps[0]):
            outputs = (torch.split(at_least_float32(each), counts) for each in (logits, deltas))
            detections = [
                self._detect_image(boxes, image_logits, image_deltas, size)
                for (boxes, _), image_logits, image_deltas, size in zip(proposals, *outputs, sizes, strict=True)
            ]
            if self.mask_head is None:
                return detections
            return self.mask_head.detect([at_least_float32(m) for m in maps], detections)

    def _detect_image(self, boxes: Tensor, logits: Tensor, deltas: Tensor, size: Size) -> Detections:
        """Detections of one image of `size` (height, width): every class of a region is a separate candidate."""
        scores = logits.softmax(-1)[:, : self.num_classes]
        own = deltas.view(len(boxes), -1, 4).expand(-1, self.num_classes, -1)
        corners = decode_deltas(boxes[:, None], own, self.target_stds, size_scale(size, own))
        labels = torch.arange(self.num_classes, device=scores.device).expand_as(scores)
        candidates = Detections(corners.flatten(0, 1), scores.flatten(), labels.flatten())
        return suppress(candidates, self.nms, self.nms_iou, self.max_detections)


def suppress(candidates: Detections, nms: str, nms_iou: float, max_detections: int) -> Detections:
    """NMS within each class over the candidates with a positive score.

    Args:
        candidates: in any order.
        nms: "hard", or "soft" with its linear decay.
        nms_iou: threshold.
        max_detections: maximum number.
    """
    candidates = candidates[candidates.scores > 0]
    if nms == "soft":
        keep, scores = batched_soft_nms(
            candidates.boxes,
            candidates.scores,
            candidates.labels,
            iou_threshold=nms_iou,
            max_detections=max_detections,
        )
        return replace(candidates[keep], scores=scores)
    return candidates[batched_nms(candidates.boxes, candidates.scores, candidates.labels, nms_iou)[:max_detections]]
