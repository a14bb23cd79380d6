"""Loss terms as pure functions; every one sums over its elements and leaves the division to the caller.

Behaviour of mmdet's QualityFocalLoss, FocalLoss, GIoULoss. Shape letters: B batch, K classes, N elements.
Both losses of classes ask almost every logit to be low. The logits of all cells and classes are the largest numbers of
a training step, so that this part is a function of its own that keeps nothing but them; what is left are N numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from codetr_cli.boxes import paired_giou

AVERAGE_EPS = torch.finfo(torch.float32).eps
"""Parity: every weighted loss divides by its normaliser plus this, whatever the precision."""

CHUNK_ELEMENTS = {"cpu": 2**17}
"""Logits that are at work at once, by device: their intermediate numbers fit a CPU's cache."""

GPU_CHUNK_ELEMENTS = 2**25
"""The same on any other device: enough to fill it."""

EXACT_SOFTPLUS = 40.0
"""log(1 + exp(x)) is x from here on to the last bit of a float64."""


def average(total: Tensor, normaliser: Tensor | float) -> Tensor:
    """Divides a summed loss by its normaliser as published."""
    return total / (normaliser + AVERAGE_EPS)


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
    """Quality focal loss (Eq. 3 of arXiv 2006.04388, beta = 2), summed over the classes.

    Args:
        logits: (B, K, N), laid out in any order; float32 at least.
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
        logits: (B, K, N), laid out in any order; float32 at least.
        labels: (B, N) int64 in [0, K]; K is background.
        alpha: weight of positives; negatives weigh 1 - alpha.

    Returns:
        (B, N).
    """
    absent, own = split_classes(logits, labels)
    present = alpha * (1 - own.sigmoid()) ** 2 * F.softplus(-own, threshold=EXACT_SOFTPLUS)
    return (1 - alpha) * absent + torch.where(labels < logits.shape[1], present, 0.0)


def split_classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of all classes that are absent, and the logits of those that are present.

    Args:
        logits: (B, K, N).
        labels: (B, N) int64 in [0, K]; K is background.

    Returns:
        The sum (B, N) of -p^2 log(1 - p), with p = sigmoid(logit), over all classes but the label's; the label's
        logit (B, N), which for background is some class's and gives it no gradient.
    """
    absent: Tensor
    own: Tensor
    absent, own = _SplitClasses.apply(logits, labels)
    return absent, own


class _SplitClasses(torch.autograd.Function):
    """Makes the intermediate numbers twice, some elements after others, instead of keeping ten copies of the logits."""

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
    """From where to where the elements (B, K, N) are taken at once."""
    at_once = CHUNK_ELEMENTS.get(logits.device.type, GPU_CHUNK_ELEMENTS)
    length = max(1, at_once // max(1, logits.shape[0] * logits.shape[1]))
    return [(first, min(first + length, logits.shape[2])) for first in range(0, logits.shape[2], length)]


def giou_loss(boxes_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - GIoU (N,) of boxes matched one to one."""
    return 1 - paired_giou(boxes_xyxy, target_xyxy)
