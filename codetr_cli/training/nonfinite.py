"""Non-finite losses and gradients: detecting them, and naming the losses, parameters and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codetr_cli.data.batch import Batch
from codetr_cli.distributed import process_group
from codetr_cli.errors import listed

StepInputs = list[tuple[Batch, dict[str, Any]]]
"""Forward passes of a step in this process: images and targets, and the states of the random generators before it."""

StepLosses = list[tuple[dict[str, Tensor], list[int]]]
"""Losses by name and image ids of each micro batch of a step in this process."""

LISTED = 8  # names or ids in a message
LOGGED = 32  # names of gradients in a line of metrics.jsonl
SCALE_FLOOR = 1.0  # an fp16 gradient that overflows at this scale would overflow without one


@dataclass(frozen=True)
class NonfiniteValues:
    """Non-finite losses or gradients of a step, of all processes together.

    Attributes:
        losses: value, as text, by name.
        gradients: names of parameters with non-finite gradients; empty when a loss is the cause.
        image_ids: of the micro batches with such a loss; of the whole step when all losses are finite.
    """

    losses: dict[str, str]
    gradients: list[str]
    image_ids: list[int]

    def __str__(self) -> str:
        if self.losses:
            values = listed([f"{name} = {value}" for name, value in self.losses.items()], LISTED)
            return f"{values} {on_images(self.image_ids)}"
        return f"gradients of {listed(self.gradients, LISTED)} are not finite {on_images(self.image_ids)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a line of metrics.jsonl."""
        return asdict(self) | {"gradients": self.gradients[:LOGGED]}


def find_nonfinite(model: nn.Module, step_losses: StepLosses) -> NonfiniteValues:
    """The non-finite losses of a step in any process, or else its non-finite gradients; all processes must call it."""
    losses = [
        (name, str(float(value)), ids)
        for losses, ids in step_losses
        for name, value in losses.items()
        if not bool(value.isfinite())
    ]
    gradients = [] if losses else nonfinite_gradients(model)
    image_ids = [image_id for _, ids in step_losses for image_id in ids]
    by_rank = process_group.from_main(process_group.gather_objects((losses, gradients, image_ids)))
    all_losses = [item for rank_losses, _, _ in by_rank for item in rank_losses]
    suspects = [ids for _, _, ids in all_losses] if all_losses else [ids for _, _, ids in by_rank]
    return NonfiniteValues(
        losses={name: value for name, value, _ in all_losses},
        gradients=[] if all_losses else list(dict.fromkeys(name for _, names, _ in by_rank for name in names)),
        image_ids=sorted({image_id for ids in suspects for image_id in ids}),
    )


def nonfinite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient, or this process's part of it, is not finite."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(process_group.local_part(parameter.grad).isfinite().all())
    ]


def is_nonfinite_step(scaler: torch.amp.GradScaler, *, finite_losses: bool, finite_gradients: bool) -> bool:
    """Whether a step must be skipped; the same in all processes when the arguments are.

    An fp16 gradient that overflows does not count as long as the scaler can lower its scale: the scaler skips such a
    step by itself.
    """
    if finite_losses and not finite_gradients:
        return not scaler.is_enabled() or scaler.get_scale() <= SCALE_FLOOR
    return not finite_losses


def has_finite_outputs(model: nn.Module, images: Tensor, padding_mask: Tensor) -> bool:
    """Whether the outputs of the network for a batch are finite; if not, its weights have diverged."""
    with torch.no_grad():
        outputs: dict[str, Tensor] = model(images, padding_mask)
    return all(bool(value.isfinite().all()) for value in outputs.values())


def on_images(image_ids: Sequence[int]) -> str:
    """A phrase that names images by id."""
    return f"on the images with id {listed(sorted(set(image_ids)), LISTED)}"
