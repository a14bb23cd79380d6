"""Numbers that cannot be trained on: how to tell, and what to say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codetr_cli.distributed import process_group
from codetr_cli.errors import listed

Seen = list[tuple[dict[str, Tensor], list[int]]]
"""Losses by name and image ids of each micro batch of a step in this process."""

LISTED = 8  # names or ids in a message
LOGGED = 32  # names of gradients in a line of metrics.jsonl
SCALE_FLOOR = 1.0  # an fp16 gradient that overflows at this factor would overflow without one


@dataclass(frozen=True)
class BadNumbers:
    """What is not finite in a step, in all processes together.

    Attributes:
        losses: value, as text, by name.
        gradients: names of parameters whose gradient is not; left empty when a loss explains it.
        image_ids: of the micro batches with such a loss; of the whole step when all losses are finite.
    """

    losses: dict[str, str]
    gradients: list[str]
    image_ids: list[int]

    def __str__(self) -> str:
        if self.losses:
            found = listed([f"{name} = {value}" for name, value in self.losses.items()], LISTED)
            return f"{found} {on_images(self.image_ids)}"
        return f"gradients of {listed(self.gradients, LISTED)} are not finite {on_images(self.image_ids)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a line of metrics.jsonl."""
        return asdict(self) | {"gradients": self.gradients[:LOGGED]}


def find_bad_numbers(model: nn.Module, seen: Seen) -> BadNumbers:
    """Which losses of which images are not finite in any process, or else which gradients; every process must ask.

    Args:
        model: with the gradients of the step.
        seen: what this process computed.
    """
    losses = [
        (name, str(float(value)), ids)
        for losses, ids in seen
        for name, value in losses.items()
        if not bool(value.isfinite())
    ]
    gradients = [] if losses else not_finite_gradients(model)
    image_ids = [image_id for _, ids in seen for image_id in ids]
    shares = process_group.from_main(process_group.gather_objects((losses, gradients, image_ids)))
    found = [item for share, _, _ in shares for item in share]
    blamed = [ids for _, _, ids in found] if found else [ids for _, _, ids in shares]
    return BadNumbers(
        losses={name: value for name, value, _ in found},
        gradients=[] if found else list(dict.fromkeys(name for _, names, _ in shares for name in names)),
        image_ids=sorted({image_id for ids in blamed for image_id in ids}),
    )


def not_finite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient, or this process's part of it, is not finite."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(process_group.own_part(parameter.grad).isfinite().all())
    ]


def is_bad_step(scaler: torch.amp.GradScaler, *, finite_losses: bool, finite_gradients: bool) -> bool:
    """Whether a step has gone wrong; the answer is the same in all processes when the arguments are.

    An fp16 gradient that overflows is none of that as long as the scaler can lower its factor: it leaves such a step
    out by itself.

    Args:
        scaler: of the gradients; switched off for other arithmetic.
        finite_losses: in all processes.
        finite_gradients: in all processes.
    """
    if finite_losses and not finite_gradients:
        return not scaler.is_enabled() or scaler.get_scale() <= SCALE_FLOOR
    return not finite_losses


def has_finite_outputs(model: nn.Module, images: Tensor, padding_mask: Tensor) -> bool:
    """Whether the network computes finite numbers from a batch; false means that its weights have diverged."""
    with torch.no_grad():
        outputs: dict[str, Tensor] = model(images, padding_mask)
    return all(bool(value.isfinite().all()) for value in outputs.values())


def on_images(image_ids: Sequence[int]) -> str:
    """A phrase that names images by id."""
    return f"on the images with id {listed(sorted(set(image_ids)), LISTED)}"
