"""Contrastive denoising: noisy copies of the objects that the decoder learns to restore or reject.

Section 3.3 of arXiv 2203.03605; behaviour of mmdet's CdnQueryGenerator.
Shape letters: B batch, C channels, D denoising queries, G objects, Q matching queries.
The D queries are `groups` groups of [max G positives, max G negatives].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_cli.boxes import Targets, inverse_sigmoid, size_scale, xyxy_to_cxcywh
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.decoder import DINO_REFERENCE_EPS


@dataclass(frozen=True)
class DenoisingQueries:
    """Denoising queries, placed before the matching queries.

    Attributes:
        content: (B, D, C).
        reference_logits: (B, D, 4) cxcywh before the sigmoid; 0 in the slots of images with fewer objects.
        attn_mask: bool (D + Q, D + Q), True where the query of the row must not attend to that of the column.
        labels: (B, D) int64 class to restore; the number of classes for background.
        boxes: (B, D, 4) normalised cxcywh to restore; 0 for background.
        num_positives: slots that restore an object, over the batch.
    """

    content: Tensor
    reference_logits: Tensor
    attn_mask: Tensor
    labels: Tensor
    boxes: Tensor
    num_positives: int


def make_denoising_queries(
    targets: Targets,
    *,
    label_embed: nn.Embedding,
    num_matching: int,
    num_queries: int,
    label_noise: float,
    box_noise: float,
    dtype: torch.dtype,
    random: RandomSource,
    normalizers: Normalizers = SINGLE_PROCESS,
) -> DenoisingQueries:
    """Creates the denoising queries of one batch.

    Args:
        targets: per image `boxes` (G, 4) xyxy pixels, `labels` (G,), `norm_size` (h, w).
        label_embed: content of each class.
        num_matching: Q.
        num_queries: positive and negative pairs wanted; there are this divided by the largest G groups, at least 1.
        label_noise: twice the share of labels that are replaced.
        box_noise: maximum shift of a positive's corner in half sides; negatives are shifted up to twice as far.
        dtype: of boxes and noise.
        random: random numbers of the noise.
        normalizers: largest G of a global batch.
    """
    device = label_embed.weight.device
    counts = [len(target["labels"]) for target in targets]
    largest = normalizers.largest(max(counts))
    groups = max(num_queries // largest, 1) if largest else 1
    size = largest * 2 * groups
    labels = torch.cat([target["labels"] for target in targets]).repeat(2 * groups)  # (2 groups T,)
    corners = torch.cat(
        [target["boxes"].to(dtype) / size_scale(target["norm_size"], target["boxes"].to(dtype)) for target in targets]
    )
    noisy_labels = _noise_labels(labels, label_noise, label_embed.num_embeddings, dtype, random)
    references = _noise_boxes(corners.repeat(2 * groups, 1), groups, box_noise, random)
    # Object j of an image is in slot j of every block of `largest` slots.
    within = torch.cat([torch.arange(count, device=device) for count in counts])
    image = torch.cat([torch.full((count,), i, device=device) for i, count in enumerate(counts)]).repeat(2 * groups)
    block = torch.arange(2 * groups, device=device).repeat_interleave(sum(counts))
    slot = block * largest + within.repeat(2 * groups)
    batch = len(targets)
    content = label_embed(noisy_labels)
    # Without objects the embedding gets a zero gradient, so that all ranks have gradients of the same parameters.
    content_slots = content.new_zeros(batch, size, content.shape[-1]) + 0.0 * label_embed.weight.sum()
    content_slots = content_slots.index_put((image, slot), content)
    reference_slots = references.new_zeros(batch, size, 4).index_put((image, slot), references)
    # Every other block restores its objects.
    restore = torch.arange(len(labels), device=device).view(2 * groups, sum(counts))[::2].flatten()
    label_slots = labels.new_full((batch, size), label_embed.num_embeddings)
    label_slots[image[restore], slot[restore]] = labels[restore]
    box_slots = references.new_zeros(batch, size, 4)
    box_slots[image[restore], slot[restore]] = xyxy_to_cxcywh(corners).repeat(groups, 1)
    attn_mask = _attn_mask(largest * 2, groups, num_matching, device)
    return DenoisingQueries(content_slots, reference_slots, attn_mask, label_slots, box_slots, sum(counts) * groups)


def _noise_labels(labels: Tensor, noise: float, num_classes: int, dtype: torch.dtype, random: RandomSource) -> Tensor:
    share = random.uniform(tuple(labels.shape), labels.new_empty(0, dtype=dtype))
    chosen = (share < noise * 0.5).nonzero()[:, 0]
    return labels.scatter(0, chosen, random.integers(num_classes, (len(chosen),), labels))


def _noise_boxes(corners: Tensor, groups: int, noise: float, random: RandomSource) -> Tensor:
    """Shifts corners (2 groups T, 4), negatives further, and returns the inverse sigmoid of their cxcywh."""
    sign = random.integers(2, tuple(corners.shape), corners).to(corners.dtype) * 2 - 1
    shift = random.uniform(tuple(corners.shape), corners)
    blocks = shift.view(groups, 2, -1, 4) if corners.numel() else shift.view(groups, 2, 0, 4)
    blocks[:, 1] += 1.0
    sides = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    noisy = (corners + shift * sign * sides * noise / 2).clamp(0, 1)
    return inverse_sigmoid(xyxy_to_cxcywh(noisy), DINO_REFERENCE_EPS)


def _attn_mask(group_size: int, groups: int, num_matching: int, device: torch.device) -> Tensor:
    """Matching queries attend to no denoising query; a group attends to itself and to the matching queries."""
    group = torch.arange(groups, device=device).repeat_interleave(group_size)
    group = torch.cat([group, torch.full((num_matching,), -1, device=device)])
    return (group[None, :] >= 0) & (group[None, :] != group[:, None])
