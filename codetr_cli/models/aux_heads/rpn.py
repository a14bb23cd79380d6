"""Region proposal network (arXiv 1506.01497) on the encoder's maps. Behaviour of mmdet's RPNHead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.models.aux_heads.anchors import AnchorGrid, decode_deltas, flatten_map
from codetr_cli.models.layers import init_conv
from codetr_cli.ops.nms import batched_nms

DELTA_STDS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Selection:
    """How anchors become proposals: best of each level, NMS within it, best of all levels."""

    pre_nms: int
    count: int
    nms_iou: float


class RpnHead(nn.Module):
    """Objectness and box deltas of every anchor, and the proposals made from them.

    Args:
        dim: channels of the maps.
        anchors: the anchors of every level.
        pre_nms_train: best anchors kept per level before NMS while training.
        pre_nms_test: the same at inference.
        num_proposals_train: kept per image after NMS while training.
        num_proposals_test: the same at inference.
        nms_iou_train: threshold of the NMS within each level while training.
        nms_iou_test: the same at inference.
    """

    def __init__(
        self,
        *,
        dim: int,
        anchors: AnchorGrid,
        pre_nms_train: int,
        pre_nms_test: int,
        num_proposals_train: int,
        num_proposals_test: int,
        nms_iou_train: float,
        nms_iou_test: float,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.selection_train = Selection(pre_nms_train, num_proposals_train, nms_iou_train)
        self.selection_test = Selection(pre_nms_test, num_proposals_test, nms_iou_test)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.objectness = nn.Conv2d(dim, anchors.per_cell, 1)
        self.box_deltas = nn.Conv2d(dim, anchors.per_cell * 4, 1)
        for module in (self.conv, self.objectness, self.box_deltas):
            init_conv(module, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level logits (B, A, H, W) and deltas (B, 4 A, H, W)."""
        hidden = [F.relu(self.conv(m)) for m in maps]
        return [self.objectness(h) for h in hidden], [self.box_deltas(h) for h in hidden]

    def propose(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """Proposals of a batch: `select_proposals` of the head's own outputs."""
        return self.select_proposals(*self.forward(maps), sizes)

    @torch.no_grad()
    def select_proposals(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """The best boxes of each image after NMS within each level.

        Args:
            logits: per level (B, A, H, W).
            deltas: per level (B, 4 A, H, W).
            sizes: per image (height, width) that boxes are clipped to.

        Returns:
            Per image boxes (P, 4) xyxy pixels and scores (P,), best first.
        """
        shapes = [(m.shape[-2], m.shape[-1]) for m in logits]
        anchors = self.anchors.boxes(shapes, logits[0])
        scores = [flatten_map(m, 1)[..., 0].sigmoid() for m in logits]
        moves = [flatten_map(m, 4) for m in deltas]
        selection = self.selection_train if self.training else self.selection_test
        return [
            _select([s[i] for s in scores], [d[i] for d in moves], anchors, size, selection)
            for i, size in enumerate(sizes)
        ]


def _select(
    scores: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    size: tuple[int, int],
    selection: Selection,
) -> tuple[Tensor, Tensor]:
    """The proposals of one image."""
    boxes, kept_scores, levels = [], [], []
    for level, (level_scores, level_deltas, level_anchors) in enumerate(zip(scores, deltas, anchors, strict=True)):
        best, index = level_scores.sort(descending=True)
        best, index = best[: selection.pre_nms], index[: selection.pre_nms]
        boxes.append(decode_deltas(level_anchors[index], level_deltas[index], DELTA_STDS, size))
        kept_scores.append(best)
        levels.append(torch.full_like(index, level))
    all_boxes, all_scores, all_levels = torch.cat(boxes), torch.cat(kept_scores), torch.cat(levels)
    proper = (all_boxes[:, 2] > all_boxes[:, 0]) & (all_boxes[:, 3] > all_boxes[:, 1])
    all_boxes, all_scores, all_levels = all_boxes[proper], all_scores[proper], all_levels[proper]
    keep = batched_nms(all_boxes, all_scores, all_levels, selection.nms_iou)[: selection.count]
    return all_boxes[keep], all_scores[keep]
