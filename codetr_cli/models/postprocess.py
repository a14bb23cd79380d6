"""From the decoder's outputs to detections in the original image: top scores, boxes to pixels, NMS.

Behaviour of co_dino_head.py (`_get_bboxes_single`). Shape letters: B batch, K classes, Q queries, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codetr_cli.boxes import clip_boxes, cxcywh_to_xyxy, host_values, size_scale
from codetr_cli.ops.nms import batched_nms, batched_soft_nms, parallel_soft_nms


@dataclass(frozen=True)
class Detections:
    """Boxes of one image, best score first.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the original image.
        scores: (N,) in [0, 1].
        labels: (N,) int64 class indices.
        masks: (N, M, M) probability of each cell of a grid over the box; `models.masks.paste_masks` makes them pixels.
            None: the network has no masks.
        mask_scores: (N,) scores of the masks; None: they have the scores of their boxes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    mask_scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Detections:
        return self._map(lambda column: column[index])

    def cpu(self) -> Detections:
        """The same detections in host memory."""
        return self._map(lambda column: column.cpu())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Detections:
        masks = None if self.masks is None else change(self.masks)
        mask_scores = None if self.mask_scores is None else change(self.mask_scores)
        return Detections(change(self.boxes), change(self.scores), change(self.labels), masks, mask_scores)


@dataclass(frozen=True, kw_only=True)
class PostProcess:
    """How outputs become detections.

    Args:
        max_detections: kept per image.
        candidates: "max_detections" or "num_queries": how many scores enter NMS.
            Parity: MMDetection 3.3 takes the first, Sense-X the second; the first hundred detections are the same.
        nms: "none", "hard" or "soft".
        nms_iou: threshold of either NMS.
        nms_min_score: soft-NMS drops decayed scores below.
        head: whose detections `CoDETR.detect` gives: "decoder", "roi" or "atss".
        mask_min_score: the decoder's detections below are left out before masks are drawn in the others' boxes; no
            effect on a network without masks.
    """

    max_detections: int = 300
    candidates: str = "num_queries"
    nms: str = "soft"
    nms_iou: float = 0.8
    nms_min_score: float = 1e-3
    head: str = "decoder"
    mask_min_score: float = 0.0

    def __call__(self, logits: Tensor, boxes: Tensor, metas: Sequence[Mapping[str, Any]]) -> list[Detections]:
        """Finds each image's detections; with soft or no NMS they come back in host memory, by one copy a batch.

        Args:
            logits: (B, Q, K).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            metas: per image `norm_size` (h, w) and `scale_factor` (w, h).
        """
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        probabilities, boxes = logits.to(dtype).sigmoid(), boxes.to(dtype)
        if boxes.device.type != "cpu" and self.nms != "hard":
            return self.at_once(probabilities, boxes, metas)
        return [
            self._single(scores, image_boxes, meta)
            for scores, image_boxes, meta in zip(probabilities, boxes, metas, strict=True)
        ]

    def at_once(self, probabilities: Tensor, boxes: Tensor, metas: Sequence[Mapping[str, Any]]) -> list[Detections]:
        """The detections of a whole batch together on its device, with soft or no NMS.

        Args:
            probabilities: (B, Q, K).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            metas: as for `__call__`.
        """
        scores, flat = probabilities.flatten(1).topk(self._count(probabilities), dim=1)  # (B, N)
        labels, query = flat % probabilities.shape[2], flat // probabilities.shape[2]
        sizes = [(w, h, w, h) for h, w in (meta["norm_size"] for meta in metas)]
        scales = [(*meta["scale_factor"], *meta["scale_factor"]) for meta in metas]
        limits, factors = host_values([sizes, scales], boxes)[:, :, None]  # (B, 1, 4) each
        corners = cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4))) * limits
        corners = corners.clamp(min=0).minimum(limits) / factors
        if self.nms == "soft":
            scores = parallel_soft_nms(
                corners, scores, labels, iou_threshold=self.nms_iou, min_score=self.nms_min_score
            )
        scores, best = scores.topk(min(self.max_detections, scores.shape[1]), dim=1)
        corners, labels = corners.gather(1, best[..., None].expand(-1, -1, 4)), labels.gather(1, best)
        host = torch.cat([corners, scores[..., None], labels[..., None].to(corners.dtype)], -1).cpu()
        kept = [image[image[:, 4] >= 0] for image in host]
        return [Detections(image[:, :4], image[:, 4], image[:, 5].long()) for image in kept]

    def _count(self, probabilities: Tensor) -> int:
        """How many scores of an image (..., Q, K) enter NMS."""
        queries, classes = probabilities.shape[-2:]
        count = self.max_detections if self.nms == "none" or self.candidates == "max_detections" else queries
        return min(count, queries * classes)

    def _single(self, probabilities: Tensor, boxes: Tensor, meta: Mapping[str, Any]) -> Detections:
        classes = probabilities.shape[1]
        scores, flat = probabilities.flatten().topk(self._count(probabilities))
        size = meta["norm_size"]
        corners = clip_boxes(cxcywh_to_xyxy(boxes[flat // classes]) * size_scale(size, boxes), size)
        return self._suppress(self.to_original(Detections(corners, scores, flat % classes), meta))

    def to_original(self, detections: Detections, meta: Mapping[str, Any]) -> Detections:
        """Divides boxes by the resize factor (w, h). Parity: they are not clipped to the original size."""
        width_scale, height_scale = meta["scale_factor"]
        factor = host_values([width_scale, height_scale, width_scale, height_scale], detections.boxes)
        return replace(detections, boxes=detections.boxes / factor)

    def _suppress(self, found: Detections) -> Detections:
        if self.nms == "soft":
            keep, scores = batched_soft_nms(
                found.boxes,
                found.scores,
                found.labels,
                iou_threshold=self.nms_iou,
                min_score=self.nms_min_score,
                max_detections=self.max_detections,
            )
            return Detections(found.boxes[keep], scores, found.labels[keep])
        if self.nms == "hard":
            return found[batched_nms(found.boxes, found.scores, found.labels, self.nms_iou)[: self.max_detections]]
        return found
