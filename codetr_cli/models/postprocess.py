"""Turns decoder outputs into detections in the original image: top scores, boxes to pixels, NMS.

Behaviour of co_dino_head.py (`_get_bboxes_single`). Shape letters: B batch, K classes, Q queries, N detections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from codetr_cli.boxes import Target, Targets, clip_boxes, cxcywh_to_xyxy, host_values, size_scale
from codetr_cli.models.layers import at_least_float32
from codetr_cli.ops.nms import batched_nms, batched_soft_nms, parallel_soft_nms

SOFT_NMS_ROUNDS = 8
"""Rounds of `parallel_soft_nms` before the first look at its result; few images need more."""


@dataclass(frozen=True)
class Detections:
    """Boxes of one image, best score first.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the original image.
        scores: (N,) in [0, 1].
        labels: (N,) int64 class indices.
        masks: (N, M, M) probabilities on a grid over the box, see `mask_grid.paste_crops`; None: no masks.
        mask_scores: (N,) scores of the masks; None: those of the boxes.
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
    """Turns outputs into detections; `models.build.build_postprocess` builds it from the settings.

    Args:
        max_detections: kept per image.
        candidates: "max_detections" or "num_queries": how many scores enter NMS.
            Parity: MMDetection 3.3 uses the first, Sense-X the second; the first hundred detections are the same.
        nms: "none", "hard" or "soft".
        nms_iou: IoU threshold of hard or soft NMS.
        nms_min_score: soft-NMS drops boxes with a lower decayed score.
        head: head whose detections `CoDETR.detect` returns: "decoder", "roi" or "atss".
        mask_min_score: detections of the decoder with a lower score are dropped before masks are predicted; no effect
            on a network without masks.
    """

    max_detections: int
    candidates: str
    nms: str
    nms_iou: float
    nms_min_score: float
    head: str
    mask_min_score: float = 0.0

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> list[Detections]:
        """Returns the detections of each image; with soft or no NMS on a GPU, in host memory by one copy per batch.

        Args:
            logits: (B, Q, K).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            targets: per image `norm_size` (h, w) and `scale_factor` (w, h).
        """
        if boxes.device.type != "cpu" and self.nms != "hard":
            return self.at_once(logits, boxes, targets)
        probabilities, boxes = at_least_float32(logits).sigmoid(), at_least_float32(boxes)
        return [
            self._single(scores, image_boxes, target)
            for scores, image_boxes, target in zip(probabilities, boxes, targets, strict=True)
        ]

    def at_once(self, logits: Tensor, boxes: Tensor, targets: Targets) -> list[Detections]:
        """The detections of a batch, computed together on its device, with soft or no NMS; arguments as above."""
        geometry = image_geometry(targets, boxes)
        return self.read_rows(self.rows(logits, boxes, geometry), logits, boxes, geometry)

    def rows(self, logits: Tensor, boxes: Tensor, geometry: Tensor, *, rounds: int | None = None) -> Tensor:
        """The detections of a batch as one tensor whose shape depends on no value; nothing waits for a GPU.

        Args:
            logits: (B, Q, K).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            geometry: (2, B, 4) of `image_geometry`.
            rounds: of soft-NMS; None: `SOFT_NMS_ROUNDS`.

        Returns:
            (B, N, 7): box in pixels of the original image; score, -1: no detection; label; 1 where the rounds were not
            enough for the image, else 0.
        """
        probabilities, boxes = at_least_float32(logits).sigmoid(), at_least_float32(boxes)
        scores, flat = probabilities.flatten(1).topk(self.count(*probabilities.shape[1:]), dim=1)  # (B, N)
        labels, query = flat % probabilities.shape[2], flat // probabilities.shape[2]
        limits, factors = geometry.to(boxes.dtype)[:, :, None]  # (B, 1, 4) each
        corners = cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4))) * limits
        corners = corners.clamp(min=0).minimum(limits) / factors
        is_open = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        if self.nms == "soft":
            scores, is_open = parallel_soft_nms(
                corners,
                scores,
                labels,
                iou_threshold=self.nms_iou,
                min_score=self.nms_min_score,
                rounds=rounds or SOFT_NMS_ROUNDS,
            )
        scores, best = scores.topk(min(self.max_detections, scores.shape[1]), dim=1)
        corners, labels = corners.gather(1, best[..., None].expand(-1, -1, 4)), labels.gather(1, best)
        is_open = is_open[:, None].expand_as(labels)
        columns = [scores, labels.to(corners.dtype), is_open.to(corners.dtype)]
        return torch.cat([corners, torch.stack(columns, -1)], -1)

    def read_rows(self, rows: Tensor, logits: Tensor, boxes: Tensor, geometry: Tensor) -> list[Detections]:
        """The detections of each image in host memory, by one copy; with more rounds of soft-NMS where they are needed.

        Args:
            rows: (B, N, 7) of `rows`.
            logits: that they were computed from, and so the others.
            boxes: as above.
            geometry: as above.
        """
        host, rounds = rows.cpu(), SOFT_NMS_ROUNDS
        while host[..., 6].any():
            rounds *= 4
            host = self.rows(logits, boxes, geometry, rounds=rounds).cpu()
        kept = [image[image[:, 4] >= 0] for image in host]
        return [Detections(image[:, :4], image[:, 4], image[:, 5].long()) for image in kept]

    def count(self, queries: int, classes: int) -> int:
        """How many scores of an image, out of Q x K, enter NMS."""
        count = self.max_detections if self.nms == "none" or self.candidates == "max_detections" else queries
        return min(count, queries * classes)

    def _single(self, probabilities: Tensor, boxes: Tensor, target: Target) -> Detections:
        classes = probabilities.shape[1]
        scores, flat = probabilities.flatten().topk(self.count(*probabilities.shape))
        size = target["norm_size"]
        corners = clip_boxes(cxcywh_to_xyxy(boxes[flat // classes]) * size_scale(size, boxes), size)
        return self.suppress(self.to_original(Detections(corners, scores, flat % classes), target))

    def to_original(self, detections: Detections, target: Target) -> Detections:
        """Divides boxes by the resize factor (w, h). Parity: they are not clipped to the original size."""
        width_scale, height_scale = target["scale_factor"]
        factor = host_values([width_scale, height_scale, width_scale, height_scale], detections.boxes)
        return replace(detections, boxes=detections.boxes / factor)

    def suppress(self, detections: Detections) -> Detections:
        """NMS of the candidates of one image, best first, whose boxes are in pixels of the original image."""
        if self.nms == "soft":
            keep, scores = batched_soft_nms(
                detections.boxes,
                detections.scores,
                detections.labels,
                iou_threshold=self.nms_iou,
                min_score=self.nms_min_score,
                max_detections=self.max_detections,
            )
            return replace(detections[keep], scores=scores)
        if self.nms == "hard":
            return detections[
                batched_nms(detections.boxes, detections.scores, detections.labels, self.nms_iou)[: self.max_detections]
            ]
        return detections[: self.max_detections]


def image_geometry(targets: Targets, like: Tensor) -> Tensor:
    """What maps normalized boxes to the original images: (w, h, w, h) of `norm_size` and of `scale_factor`.

    Args:
        targets: per image `norm_size` (h, w) and `scale_factor` (w, h).
        like: a tensor on the device of the result.

    Returns:
        (2, B, 4), float64 if `like` is, else float32.
    """
    sizes = [(w, h, w, h) for h, w in (target["norm_size"] for target in targets)]
    scales = [(*target["scale_factor"], *target["scale_factor"]) for target in targets]
    return host_values([sizes, scales], at_least_float32(like[:0]))
