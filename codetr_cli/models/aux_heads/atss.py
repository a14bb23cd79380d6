"""One-stage head with one anchor per cell (arXiv 1912.02424). Behaviour of mmdet's ATSSHead.

Shape letters: B batch, K classes, M anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.boxes import Size, size_scale
from codetr_cli.models.aux_heads.anchors import AnchorGrid, decode_deltas, flatten_map, map_shapes
from codetr_cli.models.aux_heads.roi import suppress
from codetr_cli.models.layers import ConvNorm, at_least_float32, full_precision, init_conv
from codetr_cli.models.postprocess import Detections


class AtssHead(nn.Module):
    """Class logits, box deltas and centerness of every cell.

    Args:
        dim: channels of the maps.
        num_classes: K.
        anchors: one anchor per cell.
        norm_groups: groups of the norms.
        target_stds: divisors of the box deltas.
        pre_nms: best cells kept per level by `detect`.
        nms: "hard" or "soft", of `detect`.
        nms_iou: its threshold.
        max_detections: kept per image by `detect`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        anchors: AnchorGrid,
        norm_groups: int,
        target_stds: Sequence[float],
        pre_nms: int,
        nms: str,
        nms_iou: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.anchors, self.target_stds = num_classes, anchors, tuple(target_stds)
        self.pre_nms, self.nms, self.nms_iou, self.max_detections = pre_nms, nms, nms_iou, max_detections
        self.class_tower = ConvNorm(dim, dim, kernel_size=3, norm_groups=norm_groups)
        self.box_tower = ConvNorm(dim, dim, kernel_size=3, norm_groups=norm_groups)
        self.class_head = nn.Conv2d(dim, num_classes, 3, padding=1)
        self.box_head = nn.Conv2d(dim, 4, 3, padding=1)
        self.centerness_head = nn.Conv2d(dim, 1, 3, padding=1)
        self.scales = nn.ParameterList(torch.tensor(1.0) for _ in anchors.strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module, std=0.01, bias=-math.log(99) if module is self.class_head else 0.0)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level class logits (B, K, H, W), deltas (B, 4, H, W) and centerness logits (B, 1, H, W)."""
        logits, deltas, centerness = [], [], []
        for level, m in enumerate(maps):  # by index: torch 2.7 compiles no iteration over parameters
            logits.append(self.class_head(F.relu(self.class_tower(m))))
            box_features = F.relu(self.box_tower(m))
            deltas.append(self.box_head(box_features) * self.scales[level])
            centerness.append(self.centerness_head(box_features))  # of the box tower
        return logits, deltas, centerness

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Detections in the pixels of the network's input.

        Args:
            maps: the encoder's maps.
            sizes: per image (height, width) that boxes are clipped to.
        """
        outputs = self.forward(maps)
        with full_precision(maps[0]):
            logits, deltas, centerness = ([at_least_float32(m) for m in kind] for kind in outputs)
            return self._detect(logits, deltas, centerness, sizes)

    def _detect(
        self, logits: list[Tensor], deltas: list[Tensor], centerness: list[Tensor], sizes: Sequence[Size]
    ) -> list[Detections]:
        shapes = map_shapes(logits)
        anchors = torch.split(self.anchors.boxes(shapes, logits[0]), self.anchors.counts(shapes))
        per_level = [
            (flatten_map(c, self.num_classes).sigmoid(), flatten_map(d, 4), flatten_map(t, 1).sigmoid(), a)
            for c, d, t, a in zip(logits, deltas, centerness, anchors, strict=True)
        ]
        detections = []
        for image, size in enumerate(sizes):
            boxes, scores, labels = [], [], []
            limits = size_scale(size, logits[0])
            for class_scores, moves, weights, level_anchors in per_level:
                cell, label, score = self._best_cells(class_scores[image])
                # Centerness is multiplied after the selection, which uses class scores only.
                scores.append(score * weights[image, cell, 0])
                boxes.append(decode_deltas(level_anchors[cell], moves[image, cell], self.target_stds, limits))
                labels.append(label)
            candidates = Detections(torch.cat(boxes), torch.cat(scores), torch.cat(labels))
            detections.append(suppress(candidates, self.nms, self.nms_iou, self.max_detections))
        return detections

    def _best_cells(self, class_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cell, label and score of the best `pre_nms` (cell, class) pairs of one level (H W, K)."""
        score, flat = class_scores.flatten().sort(descending=True)
        score, flat = score[: self.pre_nms], flat[: self.pre_nms]
        return flat // self.num_classes, flat % self.num_classes, score
