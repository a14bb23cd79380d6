"""The training loop: steps, checkpoints, evaluations, stopping, and continuing a run exactly.

A run that is stopped and continued gives the results of an uninterrupted one, bit for bit on a CPU: every source of
randomness is either a function of seed, epoch and image, or its state is part of the checkpoint of each process.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

from codetr_cli.data.batch import Batch
from codetr_cli.distributed import process_group
from codetr_cli.errors import StoppedError
from codetr_cli.runtime.rng import untouched_randomness
from codetr_cli.runtime.signals import NAMES
from codetr_cli.training.checkpointing import save, wait_until_saved
from codetr_cli.training.oom import apply_saved_splits, retry_with_less_memory
from codetr_cli.training.optim import set_learning_rate
from codetr_cli.training.reporter import StepProgress
from codetr_cli.training.rollback import nonfinite_limit, roll_back
from codetr_cli.training.state import MicroBatches, TrainContext, TrainState
from codetr_cli.training.step import has_diverged, read_micro_batch, train_step

logger = logging.getLogger(__name__)

SAVE_SECONDS = 600.0  # between checkpoints within an epoch, unless the settings count steps


def train(context: TrainContext, state: TrainState) -> None:
    """Trains to the end of the run, from its current progress.

    Raises:
        StoppedError: a signal came; the work is saved.
        DivergedError: too many steps in a row were not finite, also after going back to a checkpoint.
        ResourceError: out of memory, or no space left to save.
    """
    apply_saved_splits(context, state)
    with state.writer:
        evaluate_if_due(context, state)  # one that was interrupted is repeated
        while state.steps_left > 0 and not _has_stopped_improving(context, state):
            train_one_epoch(context, state)
            evaluate_if_due(context, state)
        wait_until_saved(context, state)
    if process_group.is_main():
        _finish(context, state)


def train_one_epoch(context: TrainContext, state: TrainState) -> None:
    """Trains from the current progress to the end of the epoch, or of the run, and saves a checkpoint there.

    After too many non-finite steps the run goes back to an earlier checkpoint instead.

    Raises:
        StoppedError: a signal came; a checkpoint of the newest step is saved.
        DivergedError: there is no checkpoint to go back to.
    """
    progress, epoch = state.progress, state.progress.epoch
    left = context.loader.set_epoch(epoch, progress.batch, progress.reshuffled_from_batch, progress.epoch_segments)
    batches: Iterator[Batch] = iter(context.loader)
    context.objective.train()
    state.metrics.restart()
    while left > 0 and state.steps_left > 0:
        count = min(context.batches.accumulation, left)
        set_learning_rate(state.optimizer, state.schedule.factor(progress.step, epoch))
        micro_batches = MicroBatches(partial(read_micro_batch, context, state, batches), count)
        grad_norm = retry_with_less_memory(train_step, context, state, micro_batches)
        left -= count
        progress.step += 1
        progress.batch += count
        _log_step(context, state, grad_norm)
        state.writer.check()
        if _must_roll_back(context, state):
            roll_back(context, state)
            apply_saved_splits(context, state)
            return
        if left == 0:
            progress.start_next_epoch()
        stopping, due = process_group.any_process(context.io.stop.number is not None, _is_save_due(context, state))
        if stopping or due or left == 0 or state.steps_left == 0:
            save(context, state)
        if stopping:
            wait_until_saved(context, state)
            raise _stopped(context, state)


def evaluate_if_due(context: TrainContext, state: TrainState) -> None:
    """Evaluates every `train.eval_every` epochs and at the end, once per step, and keeps the best checkpoint."""
    progress, every = state.progress, context.settings.train.eval_every
    due = state.steps_left == 0 or (progress.is_between_epochs and progress.epoch % every == 0)
    if context.evaluate is None or not due or progress.step in (0, progress.evaluated_step):
        return
    wait_until_saved(context, state)  # a stop during the evaluation loses nothing, and no write slows down its workers
    started = time.monotonic()
    context.io.heartbeat("evaluation", progress.step)
    averaged = nullcontext() if state.ema is None else state.ema.swapped_into(context.model)
    with untouched_randomness(), averaged:
        metrics = context.evaluate(progress.step)
    ap = process_group.from_main(metrics["AP"] if process_group.is_main() else None)
    progress.count_evaluation(progress.step, ap)
    if process_group.is_main():
        if progress.evals_without_improvement == 0:
            context.io.folder.mark_best()
            if context.best_report is not None:
                context.best_report.keep()
        _log_evaluation(context, state, metrics, time.monotonic() - started)
    process_group.barrier()


def _must_roll_back(context: TrainContext, state: TrainState) -> bool:
    """Whether too many steps in a row were not finite, or the last ones of the run and the network has diverged."""
    nonfinite = state.progress.nonfinite_steps
    if nonfinite >= nonfinite_limit(context, state):
        return True
    return nonfinite > 0 and state.steps_left <= 0 and has_diverged(context, state)


def _is_save_due(context: TrainContext, state: TrainState) -> bool:
    every = context.settings.train.checkpoint_every
    if state.progress.nonfinite_steps:
        return False  # the newest checkpoint stays one to go back to
    if every is not None:
        return state.progress.step % every == 0
    return process_group.is_main() and time.monotonic() - state.writer.written_at > SAVE_SECONDS


def _has_stopped_improving(context: TrainContext, state: TrainState) -> bool:
    """Whether as many evaluations as `train.early_stop_patience` have not improved the AP."""
    patience = context.settings.train.early_stop_patience
    return (
        patience is not None and context.evaluate is not None and state.progress.evals_without_improvement >= patience
    )


def _log_step(context: TrainContext, state: TrainState, grad_norm: float) -> None:
    """Writes a line to metrics.jsonl when one is due, and reports the step."""
    step, left = state.progress.step, state.steps_left
    due = step % context.settings.train.log_every == 0 or left == 0 or not state.newest_line
    if due and state.metrics.has_losses:
        state.newest_line = {
            "kind": "train",
            "step": step,
            "total_steps": state.total_steps,
            "epoch": state.progress.epoch,
            "lr": state.optimizer.param_groups[-1]["lr"],
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            **state.metrics.line(left),
        }
        if process_group.is_main():
            context.io.log(state.newest_line)
            advice = state.data_waits.advice(state.newest_line["data_wait"], context.settings)
            if advice is not None:
                logger.warning("%s", advice)
            if state.plots.is_due:
                state.plots.draw()
                state.metrics.restart()  # the window is empty, and drawing is not part of a step's time
    if state.newest_line:
        progress = StepProgress(step=step, total_steps=state.total_steps, line=state.newest_line)
        context.io.reporter.step_done(progress)


def _log_evaluation(context: TrainContext, state: TrainState, metrics: dict[str, float], seconds: float) -> None:
    progress = state.progress
    context.io.log(
        {
            "kind": "eval",
            "step": progress.step,
            "epoch": progress.epoch,
            "metrics": metrics,
            "best": progress.best,
            "seconds": seconds,
        }
    )
    shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("AP", "AP50", "AP75", "mask_AP") if name in metrics)
    text = "evaluation of step %d (epoch %d): %s, best AP %.4f (%.0f s)"
    logger.info(text, progress.step, progress.epoch, shown, progress.best, seconds)
    context.io.reporter.evaluated(metrics["AP"], progress.best)
    state.plots.draw()


def _finish(context: TrainContext, state: TrainState) -> None:
    """Records the end of the run; the end line comes last, since nothing continues after it."""
    progress = state.progress
    is_early = state.steps_left > 0
    if is_early:
        text = "finished early, at step %d of %d: no better AP than %.4f in %d evaluations"
        logger.info(text, progress.step, state.total_steps, progress.best, progress.evals_without_improvement)
    else:
        logger.debug("finished at step %d", progress.step)
    state.plots.draw()
    context.io.log({"kind": "end", "step": progress.step, "epoch": progress.epoch, "early": is_early})


def _stopped(context: TrainContext, state: TrainState) -> StoppedError:
    number = context.io.stop.number or 15  # the signal reached another process only
    step = state.progress.step
    logger.debug("stopped by %s after step %d", NAMES[number], step)
    return StoppedError(
        f"stopped by {NAMES[number]} after step {step} of {state.total_steps}, saved in {context.io.folder.path}: "
        "start the same command again to continue.",
        number,
    )
