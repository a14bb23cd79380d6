"""Residual network with torchvision's blocks and parameter names (arXiv 1512.03385)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from codetr_cli.models.layers import autocast_dtype_of


@dataclass
class _Folded:
    """What a norm contributes to the convolution before it.

    Attributes:
        source: identifies the tensors that it was computed from, and their versions.
        scale: (C, 1, 1, 1) factor of the weight.
        shift: (C,) bias.
        weight: of the convolution, times `scale`; None: it is trained.
        sources: keep the memory of the tensors, so that no later tensor has the same address.
    """

    source: tuple[Hashable, ...] = ()
    scale: Tensor | None = None
    shift: Tensor | None = None
    weight: Tensor | None = None
    sources: tuple[Tensor, ...] = ()

    def __reduce__(self) -> tuple[type[_Folded], tuple[()]]:
        return _Folded, ()  # copies and pickled modules start without


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and a fixed affine map; all four are saved, none is trained.

    Args:
        num_features: channels.
        eps: added to the variance.

    Attributes:
        folds_in_training: whether training folds it into the convolution before it.
        keeps_folded: whether the result is kept from step to step. Not where weights change unnoticed, as those that
            are gathered in every step.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps, self.folds_in_training, self.keeps_folded = eps, True, True
        self.weight = nn.Parameter(torch.ones(num_features), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_features), requires_grad=False)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self._folded = _Folded()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def fold_into(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight (C, ...) and bias (C,) of a convolution followed by this norm, with the weight's gradient.

        What is constant is computed once, and in mixed precision converted once: scale and shift, and the folded weight
        where it is not trained.

        Args:
            weight: of the convolution, which has no bias.
        """
        if torch.compiler.is_compiling() or not self.keeps_folded:
            scale, shift = self._scale_and_shift()
            return weight * scale, shift
        sources = [self.weight, self.bias, self.running_mean, self.running_var]
        if not weight.requires_grad:
            sources.append(weight)
        dtype = autocast_dtype_of(weight)
        source = (dtype, *((t.data_ptr(), t._version, t.dtype, t.device) for t in sources))
        kept = self._folded
        if kept.source != source:
            with torch.no_grad():
                scale, shift = self._scale_and_shift()
                folded = None if weight.requires_grad else (weight * scale).to(dtype or weight.dtype)
            kept = self._folded = _Folded(
                source, scale, shift.to(dtype or shift.dtype), folded, tuple(t.detach() for t in sources)
            )
        assert kept.scale is not None
        assert kept.shift is not None
        return weight * kept.scale if kept.weight is None else kept.weight, kept.shift

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale[:, None, None, None], self.bias - self.running_mean * scale


def _group_norm(num_features: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, num_features)


class ResNet(nn.Module):
    """Four stages of residual blocks; returns the map after each.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks of each stage.
        base_channels: channels of the stem.
        norm: "frozen_batch" or "group".
        frozen_stages: stages whose weights are not trained, the stem included when above 0.
        finest_stride: 4 returns the maps of all stages, 8 those from the second on.
        checkpointing: recompute the trained stages in the backward pass.
    """

    def __init__(
        self,
        *,
        block: str,
        layers: Sequence[int],
        base_channels: int,
        norm: str,
        frozen_stages: int,
        finest_stride: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        kind: type[BasicBlock | Bottleneck] = {"basic": BasicBlock, "bottleneck": Bottleneck}[block]
        norm_layer: Callable[[int], nn.Module] = FrozenBatchNorm2d if norm == "frozen_batch" else _group_norm
        self.frozen_stages, self.checkpointing = frozen_stages, checkpointing
        self.conv1 = nn.Conv2d(3, base_channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(base_channels)
        channels = base_channels
        self.out_channels: list[int] = []
        for stage, count in enumerate(layers):
            planes, stride = base_channels * 2**stage, 1 if stage == 0 else 2
            blocks = []
            for index in range(count):
                step = stride if index == 0 else 1
                downsample = None
                if step != 1 or channels != planes * kind.expansion:
                    conv = nn.Conv2d(channels, planes * kind.expansion, kernel_size=1, stride=step, bias=False)
                    downsample = nn.Sequential(conv, norm_layer(planes * kind.expansion))
                blocks.append(kind(channels, planes, step, downsample, norm_layer=norm_layer))
                channels = planes * kind.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.out_channels.append(channels)
        if finest_stride == 8:
            del self.out_channels[0]
        self._initialise()
        self._freeze()

    def _initialise(self) -> None:
        """He initialisation; the last norm of each block starts at 0 so that a block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def _freeze(self) -> None:
        if self.frozen_stages == 0:
            return
        frozen = [self.conv1, self.bn1, *(getattr(self, f"layer{i}") for i in range(1, self.frozen_stages + 1))]
        for module in frozen:
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps normalised images (B, 3, H, W) to maps of strides `finest_stride` to 32."""
        if images.device.type == "cuda" and self.training and autocast_dtype_of(images) is not None:
            # Tensor cores compute with the channels of a cell side by side: nothing is transposed around a convolution.
            images = images.contiguous(memory_format=torch.channels_last)
        stem = _conv_norm(self.conv1, self.bn1, images)
        x = F.max_pool2d(F.relu(stem, inplace=True), kernel_size=3, stride=2, padding=1)
        outputs = []
        for index in range(1, 5):
            stage = getattr(self, f"layer{index}")
            if self.checkpointing and self.training and index > self.frozen_stages:
                x = checkpoint(_run_stage, stage, x, use_reentrant=False)
            else:
                x = _run_stage(stage, x)
            outputs.append(x)
        return outputs[-len(self.out_channels) :]


def _run_stage(stage: nn.Sequential, x: Tensor) -> Tensor:
    """Runs the blocks of a stage: the forward pass of torchvision, except for `_conv_norm`."""
    for block in stage:
        assert isinstance(block, (BasicBlock, Bottleneck))  # torch.compile of torch 2.7 fails on a union
        shortcut = x
        if block.downsample is not None:
            conv, norm = block.downsample.children()
            shortcut = _conv_norm(conv, norm, x)
        x = F.relu(_conv_norm(block.conv1, block.bn1, x), inplace=True)
        x = _conv_norm(block.conv2, block.bn2, x)
        if isinstance(block, Bottleneck):
            x = _conv_norm(block.conv3, block.bn3, F.relu(x, inplace=True))
        x = F.relu(x + shortcut, inplace=True)
    return x


def _conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """A convolution and its norm.

    In training a frozen batch norm is folded into the weights: nothing between the two is saved for the backward pass,
    and it needs no pass over the map.
    """
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d) and torch.is_grad_enabled()):
        return norm(conv(x))
    if not norm.folds_in_training:
        return norm(conv(x))
    weight, shift = norm.fold_into(conv.weight)
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
