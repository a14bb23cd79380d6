"""What to say when a step computes numbers that cannot be trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr_cli.engine import distributed

Seen = list[tuple[dict[str, Tensor], list[int]]]
"""Losses by name and image ids of each micro batch of a step in this process."""

LISTED = 8  # names or ids in a message


def explain_divergence(model: nn.Module, seen: Seen) -> str:
    """Which losses of which images are not finite in any process, or else which gradients; every process must ask.

    Args:
        model: with the gradients of the step.
        seen: what this process computed.
    """
    found = [
        (f"{name} = {float(value)}", ids)
        for losses, ids in seen
        for name, value in losses.items()
        if not bool(value.isfinite())
    ]
    everywhere = distributed.from_main([item for items in distributed.gather_objects(found) for item in items])
    if everywhere:
        names = list(dict.fromkeys(name for name, _ in everywhere))
        return f"{_listed(names)} {on_images([image_id for _, ids in everywhere for image_id in ids])}"
    parameters = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    return f"gradients of {_listed(parameters)} are not finite {on_images([i for _, ids in seen for i in ids])}"


def has_finite_outputs(model: nn.Module, images: Tensor, padding_mask: Tensor) -> bool:
    """Whether the network computes finite numbers from a batch; false means that its weights have diverged."""
    with torch.no_grad():
        outputs: dict[str, Tensor] = model(images, padding_mask)
    return all(bool(value.isfinite().all()) for value in outputs.values())


def on_images(image_ids: Sequence[int]) -> str:
    """A phrase that names images by id."""
    return f"on the images with id {_listed(sorted(set(image_ids)))}"


def _listed(items: Sequence[object]) -> str:
    more = len(items) - LISTED
    return ", ".join(str(item) for item in items[:LISTED]) + (f" and {more} more" if more > 0 else "")
