"""Optimizer: parameter groups, learning rate and its schedule, gradient clipping.

The published recipes are AdamW with a step schedule by epoch and gradients clipped together by their L2 norm
(Sense-X/Co-DETR, projects/configs). Learning rate and weight decay of a parameter depend on its name:
- the backbone has one tenth of the learning rate; in Co-Deformable-DETR so have the attention's sampling offsets;
- ViT-L on COCO has 0.8**(25 - i) of the learning rate in block i, where the embeddings are block 0 and the last norm
  is block 25, and no decay of norms and biases; all other recipes decay every parameter.
Frozen parameters are skipped. `base_learning_rate` is the only place that turns settings into a learning rate:
the groups keep it as `base_lr`, and the schedule multiplies that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codetr_cli.config.schema import TrainConfig
from codetr_cli.distributed import process_group
from codetr_cli.errors import ConfigError

PUBLISHED_BATCH = 16  # images per step that the published learning rates are for

BACKBONE = re.compile(r"backbone\.")
SAMPLING_OFFSETS = re.compile(r".*\.sampling_offsets\.")
FIRST_LAYER = re.compile(r"backbone\.(pos_embed$|patch_embed\.)")
BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    backbone_lr_scale: float = 1.0,
    offsets_lr_scale: float = 1.0,
    layer_decay: float = 1.0,
    decay_norms: bool = True,
) -> list[dict[str, Any]]:
    """Trainable parameters, grouped by learning rate and decay; the full rate is last.

    Args:
        model: its backbone's parameters are named `backbone.*`.
        lr: learning rate before the schedule.
        weight_decay: decoupled decay.
        backbone_lr_scale: factor of the backbone's rate.
        offsets_lr_scale: factor of the rate of deformable attention's sampling offsets.
        layer_decay: factor from each block of the backbone to the one before it; 1 for none.
        decay_norms: False disables decay of vectors, i.e. of norms and biases.

    Returns:
        groups for an optimizer. `base_lr` is constant; the schedule changes `lr`.

    Raises:
        ConfigError: a layer decay for a backbone without numbered blocks.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    blocks = _count_blocks(name for name, _ in model.named_parameters())
    if layer_decay != 1.0 and not blocks:
        raise ConfigError(
            f"train.layer_decay {layer_decay} needs a backbone of numbered blocks (model.backbone.kind vit): "
            "use --set train.layer_decay=1"
        )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        scale = (
            (backbone_lr_scale if BACKBONE.match(name) else 1.0)
            * (offsets_lr_scale if SAMPLING_OFFSETS.match(name) else 1.0)
            * layer_decay ** _layers_above(name, blocks)
        )
        # Every bias is a vector; scalars are decayed.
        decayed = decay_norms or parameter.dim() != 1 or process_group.is_scalar(parameter)
        groups.setdefault((scale, weight_decay if decayed else 0.0), []).append(parameter)
    ordered = sorted(groups, key=lambda group: (group[0] == 1.0, *group))
    return [
        {"params": groups[scale, decay], "lr": lr * scale, "base_lr": lr * scale, "weight_decay": decay}
        for scale, decay in ordered
    ]


def _count_blocks(names: Iterable[str]) -> int:
    return max((int(match[1]) + 1 for match in map(BLOCK.match, names) if match), default=0)


def _layers_above(name: str, blocks: int) -> int:
    """Layers between a parameter and the network's end: 0 outside of the blocks, blocks + 1 for the embeddings.

    Parity: the backbone's last norm counts as the end, not as the last block (LayerDecayOptimizerConstructor).
    """
    if FIRST_LAYER.match(name):
        return blocks + 1
    block = BLOCK.match(name)
    return blocks - int(block[1]) if block else 0


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the model's parameter groups, fused where PyTorch supports it on their device.

    Raises:
        ConfigError: no parameter is trainable, or the backbone does not support layer decay.
    """
    lr = base_learning_rate(config)
    groups = parameter_groups(
        model,
        lr=lr,
        weight_decay=config.weight_decay,
        backbone_lr_scale=config.backbone_lr_scale,
        offsets_lr_scale=config.offsets_lr_scale,
        layer_decay=config.layer_decay,
        decay_norms=config.decay_norms,
    )
    if not groups:
        raise ConfigError("nothing to train: every parameter of the model is frozen")
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=1e-8, weight_decay=config.weight_decay, fused=fused)


def base_learning_rate(config: TrainConfig) -> float:
    """The learning rate before warm-up and schedule; scaled to the batch size with `train.scale_lr`."""
    return config.lr * config.batch_size / PUBLISHED_BATCH if config.scale_lr else config.lr


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The factor of the base learning rate, as a pure function of step and epoch.

    Attributes:
        kind: step multiplies by `gamma` at each milestone; cosine decays to zero over the whole run.
        milestones: epochs, counted from 0, at whose first step the rate drops.
        gamma: factor of each milestone.
        warmup_steps: steps over which the rate rises linearly from `warmup_start`.
        warmup_start: factor at the first step.
        total_steps: optimizer steps of the whole run.
    """

    kind: Literal["step", "cosine"]
    milestones: tuple[int, ...]
    gamma: float
    warmup_steps: int
    warmup_start: float
    total_steps: int

    def factor(self, step: int, epoch: int) -> float:
        """The factor of the base learning rate for a step.

        Args:
            step: completed optimizer steps.
            epoch: the epoch of the step, from 0.
        """
        if self.kind == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.total_steps))))
        else:
            factor = self.gamma ** sum(milestone <= epoch for milestone in self.milestones)
        if step < self.warmup_steps:
            factor *= 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_start)
        return factor


def build_schedule(config: TrainConfig, total_steps: int) -> Schedule:
    """The schedule of the settings, for a run of `total_steps` optimizer steps."""
    return Schedule(
        kind=config.lr_schedule,
        milestones=config.lr_milestones,
        gamma=config.lr_gamma,
        warmup_steps=config.warmup_steps,
        warmup_start=config.warmup_start,
        total_steps=total_steps,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to its base learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients together so that their L2 norm is at most `max_norm`; 0 does not scale.

    Returns:
        the norm before clipping, a scalar; not finite when any gradient is not.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    max_norm = max_norm if max_norm > 0 else math.inf
    parts = [process_group.local_part(gradient) for gradient in gradients]
    if all(part is gradient for part, gradient in zip(parts, gradients, strict=True)):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    norm = process_group.sharded_norm(gradients)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # like PyTorch
    for part in parts:
        part.mul_(factor)
    return norm
