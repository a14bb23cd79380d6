"""What becomes of a training whose steps go wrong: skip them, go back to a checkpoint once, then stop with evidence.

A step without finite losses and gradients is skipped by all processes alike: weights, optimizer and EMA stay as they
are, while learning rate and data go on. After `train.max_nonfinite_steps` of them in a row the run returns to its last
checkpoint that was not made amid such steps. From there on images come in another order: the rest of the epoch is
reshuffled, and so are all later epochs. When as many steps in a row fail a second time, the run ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import whole_weights
from codetr_cli.errors import DivergedError, ResourceError
from codetr_cli.runs.folder import STATE, Saved, read_state
from codetr_cli.runtime.disk_errors import writing
from codetr_cli.training.checkpointing import load_newest, wait_until_saved
from codetr_cli.training.nonfinite import Seen, find_bad_numbers
from codetr_cli.training.repro import save_reproducer

if TYPE_CHECKING:
    from codetr_cli.training.loop import Training


def skip_step(training: Training, seen: Seen) -> None:
    """Records a step that is not taken; every process must call it, before the step is counted.

    Args:
        training: with the gradients of the step.
        seen: what this process computed in it.
    """
    position = training.position
    bad = training.bad = find_bad_numbers(training.model, seen)
    position.bad_steps += 1
    if training.scaler.is_enabled():
        training.scaler.update(training.scaler.get_scale())  # as it was, and ready for the next step
    training.meter.step_skipped()
    if not process_group.is_main():
        return
    training.log(
        {
            "kind": "skip",
            "step": position.step + 1,
            "epoch": position.epoch,
            "in_a_row": position.bad_steps,
            **bad.as_dict(),
        }
    )
    text = f"step {position.step + 1} skipped ({position.bad_steps} in a row, {training.bad_limit} allowed): {bad}"
    training.run.event(text)
    training.report.warn(text)


def recover(training: Training, restore: Callable[[Training, Saved], None]) -> None:
    """Goes back to the last good checkpoint the first time, and ends the run the second time.

    Args:
        training: after as many bad steps as the settings allow.
        restore: puts the run where a checkpoint left it, and on another order of images.

    Raises:
        DivergedError: there is nothing left to try.
    """
    wait_until_saved(training)
    name = training.run.last_good() if training.position.other_order is None and process_group.is_main() else None
    name = process_group.from_main(name)
    if name is None:
        raise _give_up(training)
    if process_group.is_main():
        training.run.go_back_to(name)
        _note_return(training)
    process_group.barrier()
    saved = load_newest(training.run, training.report)
    if saved is None:
        raise _give_up(training)
    restore(training, saved)


def _note_return(training: Training) -> None:
    """Writes down that the run goes back; `restore` reads there that images come in another order."""
    position = training.position
    before = read_state(training.run.last / STATE)["position"]
    skipped = [line for line in training.run.metrics() if line["kind"] == "skip"][-position.bad_steps :]
    training.run.rewind(before["step"])
    training.log(
        {
            "kind": "rollback",
            "step": before["step"],
            "epoch": before["epoch"],
            "batch": before["batch"],
            "best": position.best,
            "from_step": position.step,
            "skipped": skipped,
        }
    )
    text = (
        f"{position.bad_steps} steps in a row went wrong: going back from step {position.step} to the checkpoint of "
        f"step {before['step']}; the images left in its epoch and all later epochs come in another order"
    )
    training.run.event(text)
    training.report.warn(text)


def _give_up(training: Training) -> DivergedError:
    position, run = training.position, training.run
    folder = run.path / "diverged"
    before = (
        "there is no good checkpoint to go back to"
        if position.other_order is None
        else "the run had gone back to a checkpoint before"
    )
    text = (
        f"training diverged: {position.bad_steps} steps in a row went wrong and were left out, the last of them step "
        f"{position.step} (epoch {position.epoch + 1}): {training.bad}; {before}. The checkpoints in "
        f"{run.checkpoints_dir} are as they were. "
    )
    try:
        with writing(run.path):
            _save_reproducer(training, folder)
        text += f"`codetr runs {run.path} --replay` computes that step again from {folder}. "
    except ResourceError as error:
        text += f"The step could not be kept to be computed again: {error} "
    text += "Look at these images and their annotations, lower train.lr, or try --set train.precision=fp32."
    if process_group.is_main():
        with suppress(ResourceError):  # a disk that takes no line does not change the verdict
            training.log({"kind": "diverged", "step": position.step, "epoch": position.epoch})
            run.event(text)
    return DivergedError(text)


def _save_reproducer(training: Training, folder: Path) -> None:
    position, bad = training.position, training.bad
    save_reproducer(
        folder,
        dict(whole_weights(training.model)),
        training.taken,
        {
            "step": position.step,
            "epoch": position.epoch,
            "batch": position.batch,
            "device": str(training.device),
            "scale": training.scaler.get_scale(),
            "checkpoints": str(training.run.checkpoints_dir),
            **(bad.as_dict() if bad is not None else {}),
        },
        settings=training.settings,
        class_names=training.class_names,
        category_ids=training.category_ids,
    )
