"""Checkpoints of a running training: their content, and how a run continues from one."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import full_optimizer_state, full_weights, load_full_optimizer_state, load_full_weights
from codetr_cli.distributed.sharded_state import host_shards, optimizer_skeleton, read_shards
from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.runs.folder import SHARDED, RunFolder, Saved
from codetr_cli.runtime.rng import random_states, restore_random_states, seed_all
from codetr_cli.training.optim import Schedule
from codetr_cli.training.plan import steps_per_epoch
from codetr_cli.training.progress import Progress
from codetr_cli.training.state import TrainContext, TrainState

logger = logging.getLogger(__name__)

LONG_WAIT_S = 1.0  # for an earlier checkpoint; longer waits are logged


def save(context: TrainContext, state: TrainState) -> None:
    """Copies the state into host memory and writes it in a thread; all processes must call it.

    Training waits only for the copy, and for an earlier checkpoint that is still being written. Code that needs the
    checkpoint on disk calls `wait_until_saved`.

    Raises:
        ResourceError: an earlier checkpoint could not be written; those before it are unchanged.
    """
    context.io.heartbeat("checkpoint")
    started = time.monotonic()
    state.writer.wait()
    waited = time.monotonic() - started
    shard_writers, is_averaged = context.shard_writers, state.ema is not None
    is_sharded = shard_writers is not None
    randomness = process_group.gather_objects(random_states(context.device))
    parts = host_shards(context.model, state.optimizer, host_copy, weights=is_averaged) if is_sharded else {}
    weights = {} if is_sharded and is_averaged else host_model_state(context.model)
    if is_sharded:
        optimizer = host_copy(optimizer_skeleton(state.optimizer))
    else:
        optimizer = full_optimizer_state(state.optimizer, host_copy if process_group.is_main() else lambda _: None)
    average = None if state.ema is None else host_model_state(context.model, state.ema.state)
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)
    state.writer.written_at = time.monotonic()
    if not process_group.is_main():
        if shard_writers is not None:
            state.writer.write(partial(shard_writers.serve, parts))
        return
    step = state.progress.step
    if waited > LONG_WAIT_S:
        logger.debug("checkpoint of step %d: waited %.1f s for the one before to be written", step, waited)
    stored = {
        "step": step,
        "position": state.progress.as_stored(),
        "world_size": process_group.world_size(),
        "micro_batch": context.batches.micro_batch,
        "optimizer": optimizer,
        "scaler": state.scaler.state_dict(),
        "randomness": randomness,
        # Without an average the weights are in the weights' file.
        "weights": weights if is_averaged and not is_sharded else None,
        "parts": {"weights": is_averaged} if is_sharded else None,
    }
    copied_s = state.writer.written_at - started - waited
    saved_weights = weights if average is None else average
    state.writer.write(partial(_write, context, saved_weights, stored, parts, copied_s))


def _write(
    context: TrainContext,
    weights: dict[str, Tensor],
    stored: dict[str, Any],
    parts: dict[str, Tensor],
    copied_s: float,
) -> None:
    """Writes a checkpoint, in the writer's thread of the process of rank 0."""
    shard_writers, step = context.shard_writers, stored["step"]
    started = time.monotonic()
    try:
        context.io.folder.save(
            weights,
            stored,
            settings=context.settings,
            class_names=context.class_names,
            category_ids=context.category_ids,
            beside=None if shard_writers is None else partial(shard_writers.write_all, shards=parts),
        )
    except ResourceError as error:
        with suppress(ResourceError):  # a disk without space for a checkpoint may have some for a line
            logger.debug("checkpoint of step %d could not be written: %s", step, error)
        raise
    finally:
        if shard_writers is not None:
            shard_writers.finish()
    written_s = time.monotonic() - started
    logger.debug("checkpoint of step %d: %.2f s copied, %.2f s written", step, copied_s, written_s)


def wait_until_saved(context: TrainContext, state: TrainState) -> None:
    """Waits until the newest checkpoint is on disk; all processes must call it.

    Raises:
        ResourceError: it could not be written; earlier ones are unchanged.
    """
    context.io.heartbeat("checkpoint")
    state.writer.wait()
    process_group.barrier()


def load_newest(folder: RunFolder) -> Saved | None:
    """The newest intact checkpoint, None without one; the same in all processes.

    A newer one that is damaged is skipped with a warning and deleted, so that it never becomes the previous one.

    Raises:
        CheckpointError: none can be used.
    """
    damaged: list[str] = []

    def on_unreadable(text: str) -> None:
        damaged.append(text)
        logger.warning("%s", text)

    saved = folder.load(on_unreadable)
    step = None if saved is None else saved.state["step"]
    if step != process_group.from_main(step):
        raise CheckpointError(
            f"process {process_group.rank()} cannot read the checkpoint in {folder.checkpoints_dir} that the process "
            "of rank 0 can: all must see the same files"
        )
    if damaged and process_group.is_main():
        folder.go_back_to(folder.previous.name)  # a process that still reads finds the same checkpoint under both names
    return saved


def restore(context: TrainContext, state: TrainState, saved: Saved) -> None:
    """Continues from a checkpoint; all processes must call it."""
    stored = saved.state
    _restore_weights(context, state, saved)
    state.scaler.load_state_dict(stored["scaler"])
    progress = state.progress = Progress.from_stored(stored["position"])
    before = stored["world_size"], stored["micro_batch"]
    now = process_group.world_size(), context.batches.micro_batch
    if before == now:
        restore_random_states(stored["randomness"][process_group.rank()], context.device)
    else:
        # Different random numbers in each process, and others than at the start of the run.
        seed_all(context.settings.train.seed + 1_000 * progress.step + process_group.rank())
        logger.warning(
            "the run was trained with %d x %d images at once (processes x images of each) and continues with %d x %d: "
            "each image of the epoch is used once, but in another order, so the results are not exactly those of an "
            "uninterrupted run",
            *before,
            *now,
        )
    _restore_from_metrics(context, state)
    if before != now:
        progress.close_segment(*before)
    _update_length(context, state)


def _restore_weights(context: TrainContext, state: TrainState, saved: Saved) -> None:
    """Loads weights, their average and the optimizer's state."""
    stored, weights = saved.state, saved.weights.state
    parts = stored.get("parts")
    if parts is None or not parts["weights"]:
        load_full_weights(context.model, weights if stored["weights"] is None else stored["weights"])
    if state.ema is not None:
        state.ema.load(weights)
    if parts is None:
        load_full_optimizer_state(state.optimizer, stored["optimizer"])
    else:
        folder = saved.folder / SHARDED
        read_shards(folder, context.model, state.optimizer, stored["optimizer"], weights=parts["weights"])


def _restore_from_metrics(context: TrainContext, state: TrainState) -> None:
    """Takes from metrics.jsonl what was logged after the checkpoint's state was copied."""
    progress = state.progress
    for line in context.io.folder.metrics():
        if line["step"] > progress.step:
            continue
        if line["kind"] == "train":
            state.newest_line = line
        # Evaluations follow the checkpoint of their step: metrics.jsonl has more of them than the checkpoint.
        if line["kind"] == "eval" and line["step"] > progress.evaluated_step:
            progress.count_evaluation(line["step"], line["metrics"].get("AP", -1.0))
        if line["kind"] == "rollback":
            progress.best = max(progress.best, line["best"])
            if progress.reshuffled_from is None:  # the checkpoint was saved before the run went back to it
                progress.reshuffled_from = line["epoch"], line["batch"]


def _update_length(context: TrainContext, state: TrainState) -> None:
    """Ends a run that is measured in epochs with the last image of the last epoch.

    Epochs that were trained with another world size may have had a step more or less.
    """
    progress, settings, loader = state.progress, context.settings.train, context.loader
    accumulation = context.batches.accumulation
    left = loader.set_epoch(progress.epoch, progress.batch, progress.reshuffled_from_batch, progress.epoch_segments)
    if left == 0:
        progress.start_next_epoch()
        left = len(loader)
    if settings.max_steps is not None:
        return
    epochs, total = settings.epochs - progress.epoch, progress.step
    if epochs > 0:
        later = (epochs - 1) * steps_per_epoch(len(loader), accumulation)
        total += steps_per_epoch(left, accumulation) + later
    if total != state.total_steps:
        state.total_steps, state.schedule = total, Schedule(settings, total)


def host_model_state(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A copy of a model's state dict, or of one with the same names, in host memory; empty except on rank 0.

    All processes must call it.
    """
    writes = process_group.is_main()
    return {name: host_copy(value) for name, value in full_weights(model, state) if writes}


def host_copy(value: Any) -> Any:
    """A copy in host memory of a tensor, or of all tensors in dicts, lists and tuples.

    Copies from a GPU go to page-locked memory and are asynchronous: synchronize before reading them.
    """
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value.detach().clone()
        host = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        return host.copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        return {key: host_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(host_copy(item) for item in value)
    return value
