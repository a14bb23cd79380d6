"""A non-finite step, saved so that it can be computed again: RUN/diverged.

    model.safetensors   the weights before the step, with settings and classes, like any checkpoint
    rank<N>.safetensors the forward passes of process N, with the states of its random number generators before each
    step.json           step, epoch and batch, non-finite values, seed, scale; written last

`replay`, and `python -m codetr_cli.training.repro RUN/diverged [DEVICE]` as JSON, compute the step again in a single
process. Losses that are normalized over all processes are normalized over one process there.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from codetr_cli.data.batch import Batch, normalize
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import full_weights
from codetr_cli.errors import CheckpointError
from codetr_cli.files import WEIGHTS_NAME, make_way, replace_file, write_text
from codetr_cli.inference.model_size import check_size
from codetr_cli.losses.build import build_objective
from codetr_cli.models.build import build_model
from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.runtime.precision import DTYPES, float32_arithmetic, resolve_training_precision
from codetr_cli.runtime.rng import restore_random_states
from codetr_cli.training.nonfinite import StepInputs, nonfinite_gradients
from codetr_cli.training.state import TrainContext, TrainState
from codetr_cli.weights.checkpoint import load_checkpoint, read_safetensors, save_checkpoint
from codetr_cli.weights.load_state import load_exact

STEP = "step.json"
MAX_STEP_BYTES = 16 << 20


def save_reproducer(folder: Path, context: TrainContext, state: TrainState) -> None:
    """Writes a reproducer of the newest step, with the weights and not their average; all processes must call it.

    Raises:
        ResourceError: no space left.
    """
    weights = dict(full_weights(context.model))
    if process_group.is_main():
        make_way(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    process_group.barrier()
    tensors: dict[str, Tensor] = {}
    rest = [
        _extract_tensors({"batch": vars(batch), "random": states}, f"{index}", tensors)
        for index, (batch, states) in enumerate(state.step_inputs)
    ]
    with replace_file(folder / f"rank{process_group.rank()}.safetensors") as temporary:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary,
                  {"micro_batches": json.dumps(rest)})  # fmt: skip
    if process_group.is_main():
        save_checkpoint(
            folder / WEIGHTS_NAME,
            weights,
            settings=context.settings,
            class_names=context.class_names,
            category_ids=context.category_ids,
        )
    process_group.barrier()
    if process_group.is_main():
        progress, nonfinite = state.progress, state.nonfinite
        summary = {
            "step": progress.step,
            "epoch": progress.epoch,
            "batch": progress.batch,
            "device": str(context.device),
            "scale": state.scaler.get_scale(),
            "checkpoints": str(context.io.folder.checkpoints_dir),
            **(nonfinite.as_dict() if nonfinite is not None else {}),
            "seed": context.settings.train.seed,
            "processes": process_group.world_size(),
        }
        write_text(folder / STEP, json.dumps(summary, indent=2) + "\n")


@dataclass(frozen=True)
class Replayed:
    """One process's part of a step, computed again: image ids and losses of each forward pass.

    The gradients are the names of the parameters with a non-finite one.
    """

    rank: int
    image_ids: list[list[int]]
    losses: list[dict[str, float]]
    gradients: list[str]


def replay(folder: Path, device: torch.device) -> Iterator[Replayed]:
    """Computes losses and gradients of a step again, in the precision of the run, one process after the other.

    Another type of device than the run's has other random numbers.

    Raises:
        CheckpointError: missing or damaged.
    """
    summary = read_step(folder)
    checkpoint = load_checkpoint(folder / WEIGHTS_NAME)
    settings, source = checkpoint.settings, str(folder / WEIGHTS_NAME)
    check_size(settings, checkpoint.state, source=source)
    model = build_model(settings.model)
    load_exact(model, checkpoint.state, source=source, allow_nonfinite=True)
    objective = build_objective(model.to(device), settings.train.loss).train()
    precision = resolve_training_precision(settings.train.precision, device)
    dtype = DTYPES[precision]
    for rank in range(summary["processes"]):
        inputs = read_micro_batches(folder / f"rank{rank}.safetensors")
        model.zero_grad(set_to_none=True)
        losses = []
        for batch, states in inputs:
            batch = batch.to(device)
            images = normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)
            restore_random_states(states, device)
            with float32_arithmetic(precision, device):
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    pass_losses: dict[str, Tensor] = objective(images, batch.padding_mask, batch.targets)
                total = torch.stack(list(pass_losses.values())).sum()
                torch.autograd.backward(total * summary["scale"] / len(inputs))
            losses.append({name: float(value.detach()) for name, value in pass_losses.items()})
        yield Replayed(
            rank=rank,
            image_ids=[[int(target["image_id"]) for target in batch.targets] for batch, _ in inputs],
            losses=losses,
            gradients=nonfinite_gradients(model),
        )


def read_step(folder: Path) -> dict[str, Any]:
    """The content of step.json.

    Raises:
        CheckpointError: there is none, or it is no table.
    """
    try:
        summary: dict[str, Any] = parse_json(read_bytes(folder / STEP, MAX_STEP_BYTES))
        if not isinstance(summary, dict):
            raise ValueError("it is no table")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no complete reproducer of a step ({error}): only a run that diverged has one"
        ) from error
    return summary


def read_micro_batches(path: Path) -> StepInputs:
    """The forward passes that `save_reproducer` wrote for one process.

    Raises:
        CheckpointError: missing or damaged.
    """
    tensors, metadata = read_safetensors(path)
    inputs = []
    try:
        for index, plain in enumerate(parse_json(metadata["micro_batches"])):
            whole = _insert_tensors(plain, tensors, f"{index}")
            batch = whole["batch"]
            targets = [
                {key: tuple(value) if isinstance(value, list) else value for key, value in target.items()}
                for target in batch["targets"]
            ]
            inputs.append((Batch(batch["images"], batch["padding_mask"], targets), whole["random"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no inputs of a step: {error!r}") from error
    return inputs


def _extract_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Nested tables and lists with null in place of each tensor, which goes to `tensors` by its path."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return None
    if isinstance(value, dict):
        return {key: _extract_tensors(item, f"{path}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_extract_tensors(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    return value.item() if hasattr(value, "item") else value


def _insert_tensors(rest: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """The inverse of `_extract_tensors`; tuples come back as lists."""
    if path in tensors:
        return tensors[path]
    if isinstance(rest, dict):
        return {key: _insert_tensors(item, tensors, f"{path}.{key}") for key, item in rest.items()}
    if isinstance(rest, list):
        return [_insert_tensors(item, tensors, f"{path}.{index}") for index, item in enumerate(rest)]
    return rest


def main(arguments: Sequence[str]) -> None:
    """Prints the step replayed from FOLDER [DEVICE] as JSON; non-finite losses are texts."""
    replayed = [asdict(part) for part in replay(Path(arguments[0]), torch.device(*arguments[1:2] or ["cpu"]))]
    for part in replayed:
        part["losses"] = [
            {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
            for losses in part["losses"]
        ]
    sys.stdout.write(json.dumps(replayed, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
