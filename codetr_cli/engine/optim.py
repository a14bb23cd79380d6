"""The optimizer's side of the recipe: parameter groups, learning rate, clipping and arithmetic.

The published recipe is AdamW with one tenth of the learning rate for the backbone and the same weight decay for every
parameter, norms and biases included, a step schedule by epoch, and gradients clipped together by their L2 norm
(Sense-X/Co-DETR and MMDetection 3.3 projects/CO-DETR, co_dino_5scale_r50_1x_coco). Frozen parameters are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codetr_cli.config import TrainConfig
from codetr_cli.errors import ConfigError

PUBLISHED_BATCH = 16  # images per step that the published learning rates are for


def parameter_groups(
    model: nn.Module, *, lr: float, backbone_lr_scale: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate: the backbone's, then all others.

    Args:
        model: its backbone's parameters are named `backbone.*`.
        lr: learning rate before the schedule.
        backbone_lr_scale: the backbone's share of it.
        weight_decay: decoupled decay of every parameter.

    Returns:
        groups for an optimizer. `base_lr` stays as given here while the schedule changes `lr`.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    backbone = [parameter for name, parameter in trainable if name.startswith("backbone.")]
    others = [parameter for name, parameter in trainable if not name.startswith("backbone.")]
    scaled = [("backbone", backbone, lr * backbone_lr_scale), ("others", others, lr)]
    return [
        {"name": name, "params": parameters, "lr": rate, "base_lr": rate, "weight_decay": weight_decay}
        for name, parameters, rate in scaled
        if parameters
    ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the model's parameter groups, fused where PyTorch has a fused step for their device.

    Raises:
        ConfigError: no parameter is trainable.
    """
    groups = parameter_groups(
        model,
        lr=base_learning_rate(config),
        backbone_lr_scale=config.backbone_lr_scale,
        weight_decay=config.weight_decay,
    )
    if not groups:
        raise ConfigError("nothing to train: every parameter of the model is frozen")
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        groups,
        lr=base_learning_rate(config),
        betas=config.betas,
        eps=1e-8,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def base_learning_rate(config: TrainConfig) -> float:
    """The learning rate before warm-up and schedule; scaled to the batch size only when the settings ask for it."""
    return config.lr * config.batch_size / PUBLISHED_BATCH if config.scale_lr else config.lr


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a share of its base, as a pure function of the position in the run.

    Attributes:
        kind: step lowers it by `gamma` at each milestone; cosine leads it to zero over the whole run.
        milestones: epochs, counted from 0, from whose first step on the rate is lower.
        gamma: factor of each milestone.
        warmup_steps: steps over which the rate rises linearly from `warmup_start`.
        warmup_start: share of the rate at the first step.
        total_steps: optimizer steps of the whole run.
    """

    kind: Literal["step", "cosine"]
    milestones: tuple[int, ...]
    gamma: float
    warmup_steps: int
    warmup_start: float
    total_steps: int

    def factor(self, step: int, epoch: int) -> float:
        """The share of the base learning rate for a step.

        Args:
            step: optimizer steps already done.
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
    """The schedule that the settings describe, for a run of `total_steps` optimizer steps."""
    return Schedule(
        kind=config.lr_schedule,
        milestones=config.lr_milestones,
        gamma=config.lr_gamma,
        warmup_steps=config.warmup_steps,
        warmup_start=config.warmup_start,
        total_steps=total_steps,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives every group its base learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients together so that their L2 norm is at most `max_norm`; 0 leaves them as they are.

    Returns:
        the norm before clipping, a scalar; not finite when any gradient is not.
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The reduced type of matrix products and convolutions, None for float32.

    Args:
        precision: auto, fp32, bf16 or fp16. auto is bf16 on GPUs that have it in hardware and fp32 anywhere else.
        device: where the network runs.

    Raises:
        ConfigError: fp16 asked for without a GPU; its small range needs loss scaling that only GPUs support.
    """
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else None
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a CUDA GPU, the device is {device}: use fp32 or bf16")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
