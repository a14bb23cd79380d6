"""Loss terms as pure functions; all are sums, which the caller divides by a normalizer.

Behaviour of mmdet's QualityFocalLoss, FocalLoss, GIoULoss. Shape letters: B batch, K classes, N elements.
In both classification losses almost every logit is a negative. The logits of all cells and classes are the largest
tensors of a training step, so the loss of the negatives is a separate function that saves only them for the backward
pass; the rest is N numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from codetr_cli.boxes import paired_giou

AVERAGE_EPS = torch.finfo(torch.float32).eps
"""Parity: every weighted loss divides by its normalizer plus this, in every precision."""

CHUNK_ELEMENTS = {"cpu": 2**17}
"""Logits per chunk, by device type: their intermediate values fit into a CPU's cache."""

GPU_CHUNK_ELEMENTS = 2**25
"""The same on any other device: enough to keep it busy."""

EXACT_SOFTPLUS = 40.0
"""From here on log(1 + exp(x)) equals x to the last bit of a float64."""


def average(total: Tensor, normalizer: Tensor | float) -> Tensor:
    """Divides a summed loss by its normalizer as published."""
    return total / (normalizer + AVERAGE_EPS)


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
    """Quality focal loss (Eq. 3 of arXiv 2006.04388, beta = 2), summed over the classes.

    Args:
        logits: (B, K, N) with any strides; float32 at least.
        labels: (B, N) int64 in [0, K]; K is background.
        quality: (B, N) in [0, 1], the target of the label's class; read for positives only.

    Returns:
        (B, N).
    """
    absent, own = split_classes(logits, labels)
    distance = quality - own.sigmoid()
    present = F.binary_cross_entropy_with_logits(own, quality, reduction="none") * distance**2
    return absent + torch.where(labels < logits.shape[1], present, 0.0)


def focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25) -> Tensor:
    """Sigmoid focal loss (Eq. 5 of arXiv 1708.02002, gamma = 2), summed over the classes.

    Args:
        logits: (B, K, N) with any strides; float32 at least.
        labels: (B, N) int64 in [0, K]; K is background.
        alpha: weight of positives; negatives weigh 1 - alpha.

    Returns:
        (B, N).
    """
    absent, own = split_classes(logits, labels)
    present = alpha * (1 - own.sigmoid()) ** 2 * F.softplus(-own, threshold=EXACT_SOFTPLUS)
    return (1 - alpha) * absent + torch.where(labels < logits.shape[1], present, 0.0)


def split_classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of the negative classes, and the logits of the labels.

    Args:
        logits: (B, K, N).
        labels: (B, N) int64 in [0, K]; K is background.

    Returns:
        The sum (B, N) of -p^2 log(1 - p), with p = sigmoid(logit), over all classes but the label's; the label's
        logit (B, N); for background it is that of some class, without a gradient.
    """
    absent: Tensor
    own: Tensor
    absent, own = _SplitClasses.apply(logits, labels)
    return absent, own


class _SplitClasses(torch.autograd.Function):
    """Computes intermediate values twice, in chunks, instead of keeping ten copies of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        present = (labels < logits.shape[1])[:, None]  # (B, 1, N)
        index = labels.clamp(max=logits.shape[1] - 1)[:, None]
        ctx.save_for_backward(logits, present, index)
        absent = logits.new_empty(labels.shape)
        for first, end in _chunks(logits):
            x, own = logits[:, :, first:end], index[:, :, first:end]
            p = x.sigmoid()
            losses = F.softplus(x, threshold=EXACT_SOFTPLUS).mul_(p).mul_(p)
            losses.scatter_(1, own, losses.gather(1, own).masked_fill_(present[:, :, first:end], 0.0))
            torch.sum(losses, 1, out=absent[:, first:end])
        return absent, logits.gather(1, index)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_absent: Tensor, grad_own: Tensor) -> tuple[Tensor, None]:
        logits, present, index = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for first, end in _chunks(logits):
            x = logits[:, :, first:end]
            p = x.sigmoid()
            # The derivative of p^2 softplus(x) is p^2 (2 (1 - p) softplus(x) + p).
            slopes = F.softplus(x, threshold=EXACT_SOFTPLUS)
            slopes.addcmul_(slopes, p, value=-1.0).mul_(2.0).add_(p).mul_(p).mul_(p)
            torch.mul(slopes, grad_absent[:, None, first:end], out=grad[:, :, first:end])
        grad.scatter_(1, index, torch.where(present, grad_own[:, None], grad.gather(1, index)))
        return grad, None


def _chunks(logits: Tensor) -> list[tuple[int, int]]:
    """(first, end) of each chunk of the N elements of (B, K, N)."""
    at_once = CHUNK_ELEMENTS.get(logits.device.type, GPU_CHUNK_ELEMENTS)
    length = max(1, at_once // max(1, logits.shape[0] * logits.shape[1]))
    return [(first, min(first + length, logits.shape[2])) for first in range(0, logits.shape[2], length)]


def giou_loss(boxes_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - GIoU (N,) of boxes matched one to one."""
    return 1 - paired_giou(boxes_xyxy, target_xyxy)
