"""Non-finite steps of a training: skip them, go back to a checkpoint once, then stop with a reproducer.

A step with non-finite losses or gradients is skipped by all processes: weights, optimizer and EMA stay unchanged,
learning rate and data advance. After `train.max_nonfinite_steps` of them in a row the run returns to its newest
checkpoint that was not saved during such steps. From there on the images are in another order: the rest of the epoch is
reshuffled, and so are all later epochs. When as many steps in a row fail a second time, the run ends.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from codetr_cli.distributed import process_group
from codetr_cli.errors import DivergedError, ResourceError
from codetr_cli.runs.folder import STATE, read_state
from codetr_cli.runtime.disk_errors import writing
from codetr_cli.training.checkpointing import load_newest, restore, wait_until_saved
from codetr_cli.training.nonfinite import StepLosses, find_nonfinite
from codetr_cli.training.repro import save_reproducer
from codetr_cli.training.state import TrainContext, TrainState

logger = logging.getLogger(__name__)


def nonfinite_limit(context: TrainContext, state: TrainState) -> int:
    """Consecutive non-finite steps that are too many; a short run must not end without a finite one."""
    return min(context.settings.train.max_nonfinite_steps, state.total_steps)


def skip_step(context: TrainContext, state: TrainState, step_losses: StepLosses) -> None:
    """Records a skipped step; all processes must call it, before the step is counted."""
    progress = state.progress
    nonfinite = state.nonfinite = find_nonfinite(context.model, step_losses)
    progress.nonfinite_steps += 1
    if state.scaler.is_enabled():
        state.scaler.update(state.scaler.get_scale())  # unchanged, and ready for the next step
    state.metrics.step_skipped()
    if not process_group.is_main():
        return
    context.io.log(
        {
            "kind": "skip",
            "step": progress.step + 1,
            "epoch": progress.epoch,
            "in_a_row": progress.nonfinite_steps,
            **nonfinite.as_dict(),
        }
    )
    text = "step %d skipped (%d in a row, %d allowed): %s"
    logger.warning(text, progress.step + 1, progress.nonfinite_steps, nonfinite_limit(context, state), nonfinite)


def roll_back(context: TrainContext, state: TrainState) -> None:
    """Goes back to the last good checkpoint the first time, and ends the run the second time.

    Raises:
        DivergedError: no checkpoint, or the run has gone back before.
    """
    wait_until_saved(context, state)
    folder = context.io.folder
    name = folder.last_good() if state.progress.reshuffled_from is None and process_group.is_main() else None
    name = process_group.from_main(name)
    if name is None:
        raise _give_up(context, state)
    if process_group.is_main():
        folder.go_back_to(name)
        _log_rollback(context, state)
    process_group.barrier()
    saved = load_newest(folder)
    if saved is None:
        raise _give_up(context, state)
    restore(context, state, saved)


def _log_rollback(context: TrainContext, state: TrainState) -> None:
    """Records the rollback in metrics.jsonl; `restore` reads there that images are reshuffled."""
    progress, folder = state.progress, context.io.folder
    before = read_state(folder.last / STATE)["position"]
    skipped = [line for line in folder.lines(containing="skip") if line["kind"] == "skip"][-progress.nonfinite_steps :]
    folder.rewind(before["step"])
    context.io.log(
        {
            "kind": "rollback",
            "step": before["step"],
            "epoch": before["epoch"],
            "batch": before["batch"],
            "best": progress.best,
            "from_step": progress.step,
            "skipped": skipped,
        }
    )
    text = (
        "%d steps in a row were not finite: going back from step %d to the checkpoint of step %d; the remaining images "
        "of its epoch and all later epochs are reshuffled"
    )
    logger.warning(text, progress.nonfinite_steps, progress.step, before["step"])


def _give_up(context: TrainContext, state: TrainState) -> DivergedError:
    progress, run = state.progress, context.io.folder
    folder = run.path / "diverged"
    before = (
        "there is no good checkpoint to go back to"
        if progress.reshuffled_from is None
        else "the run had gone back to a checkpoint before"
    )
    text = (
        f"training diverged: {progress.nonfinite_steps} steps in a row were not finite and were skipped, the last of "
        f"them step {progress.step} (epoch {progress.epoch + 1}): {state.nonfinite}; {before}. The checkpoints in "
        f"{run.checkpoints_dir} are unchanged. "
    )
    try:
        with writing(run.path):
            save_reproducer(folder, context, state)
        text += f"`python -m codetr_cli.training.repro {folder}` computes that step again. "
    except ResourceError as error:
        text += f"The step could not be saved for a replay: {error} "
    text += "Check these images and their annotations, lower train.lr, or try --set train.precision=fp32."
    if process_group.is_main():
        with suppress(ResourceError):  # a full disk must not hide this error
            context.io.log({"kind": "diverged", "step": progress.step, "epoch": progress.epoch})
            logger.debug("%s", text)
    return DivergedError(text)
