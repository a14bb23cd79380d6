"""Checkpoints of a running training: their content, and how a run continues from one."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import full_optimizer_state, full_weights, load_full_optimizer_state, load_full_weights
from codetr_cli.distributed.sharded_state import Shards, host_shards, optimizer_skeleton, read_shards
from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.runs.folder import SHARDED, RunFolder, Saved
from codetr_cli.runs.lineage import lineage_of, recorded_lineage
from codetr_cli.runs.metrics_log import has_numbers, is_evaluation
from codetr_cli.runtime.memory import is_out_of_memory
from codetr_cli.runtime.rng import random_states, restore_random_states, seed_all
from codetr_cli.training.host_copies import HostCopies
from codetr_cli.training.optim import Schedule, checked_optimizer_state
from codetr_cli.training.plan import steps_per_epoch
from codetr_cli.training.progress import Progress
from codetr_cli.training.state import TrainContext, TrainState
from codetr_cli.weights.load_state import check_shapes
from codetr_cli.weights.values import check_weights

logger = logging.getLogger(__name__)

SHOWN_NUMBERS = (
    "epoch",
    "loss",
    "images_per_s",
    "eta_s",
)  # of the newest line of training, while there is no newer one
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
    copy = HostCopies(context.device)
    parts = host_shards(context.model, state.optimizer, copy, weights=is_averaged) if is_sharded else {}
    weights = {} if is_sharded and is_averaged else _copied_weights(context.model, copy)
    if is_sharded:
        optimizer = copy(optimizer_skeleton(state.optimizer))
    else:
        optimizer = full_optimizer_state(state.optimizer, copy if process_group.is_main() else lambda _: None)
    average = None if state.ema is None else _copied_weights(context.model, copy, state.ema.state)
    copy.finish()
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
    parts: Shards,
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
            lineage=context.lineage,
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


def find_lineage(weights: str | None, saved: Saved | None) -> dict[str, str]:
    """What checkpoints record of the start of their training, see `runs.lineage`.

    Args:
        weights: the checkpoint to fine-tune; None: a training from scratch.
        saved: that the training continues from: it has the record of the start, whose file may be another one now.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if saved is not None:
        return recorded_lineage(saved.weights.extra)
    return {} if weights is None else lineage_of(Path(weights))


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
    if damaged and saved is not None and process_group.is_main():
        folder.go_back_to(saved.folder.name)  # a process that still reads finds the same checkpoint under both names
    return saved


def restore(context: TrainContext, state: TrainState, saved: Saved) -> None:
    """Continues from a checkpoint; all processes must call it.

    Raises:
        CheckpointError: it is not one of this training.
    """
    # What a network or an optimizer refuses is a RuntimeError, and so is a lost connection or too little memory.
    unfit = (RuntimeError,) if not process_group.is_connected() else ()
    try:
        _restore(context, state, saved)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, *unfit) as error:
        if is_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"the checkpoint in {saved.folder} does not fit this training: {type(error).__name__}: {first_line}. It is "
            "damaged or of another program: start a new run with --restart."
        ) from error


def _restore(context: TrainContext, state: TrainState, saved: Saved) -> None:
    stored = saved.state
    _restore_weights(context, state, saved)
    state.scaler.load_state_dict(stored["scaler"])
    progress = state.progress = Progress.from_stored(stored["position"])
    if progress.step != stored["step"]:
        raise ValueError(f"it is of step {stored['step']} and of step {progress.step}")
    before = stored["world_size"], stored["micro_batch"]
    if not all(isinstance(number, int) and number > 0 for number in before):
        raise ValueError("world_size or micro_batch is not a number")
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
    """Loads weights, their average and the optimizer's state.

    Raises:
        CheckpointError: the entries are not those of the model.
    """
    stored, weights = saved.state, saved.weights.state
    target, parts = context.model.state_dict(), stored.get("parts")
    raw = weights if stored["weights"] is None else stored["weights"]
    # Scalars have a dimension where they are sharded, and none in a checkpoint.
    scalars = {name for name, parameter in context.model.named_parameters() if process_group.is_scalar(parameter)}
    shapes = {name: () if name in scalars else tuple(value.shape) for name, value in target.items()}
    for entries in (weights, raw):
        source = f"the checkpoint in {saved.folder}"
        check_shapes(entries, shapes, source=source)
        check_weights(entries, source=source, allow_nonfinite=True, expected=target)
    if parts is None or not parts["weights"]:
        load_full_weights(context.model, raw)
    if state.ema is not None:
        state.ema.load(weights)
    moments = checked_optimizer_state(state.optimizer, stored["optimizer"], sharded=parts is not None)
    if parts is None:
        load_full_optimizer_state(state.optimizer, moments)
    else:
        read_shards(saved.folder / SHARDED, context.model, state.optimizer, moments, weights=parts["weights"])


def _restore_from_metrics(context: TrainContext, state: TrainState) -> None:
    """Takes from metrics.jsonl what was logged after the checkpoint's state was copied."""
    progress = state.progress
    for line in context.io.folder.lines():
        if line["step"] > progress.step:
            continue
        if line["kind"] == "train" and has_numbers(line, *SHOWN_NUMBERS):
            state.newest_line = line
        # Evaluations follow the checkpoint of their step: metrics.jsonl has more of them than the checkpoint.
        if is_evaluation(line) and line["step"] > progress.evaluated_step:
            progress.count_evaluation(line["step"], line["metrics"]["AP"])
        if line["kind"] == "rollback" and has_numbers(line, "best", "epoch", "batch"):
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
    if left < 0:
        raise CheckpointError(f"the checkpoint has used {-left} batches more than the epoch has")
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


def _copied_weights(model: nn.Module, copy: HostCopies, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A copy of a model's state dict, or of one with the same names, in host memory; empty except on rank 0.

    All processes must call it.
    """
    writes = process_group.is_main()
    return {name: copy(value) for name, value in full_weights(model, state) if writes}
