"""A step that went wrong, kept so that it can be computed again: RUN/diverged.

    model.safetensors   the weights that the step began with, with settings and classes, as any checkpoint
    rank<N>.safetensors the micro batches of process N, and the states of its random generators before each
    step.json           where in the run it was, what was not finite, seed, precision; written last

`replay` computes losses and gradients of the step anew, process after process in a single one. Losses that are
normalised over all processes are so over the one alone there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch, normalize
from codetr_cli.distributed import process_group
from codetr_cli.errors import CheckpointError
from codetr_cli.files import WEIGHTS_NAME, replace_file, write_text
from codetr_cli.losses.build import build_objective
from codetr_cli.models.build import build_model
from codetr_cli.runtime.precision import autocast_dtype
from codetr_cli.runtime.rng import restore_random_states
from codetr_cli.training.nonfinite import not_finite_gradients
from codetr_cli.weights.checkpoint import load_checkpoint, read_safetensors, save_checkpoint

STEP = "step.json"

Taken = list[tuple[Batch, dict[str, Any]]]
"""Micro batches of a step in this process, each with the states of the random generators before it."""


def save_reproducer(
    folder: Path,
    weights: dict[str, Tensor],
    taken: Taken,
    facts: dict[str, Any],
    *,
    settings: Settings,
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> None:
    """Writes the folder anew; every process must call it.

    Args:
        folder: where; an older one is replaced.
        weights: the model's, not their average.
        taken: of this process.
        facts: plain values for step.json.
        settings: of the run.
        class_names: by label.
        category_ids: by label.

    Raises:
        ResourceError: no space left.
    """
    if process_group.is_main():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    process_group.barrier()
    tensors: dict[str, Tensor] = {}
    rest = []
    for index, (batch, states) in enumerate(taken):
        found, plain = _apart({"batch": vars(batch), "random": states}, f"{index}")
        tensors |= found
        rest.append(plain)
    with replace_file(folder / f"rank{process_group.rank()}.safetensors") as temporary:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary,
                  {"micro_batches": json.dumps(rest)})  # fmt: skip
    if process_group.is_main():
        save_checkpoint(
            folder / WEIGHTS_NAME, weights, settings=settings, class_names=class_names, category_ids=category_ids
        )
    process_group.barrier()
    if process_group.is_main():
        facts = {**facts, "seed": settings.train.seed, "processes": process_group.world_size()}
        write_text(folder / STEP, json.dumps(facts, indent=2) + "\n")


@dataclass(frozen=True)
class Replayed:
    """One process's share of a step, computed again.

    Attributes:
        rank: of the process.
        image_ids: of each micro batch.
        losses: by name, of each micro batch.
        gradients: names of parameters with a gradient that is not finite.
    """

    rank: int
    image_ids: list[list[int]]
    losses: list[dict[str, float]]
    gradients: list[str]


def replay(folder: Path, device: torch.device) -> Iterator[Replayed]:
    """Computes the step of a reproducer again, in the precision of the run, one process's share after the other.

    Args:
        folder: RUN/diverged.
        device: where; the random generators of another kind of device give other numbers.

    Raises:
        CheckpointError: no reproducer, or a damaged one.
    """
    facts = read_step(folder)
    checkpoint = load_checkpoint(folder / WEIGHTS_NAME)
    settings = checkpoint.settings
    model = build_model(settings.model)
    model.load_state_dict(checkpoint.state)
    objective = build_objective(model.to(device), settings.train.loss).train()
    dtype = autocast_dtype(settings.train.precision, device)
    for rank in range(facts["processes"]):
        taken = read_micro_batches(folder / f"rank{rank}.safetensors")
        model.zero_grad(set_to_none=True)
        losses = []
        for batch, states in taken:
            batch = batch.to(device)
            images = normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)
            restore_random_states(states, device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                found: dict[str, Tensor] = objective(images, batch.padding_mask, batch.targets)
            total = torch.stack(list(found.values())).sum()
            torch.autograd.backward(total * facts["scale"] / len(taken))
            losses.append({name: float(value.detach()) for name, value in found.items()})
        yield Replayed(
            rank=rank,
            image_ids=[[int(target["image_id"]) for target in batch.targets] for batch, _ in taken],
            losses=losses,
            gradients=not_finite_gradients(model),
        )


def read_step(folder: Path) -> dict[str, Any]:
    """The facts of a reproducer.

    Raises:
        CheckpointError: there is none.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / STEP).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds no whole reproducer of a step ({error}): only a run that diverged has one"
        ) from error
    return facts


def read_micro_batches(path: Path) -> Taken:
    """What `save_reproducer` wrote for one process.

    Raises:
        CheckpointError: missing or damaged.
    """
    tensors, metadata = read_safetensors(path)
    taken = []
    for index, plain in enumerate(json.loads(metadata["micro_batches"])):
        whole = _together(plain, tensors, f"{index}")
        batch = whole["batch"]
        targets = [
            {key: tuple(value) if isinstance(value, list) else value for key, value in target.items()}
            for target in batch["targets"]
        ]
        taken.append((Batch(batch["images"], batch["padding_mask"], targets), whole["random"]))
    return taken


def _apart(value: Any, path: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors of nested tables and lists by path, and the rest with null in the place of each."""
    if isinstance(value, Tensor):
        return {path: value}, None
    if isinstance(value, dict):
        parts = {key: _apart(item, f"{path}.{key}") for key, item in value.items()}
        return _merged(parts.values()), {key: rest for key, (_, rest) in parts.items()}
    if isinstance(value, list | tuple):
        listed = [_apart(item, f"{path}.{index}") for index, item in enumerate(value)]
        return _merged(listed), [rest for _, rest in listed]
    return {}, value.item() if hasattr(value, "item") else value


def _together(rest: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """The opposite of `_apart`; tuples come back as lists."""
    if path in tensors:
        return tensors[path]
    if isinstance(rest, dict):
        return {key: _together(item, tensors, f"{path}.{key}") for key, item in rest.items()}
    if isinstance(rest, list):
        return [_together(item, tensors, f"{path}.{index}") for index, item in enumerate(rest)]
    return rest


def _merged(parts: Any) -> dict[str, Tensor]:
    return {name: tensor for found, _ in parts for name, tensor in found.items()}
