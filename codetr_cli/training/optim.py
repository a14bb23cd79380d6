"""Optimizer: parameter groups, learning rate and its schedule, gradient clipping.

The published recipes are AdamW with a step schedule by epoch and gradients clipped together by their L2 norm
(Sense-X/Co-DETR, projects/configs). Learning rate and weight decay of a parameter depend on its name:
- the backbone has one tenth of the learning rate; in Co-Deformable-DETR so have the attention's sampling offsets;
- ViT-L on COCO has 0.8**(25 - i) of the learning rate in block i, where the embeddings are block 0 and the last norm
  is block 25, and no decay of norms and biases; all other recipes decay every parameter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codetr_cli.config.train_settings import TrainConfig
from codetr_cli.distributed import process_group
from codetr_cli.errors import CheckpointError, ConfigError

MOMENTS = frozenset(("step", "exp_avg", "exp_avg_sq"))  # of a parameter, in AdamW
PUBLISHED_BATCH = 16  # images per step that the published learning rates are for

BACKBONE = re.compile(r"backbone\.")
SAMPLING_OFFSETS = re.compile(r".*\.sampling_offsets\.")
FIRST_LAYER = re.compile(r"backbone\.(pos_embed$|patch_embed\.)")
BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters, grouped by learning rate and decay; the full rate is last.

    Returns:
        groups for an optimizer. `base_lr` is constant; the schedule changes `lr`.

    Raises:
        ConfigError: a layer decay for a backbone without numbered blocks.
    """
    lr = base_learning_rate(config)
    matches = (BLOCK.match(name) for name, _ in model.named_parameters())
    blocks = max((int(match[1]) + 1 for match in matches if match), default=0)
    if config.layer_decay != 1.0 and not blocks:
        raise ConfigError(
            f"train.layer_decay {config.layer_decay} needs a backbone of numbered blocks (model.backbone.kind vit): "
            "use --set train.layer_decay=1"
        )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = (
            (config.backbone_lr_scale if BACKBONE.match(name) else 1.0)
            * (config.offsets_lr_scale if SAMPLING_OFFSETS.match(name) else 1.0)
            * config.layer_decay ** _layers_above(name, blocks)
        )
        # Every bias is a vector; scalars are decayed.
        decayed = config.decay_norms or parameter.dim() != 1 or process_group.is_scalar(parameter)
        groups.setdefault((scale, config.weight_decay if decayed else 0.0), []).append(parameter)
    ordered = sorted(groups, key=lambda group: (group[0] == 1.0, *group))
    return [
        {"params": groups[scale, decay], "lr": lr * scale, "base_lr": lr * scale, "weight_decay": decay}
        for scale, decay in ordered
    ]


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
    groups = parameter_groups(model, config)
    if not groups:
        raise ConfigError("nothing to train: every parameter of the model is frozen")
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    lr, decay = base_learning_rate(config), config.weight_decay
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=1e-8, weight_decay=decay, fused=fused)


def checked_optimizer_state(
    optimizer: torch.optim.Optimizer, stored: dict[str, Any], *, sharded: bool
) -> dict[str, Any]:
    """A stored state dict that fits an optimizer, with the optimizer's own options in the place of the stored ones.

    Args:
        optimizer: built from the settings of the run.
        stored: of the whole optimizer, with values of the right types.
        sharded: whether None stands for tensors that are stored elsewhere.

    Raises:
        CheckpointError: it is of other parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    shapes = [
        () if process_group.is_scalar(parameter) else tuple(parameter.shape)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    if [group["params"] for group in own] != [group.get("params") for group in stored["param_groups"]]:
        raise CheckpointError("the checkpoint's optimizer has other parameters than this training")
    for index, moments in stored["state"].items():
        if index >= len(shapes) or moments.keys() != MOMENTS:
            raise CheckpointError("the checkpoint's optimizer has other values than this training")
        for key, value in moments.items():
            shape = () if key == "step" else shapes[index]
            if isinstance(value, Tensor):
                fits = value.is_floating_point() and tuple(value.shape) == shape
            else:
                fits = key == "step" if value is not None else sharded
            if not fits:
                raise CheckpointError(f"the checkpoint's optimizer has another {key} of parameter {index}")
    return {"state": stored["state"], "param_groups": own}


def base_learning_rate(config: TrainConfig) -> float:
    """The learning rate before warm-up and schedule; scaled to the batch size with `train.scale_lr`."""
    return config.lr * config.batch_size / PUBLISHED_BATCH if config.scale_lr else config.lr


@dataclass(frozen=True)
class Schedule:
    """The factor of the base learning rate, as a pure function of step and epoch, for a run of `total_steps`."""

    config: TrainConfig
    total_steps: int

    def factor(self, step: int, epoch: int) -> float:
        """The factor of the base learning rate for a step.

        Args:
            step: completed optimizer steps.
            epoch: the epoch of the step, from 0.
        """
        config = self.config
        if config.lr_schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.total_steps))))
        else:
            factor = config.lr_gamma ** sum(milestone <= epoch for milestone in config.lr_milestones)
        if step < config.warmup_steps:
            factor *= 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_start)
        return factor


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
    torch._foreach_mul_(parts, factor)
    return norm
