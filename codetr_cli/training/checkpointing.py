"""Checkpoints of a running training: what goes into one, and how a run is put back where one left it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import load_whole_optimizer, load_whole_weights, whole_optimizer, whole_weights
from codetr_cli.distributed.sharded_state import host_parts, optimizer_frame, read_parts
from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.runs.folder import SHARDED, RunFolder, Saved
from codetr_cli.runtime.rng import random_states, restore_random_states, seed_all
from codetr_cli.training.optim import build_schedule
from codetr_cli.training.plan import steps_per_epoch
from codetr_cli.training.progress import Position, count_evaluation, other_order_from
from codetr_cli.training.reporter import Report

if TYPE_CHECKING:
    from codetr_cli.training.loop import Training

LONG_WAIT_S = 1.0  # for an earlier checkpoint; longer waits are worth a line in events.log


class Saver:
    """Writes checkpoints in a thread of its own while training goes on, never two at once.

    A context manager: whatever ends the training, a checkpoint that is being written is written first.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as own:
            if error is None:
                raise
            error.add_note(str(own))

    def write(self, work: Callable[[], None]) -> None:
        """Starts writing, after what is being written."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint-writer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what a write that has ended met; waits for nothing.

        Raises:
            ResourceError: no space; earlier checkpoints are as they were.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written any more.

        Raises:
            ResourceError: no space; earlier checkpoints are as they were.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised where the training learns of it
            self._error = error


def save(training: Training) -> None:
    """Copies the state into host memory and lets a thread write it; every process takes part.

    Training waits for the copy only, and for an earlier checkpoint that is still being written. Whoever needs the
    checkpoint on disk calls `wait_until_saved`.

    Raises:
        ResourceError: an earlier checkpoint could not be written; those before it are as they were.
    """
    training.pulse("checkpoint")
    started = time.monotonic()
    training.saver.wait()
    waited = time.monotonic() - started
    randomness = process_group.gather_objects(random_states(training.device))
    sharded, averaged = training.writers is not None, training.ema is not None
    parts = host_parts(training.model, training.optimizer, host_copy, weights=averaged) if sharded else {}
    weights = {} if sharded and averaged else host_model_state(training.model)
    optimizer = host_copy(optimizer_frame(training.optimizer)) if sharded else host_optimizer_state(training.optimizer)
    average = None if training.ema is None else host_model_state(training.model, training.ema.state)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    training.saved_at = time.monotonic()
    if not process_group.is_main():
        if training.writers is not None:
            training.saver.write(partial(training.writers.follow, parts))
        return
    step, run = training.position.step, training.run
    if waited > LONG_WAIT_S:
        run.event(f"checkpoint of step {step}: waited {waited:.1f} s for the one before to be written")
    state = {
        "step": step,
        "position": asdict(training.position),
        "world_size": process_group.world_size(),
        "micro_batch": training.micro_batch,
        "optimizer": optimizer,
        "scaler": training.scaler.state_dict(),
        "randomness": randomness,
        # Without an average the weights' file already holds them.
        "weights": weights if averaged and not sharded else None,
        "parts": {"weights": averaged} if sharded else None,
    }
    copied = training.saved_at - started - waited
    description: dict[str, Any] = {
        "settings": training.settings,
        "class_names": training.class_names,
        "category_ids": training.category_ids,
        "beside": None if training.writers is None else partial(training.writers.lead, parts=parts),
    }

    def write() -> None:
        begun = time.monotonic()
        try:
            run.save(weights if average is None else average, state, **description)
        except ResourceError as error:
            with suppress(ResourceError):  # a disk without space for a checkpoint may have some for a line
                run.event(f"checkpoint of step {step} could not be written: {error}")
            raise
        finally:
            if training.writers is not None:
                training.writers.dismiss()
        run.event(f"checkpoint of step {step}: {copied:.2f} s copied, {time.monotonic() - begun:.2f} s written")

    training.saver.write(write)


def wait_until_saved(training: Training) -> None:
    """Returns when the newest checkpoint is on disk; every process must call it.

    Raises:
        ResourceError: it could not be written; earlier ones are as they were.
    """
    training.pulse("checkpoint")
    training.saver.wait()
    process_group.barrier()


def host_model_state(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A copy of a model's state dict in host memory; empty in a process that does not write. Every process must ask.

    Args:
        model: sharded or not.
        state: one with the same names, e.g. an average; None: the model's own.
    """
    writes = process_group.is_main()
    return {name: host_copy(value) for name, value in whole_weights(model, state) if writes}


def host_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of an optimizer's state dict in host memory; without tensors in a process that does not write.

    Every process must ask.
    """
    return whole_optimizer(optimizer, host_copy if process_group.is_main() else lambda _: None)


def host_copy(value: Any) -> Any:
    """A copy in host memory of a tensor, or of all tensors in dicts, lists and tuples.

    Copies from a GPU go to page-locked memory and may still be under way: synchronise before they are read.
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


def load_newest(run: RunFolder, report: Report) -> Saved | None:
    """The newest checkpoint that is as it was written, None without one; every process takes the same.

    A newer one that is damaged is passed over with a warning and taken away, so that it never becomes the previous one.

    Args:
        run: whose checkpoints.
        report: whom to warn.

    Raises:
        CheckpointError: none can be used.
    """
    damaged: list[str] = []

    def warn(text: str) -> None:
        damaged.append(text)
        if process_group.is_main():
            run.event(text)
            report.warn(text)

    saved = run.load(warn)
    step = None if saved is None else saved.state["step"]
    if step != process_group.from_main(step):
        raise CheckpointError(
            f"process {process_group.rank()} cannot read the checkpoint in {run.checkpoints_dir} that the process of "
            "rank 0 can: all must see the same files"
        )
    if damaged and process_group.is_main():
        run.go_back_to(run.previous.name)  # whoever still reads here finds the same checkpoint under both names
    return saved


def restore(training: Training, saved: Saved) -> None:
    """Puts the run where a checkpoint left it; every process does so for itself."""
    state, weights = saved.state, saved.weights.state
    parts = state.get("parts")
    if parts is None or not parts["weights"]:
        load_whole_weights(training.model, weights if state["weights"] is None else state["weights"])
    if training.ema is not None:
        training.ema.load(weights)
    if parts is None:
        load_whole_optimizer(training.optimizer, state["optimizer"])
    else:
        folder = saved.folder / SHARDED
        read_parts(folder, training.model, training.optimizer, state["optimizer"], weights=parts["weights"])
    training.scaler.load_state_dict(state["scaler"])
    position = training.position = Position(**state["position"])
    before, now = (state["world_size"], state["micro_batch"]), (process_group.world_size(), training.micro_batch)
    if before == now:
        restore_random_states(state["randomness"][process_group.rank()], training.device)
    else:
        # Random numbers of its own for each process, and not those that the run began with once more.
        seed_all(training.settings.train.seed + 1_000 * position.step + process_group.rank())
        training.report.warn(
            f"the run was trained with {before[0]} x {before[1]} images at once (processes x images of each) and goes "
            f"on with {now[0]} x {now[1]}: still each image of the epoch is used, in another order, so its numbers "
            "will not be exactly those of an uninterrupted run"
        )
    for line in training.run.metrics():
        if line["step"] > position.step:
            continue
        if line["kind"] == "train":
            training.newest_line = line
        # Evaluations come after the checkpoint of their step: the metrics know of more of them than the checkpoint.
        if line["kind"] == "eval" and line["step"] > position.evaluated_step:
            count_evaluation(position, line["step"], line["metrics"].get("AP", -1.0))
        if line["kind"] == "rollback":
            position.best = max(position.best, line["best"])
            if position.other_order is None:  # the checkpoint was made before the run went back to it
                position.other_order = line["epoch"], line["batch"]
    if before != now:
        position.change_width(*before)
    _settle_length(training)


def _settle_length(training: Training) -> None:
    """Lets a run that is measured in epochs end with the last image of the last one.

    Epochs that were trained by another number of processes may have had a step more or less.
    """
    position, settings = training.position, training.settings.train
    left = training.loader.set_epoch(position.epoch, position.batch, other_order_from(position), position.segments)
    if left == 0:
        position.begin_next_epoch()
        left = len(training.loader)
    if settings.max_steps is not None:
        return
    epochs, total = settings.epochs - position.epoch, position.step
    if epochs > 0:
        later = (epochs - 1) * steps_per_epoch(len(training.loader), training.accumulation)
        total += steps_per_epoch(left, training.accumulation) + later
    if total != training.total_steps:
        training.total_steps, training.schedule = total, build_schedule(settings, total)
