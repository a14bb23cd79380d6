"""Contrastive denoising: noisy copies of the objects that the decoder learns to restore or reject.

Section 3.3 of arXiv 2203.03605; behaviour of mmdet's CdnQueryGenerator.
Shape letters: B batch, C channels, D denoising queries, G objects of an image, Q matching queries, T objects of all.
The D queries are `groups` groups of [max G positives, max G negatives].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from codetr_cli.boxes import host_values, inverse_sigmoid, xyxy_to_cxcywh
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.objects import BatchObjects
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
    objects: BatchObjects,
    *,
    label_embed: nn.Embedding,
    num_matching: int,
    num_queries: int,
    label_noise: float,
    box_noise: float,
    random: RandomSource,
    normalizers: Normalizers = SINGLE_PROCESS,
) -> DenoisingQueries:
    """Creates the denoising queries of one batch, without a synchronization with the device.

    Args:
        objects: of the batch.
        label_embed: content of each class.
        num_matching: Q.
        num_queries: positive and negative pairs wanted; there are this divided by the largest G groups, at least 1.
        label_noise: twice the share of labels that are replaced.
        box_noise: maximum shift of a positive's corner in half sides; negatives are shifted up to twice as far.
        random: random numbers of the noise; those of the labels are drawn in host memory.
        normalizers: largest G of a global batch.
    """
    counts, total, batch = objects.counts, sum(objects.counts), len(objects.counts)
    [largest] = normalizers.largest([max(counts)])
    groups = max(num_queries // largest, 1) if largest else 1
    size, copies = largest * 2 * groups, 2 * groups
    # Object j of an image is in slot j of every block of `largest` slots.
    of_first = np.concatenate([image * size + np.arange(count) for image, count in enumerate(counts)])
    slots = (np.arange(copies)[:, None] * largest + of_first).ravel()
    new_labels = _new_labels(
        copies * total, label_noise, label_embed.num_embeddings, objects.boxes_cxcywh.dtype, random
    )
    slots, new_labels = host_values(np.stack([slots, new_labels]), objects.labels)  # (2 groups T,) each
    noisy = torch.where(new_labels < 0, objects.labels.repeat(copies), new_labels)
    corners = objects.boxes_xyxy / objects.object_factors
    references = _noise_boxes(corners.repeat(copies, 1), groups, box_noise, random)
    embedded = noisy.new_full((batch * size,), -1).scatter(0, slots, noisy).view(batch, size)
    # Without objects too, the embedding gets a gradient: all ranks have gradients of the same parameters.
    content = label_embed(embedded.clamp(min=0)).masked_fill((embedded < 0)[..., None], 0.0)
    reference_slots = _fill_slots(references, slots, batch, size)
    # Every other block restores its objects.
    restored = slots.view(groups, 2, total)[:, 0].flatten()
    label_slots = noisy.new_full((batch * size,), label_embed.num_embeddings)
    label_slots = label_slots.scatter(0, restored, objects.labels.repeat(groups)).view(batch, size)
    box_slots = _fill_slots(xyxy_to_cxcywh(corners).repeat(groups, 1), restored, batch, size)
    attn_mask = _attn_mask(largest * 2, groups, num_matching, noisy.device)
    return DenoisingQueries(content, reference_slots, attn_mask, label_slots, box_slots, total * groups)


def _fill_slots(values: Tensor, slots: Tensor, batch: int, size: int) -> Tensor:
    """Values (N, 4) at their slots (N,) of (B, D, 4), zeros elsewhere."""
    empty = values.new_zeros(batch * size, 4)
    return empty.scatter(0, slots[:, None].expand(-1, 4), values).view(batch, size, 4)


def _new_labels(count: int, noise: float, num_classes: int, dtype: torch.dtype, random: RandomSource) -> np.ndarray:
    """The random labels that replace some of `count` labels, -1 elsewhere.

    Drawn in host memory: as many labels are drawn as are replaced, and a device would have to be asked how many.
    """
    like = torch.empty(0, dtype=dtype)
    chosen = (random.uniform((count,), like) < noise * 0.5).nonzero()[:, 0]
    labels = torch.full((count,), -1)
    labels[chosen] = random.integers(num_classes, (len(chosen),), labels)
    return labels.numpy()


def _noise_boxes(corners: Tensor, groups: int, noise: float, random: RandomSource) -> Tensor:
    """Shifts corners (2 groups T, 4), negatives further, and returns the inverse sigmoid of their cxcywh."""
    sign = random.integers(2, tuple(corners.shape), corners).to(corners.dtype) * 2 - 1
    shift = random.uniform(tuple(corners.shape), corners)
    shift.view(groups, 2, len(corners) // (2 * groups), 4)[:, 1] += 1.0
    sides = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    noisy = (corners + shift * sign * sides * noise / 2).clamp(0, 1)
    return inverse_sigmoid(xyxy_to_cxcywh(noisy), DINO_REFERENCE_EPS)


def _attn_mask(group_size: int, groups: int, num_matching: int, device: torch.device) -> Tensor:
    """Matching queries attend to no denoising query; a group attends to itself and to the matching queries."""
    group = torch.arange(groups, device=device).repeat_interleave(group_size)
    group = torch.cat([group, torch.full((num_matching,), -1, device=device)])
    return (group[None, :] >= 0) & (group[None, :] != group[:, None])
