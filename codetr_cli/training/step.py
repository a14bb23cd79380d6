"""One optimizer step: forward and backward passes of its micro batches, clipping, optimizer, moving average."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from codetr_cli.data.batch import Batch, normalize, pad
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import gathered, is_sharded
from codetr_cli.errors import DivergedError
from codetr_cli.runtime.memory import is_out_of_memory
from codetr_cli.runtime.rng import random_states, untouched_randomness
from codetr_cli.training.nonfinite import StepLosses, has_finite_outputs, is_nonfinite_step, on_images
from codetr_cli.training.oom import out_of_memory_in, split
from codetr_cli.training.optim import clip_gradients
from codetr_cli.training.rollback import skip_step
from codetr_cli.training.state import MicroBatches, TrainContext, TrainState

logger = logging.getLogger(__name__)


def train_step(context: TrainContext, state: TrainState, micro_batches: MicroBatches) -> float:
    """One optimizer step; a step with non-finite losses or gradients changes no weight.

    Returns:
        the norm of the gradients before clipping.

    Raises:
        OutOfMemoryInStep: in a forward or backward pass; the step may be computed again.
        DivergedError: the outputs of the network are not finite.
    """
    state.optimizer.zero_grad(set_to_none=True)
    state.step_inputs.clear()
    step_losses: StepLosses = []
    for index, batch in enumerate(micro_batches):
        is_last_batch = index == len(micro_batches) - 1
        with out_of_memory_in(batch):
            parts = split(
                batch,
                state.progress.micro_batch_splits,
                keep_padding=context.settings.train.global_batch_losses,
            )
            losses: dict[str, Tensor] = {}
            for number, part in enumerate(parts):
                share = len(batch) / len(part)
                is_last = is_last_batch and number == len(parts) - 1
                part_losses = forward_backward(context, state, part, len(micro_batches) * share, sync=is_last)
                if len(parts) > 1:  # the losses of a micro batch are the mean over its images
                    part_losses = {name: losses.get(name, 0.0) + value / share for name, value in part_losses.items()}
                losses = part_losses
        step_losses.append((losses, [int(target["image_id"]) for target in batch.targets]))
    for losses, image_ids in step_losses:
        state.metrics.add(losses, len(image_ids))

    context.io.heartbeat("optimizer")
    state.scaler.unscale_(state.optimizer)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    norm = clip_gradients(parameters, context.settings.train.clip_norm)
    norm_value, finite_losses, finite_gradients = _check_finite(norm, step_losses)
    if is_nonfinite_step(state.scaler, finite_losses=finite_losses, finite_gradients=finite_gradients):
        skip_step(context, state, step_losses)
        return norm_value
    if finite_gradients:
        state.progress.nonfinite_steps = 0
    state.scaler.step(state.optimizer)  # skips fp16 gradients that overflow, and lowers the scale
    state.scaler.update()
    if state.ema is not None:
        state.ema.update(context.model, state.progress.step)
    state.metrics.step_done()
    return norm_value


def forward_backward(
    context: TrainContext, state: TrainState, batch: Batch, divisor: float, *, sync: bool
) -> dict[str, Tensor]:
    """Adds the gradients of one forward pass, weighted by 1 / divisor.

    The batch is on the CPU. `sync` averages the gradients over processes, in the last pass of a step.

    Returns:
        scalar losses by name, detached.
    """
    state.step_inputs.append((batch, random_states(context.device)))
    data = context.settings.data
    batch = batch.to(context.device)
    images = normalize(batch.images, batch.padding_mask, data.mean, data.std)  # (B, 3, H, W)
    try:
        with nullcontext() if sync else process_group.without_sync(context.objective):
            with torch.autocast(context.device.type, dtype=context.dtype, enabled=context.dtype is not None):
                context.io.heartbeat("forward")
                losses: dict[str, Tensor] = context.objective(images, batch.padding_mask, batch.targets)
            total = torch.stack(list(losses.values())).sum()
            context.io.heartbeat("backward")
            torch.autograd.backward(state.scaler.scale(total / divisor))
    except (RuntimeError, ValueError, IndexError) as error:
        # Matching and sampling may fail on non-finite outputs before there is a loss to check.
        # Sharded weights can only be gathered by all processes together, and only this one may have the error.
        can_check = not is_out_of_memory(error) and not is_sharded(context.model)
        if not can_check or has_finite_outputs(context.model, images, batch.padding_mask):
            raise
        ids = on_images([target["image_id"] for target in batch.targets])
        raise _diverged(context, state, f"the outputs of the network are not finite {ids}") from error
    return {name: value.detach() for name, value in losses.items()}


def read_micro_batch(context: TrainContext, state: TrainState, batches: Iterator[Batch]) -> Batch:
    """The next micro batch; padded to the same size in all processes where the losses are of the global batch."""
    context.io.heartbeat("data", state.progress.step + 1)
    with state.metrics.waiting(), untouched_randomness():
        batch = next(batches)
    if context.settings.train.global_batch_losses:
        batch = pad(batch, *process_group.reduce_max(batch.images.shape[2:]))
    return batch


def has_diverged(context: TrainContext, state: TrainState) -> bool:
    """Whether the network computes non-finite outputs for the newest inputs in any process; all processes call it."""
    data, batch = context.settings.data, state.step_inputs[-1][0].to(context.device)
    images = normalize(batch.images, batch.padding_mask, data.mean, data.std)
    with gathered(context.objective):
        finite = has_finite_outputs(context.model, images, batch.padding_mask)
    return process_group.any_process(not finite)[0]


def _check_finite(norm: Tensor, step_losses: StepLosses) -> tuple[float, bool, bool]:
    """The norm of the gradients, and whether losses and gradients are finite in all processes."""
    finite = torch.stack([value for losses, _ in step_losses for value in losses.values()]).isfinite().all()
    finite_value, norm_value = torch.stack([finite.to(norm.dtype), norm]).tolist()  # the only synchronization of a step
    bad_losses, bad_gradients = process_group.any_process(finite_value == 0, not math.isfinite(norm_value))
    return float(norm_value), not bad_losses, not bad_gradients


def _diverged(context: TrainContext, state: TrainState, what: str) -> DivergedError:
    progress = state.progress
    text = (
        f"training diverged in step {progress.step + 1} (epoch {progress.epoch + 1}): {what}. "
        f"Nothing of this step was saved; the checkpoints in {context.io.folder.checkpoints_dir} are unchanged. Check "
        "these images and their annotations, lower train.lr, or try --set train.precision=fp32."
    )
    logger.debug("%s", text)
    return DivergedError(text)
