"""Optimizes a trained network for inference: the same outputs up to rounding, in less time and memory.

Frozen batch norms are folded into the convolutions before them (arXiv 1712.05877, section 3.2), convolutions run in
channels-last layout, and token-wise layers run in chunks.
"""

from __future__ import annotations

import torch
from torch import nn

from codetr_cli.models.backbones.resnet import FrozenBatchNorm2d
from codetr_cli.models.backbones.swin import Block as SwinBlock
from codetr_cli.models.backbones.vit import Block as ViTBlock
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.encoder import EncoderLayer
from codetr_cli.models.feed_forward import FeedForward
from codetr_cli.models.layers import float64_device
from codetr_cli.models.proposals import QuerySelection

CHUNK_TOKENS = {"cpu": 2048}
"""Tokens per chunk, by device type. On a CPU the hidden values of a chunk fit into the cache."""

GPU_CHUNK_TOKENS = 16384
"""Tokens per chunk on any other device: enough to keep it busy, without holding the hidden values of a large image."""


def optimize_for_inference(model: CoDETR) -> CoDETR:
    """Converts the network, in place, into one for inference only.

    Afterwards its state dict lacks the folded norms: load weights before, and save or train another copy.

    Args:
        model: with its weights, on the device that it will run on.

    Returns:
        the same network, in evaluation mode and without gradients.
    """
    model.eval().requires_grad_(False)
    model.optimized_for_inference = True
    fold_batch_norms(model.backbone)
    for part in (model.backbone, model.neck):
        part.to(memory_format=torch.channels_last)
    chunk_tokens = CHUNK_TOKENS.get(model.query_embed.weight.device.type, GPU_CHUNK_TOKENS)
    for module in model.modules():
        if isinstance(module, EncoderLayer | QuerySelection | SwinBlock | ViTBlock):
            module.chunk_tokens = chunk_tokens
    return model


def disable_optimizations(model: CoDETR) -> CoDETR:
    """Disables the training optimizations of the network, in place, to compare with published code.

    Norms are computed, and feed-forward layers keep their hidden values. Checkpointing stays as in the settings.
    """
    for module in model.modules():
        if isinstance(module, FeedForward):
            module.training_chunk_tokens = 0
        elif isinstance(module, FrozenBatchNorm2d):
            module.folds_in_training = False
    return model


def fold_batch_norms(module: nn.Module) -> None:
    """Folds every frozen batch norm into the convolution before it, in place, and replaces it by an identity.

    A norm belongs to the convolution directly before it among the children of its parent, as in torchvision's blocks
    and in the stem.
    """
    for parent in list(module.modules()):
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenBatchNorm2d) and isinstance(before, nn.Conv2d):
                _fold(before, child)
                setattr(parent, name, nn.Identity())
            before = child


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
    """Folds scale and shift of the norm into the convolution; computed in float64 and rounded once."""
    place = float64_device(conv.weight.device)
    weight, gain, bias, mean, variance = (
        tensor.to(place, torch.float64)
        for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = gain / (variance + norm.eps).sqrt()
    shift = bias - mean * scale
    if conv.bias is not None:
        shift += conv.bias.to(place, torch.float64) * scale
    conv.weight.copy_(weight * scale[:, None, None, None])
    conv.bias = nn.Parameter(shift.to(conv.weight.device, conv.weight.dtype), requires_grad=False)
