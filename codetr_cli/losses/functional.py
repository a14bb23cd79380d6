"""Loss terms as pure functions; every one sums over its elements and leaves the division to the caller.

Behaviour of mmdet's QualityFocalLoss, FocalLoss, GIoULoss. Shape letters: K classes, N elements.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import paired_giou

AVERAGE_EPS = torch.finfo(torch.float32).eps
"""Parity: every weighted loss divides by its normaliser plus this, whatever the precision."""


def average(total: Tensor, normaliser: Tensor | float) -> Tensor:
    """Divides a summed loss by its normaliser as published."""
    return total / (normaliser + AVERAGE_EPS)


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Rows (N, K) with a 1 at each label (N,); label K (background) gives a row of zeros."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(dtype)


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss (Eq. 3 of arXiv 2006.04388), summed.

    Args:
        logits: (N, K).
        labels: (N,) int64 in [0, K]; K is background.
        quality: (N,) in [0, 1], the target of the label's class; read for positives only.
        beta: exponent of the modulating factor.
    """
    target = one_hot(labels, logits.shape[1], logits.dtype) * quality[:, None]
    modulation = (target - logits.sigmoid()).abs() ** beta
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * modulation).sum()


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Eq. 5 of arXiv 1708.02002) per element.

    Args:
        logits: (N, K).
        target: (N, K) of zeros and ones.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: exponent of the modulating factor.
    """
    p = logits.sigmoid()
    wrong = (1 - p) * target + p * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * wrong**gamma
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight


def giou_loss(boxes_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - GIoU (N,) of boxes matched one to one."""
    return 1 - paired_giou(boxes_xyxy, target_xyxy)
