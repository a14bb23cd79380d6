"""Region proposal network (arXiv 1506.01497) on the encoder's maps. Behaviour of mmdet's RPNHead.

Shape letters: A anchors of a cell, B images, M anchors of all levels, P proposals of the image with the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.boxes import Size, host_values
from codetr_cli.models.aux_heads.anchors import AnchorGrid, decode_deltas, flatten_map, map_shapes
from codetr_cli.models.layers import at_least_float32, full_precision, init_conv
from codetr_cli.ops.nms import grouped_nms

DELTA_STDS = (1.0, 1.0, 1.0, 1.0)


ABSENT = -1.0
"""Score of a row without a proposal."""


@dataclass(frozen=True)
class RegionProposals:
    """Boxes that may contain an object, best first.

    Attributes:
        boxes: (B, P, 4) xyxy pixels; 0 without a proposal.
        scores: (B, P); `ABSENT` without a proposal: an image may have fewer than P.
    """

    boxes: Tensor
    scores: Tensor

    @property
    def present(self) -> Tensor:
        """Which rows are proposals, as bool (B, P)."""
        return self.scores > ABSENT

    def per_image(self) -> list[tuple[Tensor, Tensor]]:
        """Boxes and scores of each image's proposals; waits for the device."""
        counts = self.present.sum(1).tolist()
        return [(boxes[:n], scores[:n]) for boxes, scores, n in zip(self.boxes, self.scores, counts, strict=True)]


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

    def propose(self, maps: Sequence[Tensor], sizes: Sequence[Size]) -> list[tuple[Tensor, Tensor]]:
        """Proposals of a batch: `select_proposals` of the head's own outputs, per image."""
        logits, deltas = self.forward(maps)
        with full_precision(maps[0]):
            return self.select_proposals(*self.flatten(logits, deltas), map_shapes(maps), sizes).per_image()

    def flatten(self, logits: Sequence[Tensor], deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, M) and deltas (B, M, 4) of all anchors, in float32 at least, from the head's outputs."""
        flat_logits = torch.cat([flatten_map(m, 1)[..., 0] for m in logits], 1)
        return at_least_float32(flat_logits), at_least_float32(torch.cat([flatten_map(m, 4) for m in deltas], 1))

    @torch.no_grad()
    def select_proposals(
        self, logits: Tensor, deltas: Tensor, shapes: Sequence[Size], sizes: Sequence[Size]
    ) -> RegionProposals:
        """The best boxes of each image after NMS within each level.

        Args:
            logits: (B, M).
            deltas: (B, M, 4).
            shapes: (H, W) of each level.
            sizes: per image (height, width) that boxes are clipped to.
        """
        selection = self.selection_train if self.training else self.selection_test
        scores, rows, start = [], [], 0
        for of_level in torch.split(logits.sigmoid(), self.anchors.counts(shapes), 1):
            best, index = of_level.sort(dim=1, descending=True)
            scores.append(best[:, : selection.pre_nms])
            rows.append(index[:, : selection.pre_nms] + start)
            start += of_level.shape[1]
        index, best = torch.cat(rows, 1), torch.cat(scores, 1)  # (B, N)
        limits = host_values([[w, h, w, h] for h, w in sizes], deltas)[:, None]
        moves = deltas.gather(1, index[..., None].expand(-1, -1, 4))
        boxes = decode_deltas(self.anchors.boxes(shapes, deltas)[index], moves, DELTA_STDS, limits)
        proper = (boxes[..., 2:] > boxes[..., :2]).all(-1) & (best >= 0)  # no number is not proper either
        boxes = torch.where(proper[..., None], boxes, 0)  # suppresses nothing
        kept = grouped_nms(boxes, best, [of_level.shape[1] for of_level in scores], selection.nms_iou)
        best, order = torch.where(kept & proper, best, ABSENT).sort(dim=1, descending=True, stable=True)
        best, order = best[:, : selection.count], order[:, : selection.count]
        return RegionProposals(boxes.gather(1, order[..., None].expand(-1, -1, 4)), best)
