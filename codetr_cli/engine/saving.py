"""Checkpoints of a running training: what goes into one, and how a run is put back where one left it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from codetr_cli.engine import distributed
from codetr_cli.engine.position import Position, count_evaluation
from codetr_cli.engine.randomness import random_states, restore_random_states
from codetr_cli.engine.report import Report
from codetr_cli.engine.runs import RunFolder, Saved
from codetr_cli.errors import CheckpointError

if TYPE_CHECKING:
    from codetr_cli.engine.trainer import Training


def save(training: Training) -> None:
    """Makes a checkpoint of the position; every process takes part.

    Raises:
        MachineError: no space; earlier checkpoints are as they were.
    """
    training.pulse("checkpoint")
    randomness = distributed.gather_objects(random_states(training.device))
    if distributed.is_main():
        raw = training.model.state_dict()
        state = {
            "step": training.position.step,
            "position": asdict(training.position),
            "world_size": distributed.world_size(),
            "micro_batch": training.micro_batch,
            "optimizer": training.optimizer.state_dict(),
            "scaler": training.scaler.state_dict(),
            "randomness": randomness,
            # Without an average the weights' file already holds them.
            "weights": None if training.ema is None else dict(raw),
        }
        training.run.save(
            dict(raw if training.ema is None else training.ema.state),
            state,
            settings=training.settings,
            class_names=training.class_names,
            category_ids=training.category_ids,
        )
        training.run.event(f"checkpoint of step {training.position.step}")
    distributed.barrier()
    training.saved_at = time.monotonic()


def load_newest(run: RunFolder, report: Report) -> Saved | None:
    """The newest checkpoint that is as it was written, None without one; every process takes the same.

    A newer one that is damaged is passed over with a warning.

    Args:
        run: whose checkpoints.
        report: whom to warn.

    Raises:
        CheckpointError: none can be used.
    """

    def warn(text: str) -> None:
        if distributed.is_main():
            run.event(text)
            report.warn(text)

    saved = run.load(warn)
    step = None if saved is None else saved.state["step"]
    if step != distributed.from_main(step):
        raise CheckpointError(
            f"process {distributed.rank()} cannot read the checkpoint in {run.checkpoints_dir} that the process of "
            "rank 0 can: all must see the same files"
        )
    return saved


def restore(training: Training, saved: Saved) -> None:
    """Puts the run where a checkpoint left it; every process does so for itself."""
    state, weights = saved.state, saved.weights.state
    training.model.load_state_dict(weights if state["weights"] is None else state["weights"])
    if training.ema is not None:
        training.ema.load(weights)
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state["scaler"])
    position = training.position = Position(**state["position"])
    before, now = (state["world_size"], state["micro_batch"]), (distributed.world_size(), training.micro_batch)
    if before == now:
        restore_random_states(state["randomness"][distributed.rank()], training.device)
    else:
        position.batch = position.batch * math.prod(before) // math.prod(now)
        if position.batch >= len(training.loader):
            position.epoch, position.batch = position.epoch + 1, 0
        training.report.warn(
            f"the run was trained by {before[0]} processes with {before[1]} images at once and goes on with {now[0]} "
            f"and {now[1]}: its numbers will not be exactly those of an uninterrupted run"
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
            position.other_order = line["epoch"], line["batch"]
            position.best = max(position.best, line["best"])
