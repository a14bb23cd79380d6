"""The training loop: steps, checkpoints, evaluations, stopping, and continuing exactly where a run was left.

A run that is stopped and continued computes what an uninterrupted one does, to the last bit on a CPU: every source of
randomness is either a function of seed, epoch and image, or its state is part of the checkpoint of each process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch, normalize, pad
from codetr_cli.data.loading.loader import Segment
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import gathered, is_sharded
from codetr_cli.distributed.sharded_state import PartWriters
from codetr_cli.distributed.watchdog import Pulse
from codetr_cli.errors import DivergedError, StoppedError
from codetr_cli.runs.folder import RunFolder
from codetr_cli.runtime.memory import is_out_of_memory
from codetr_cli.runtime.rng import random_states, restore_random_states, untouched_randomness
from codetr_cli.runtime.signals import NAMES, StopRequest
from codetr_cli.training.checkpointing import Saver, restore, save, wait_until_saved
from codetr_cli.training.ema import ModelEma
from codetr_cli.training.loggers import Loggers
from codetr_cli.training.metrics import Meter, WaitWatch
from codetr_cli.training.nonfinite import BadNumbers, Seen, has_finite_outputs, is_bad_step, on_images
from codetr_cli.training.oom import adopt, shrink, split
from codetr_cli.training.optim import Schedule, clip_gradients, set_learning_rate
from codetr_cli.training.plots import draw_plots
from codetr_cli.training.progress import Position, count_evaluation, other_order_from
from codetr_cli.training.reporter import Report
from codetr_cli.training.repro import Taken
from codetr_cli.training.rollback import recover, skip_step

SAVE_SECONDS = 600.0  # between checkpoints within an epoch, unless the settings count steps
PLOT_SECONDS = 60.0  # between plots drawn within an epoch, and longer where drawing takes more than 1 / PLOT_SHARE
PLOT_SHARE = 50.0


class Loader(Protocol):
    """Micro batches for this process, one epoch at a time."""

    def __len__(self) -> int:
        """Micro batches of a whole epoch."""

    def __iter__(self) -> Iterator[Batch]: ...

    def set_epoch(
        self,
        epoch: int,
        start_batch: int = 0,
        reshuffled_from: int | None = None,
        segments: Sequence[Segment] = (),
    ) -> int:
        """Chooses what the next iteration yields, and counts it; see `codetr_cli.data.loading.loader.TrainLoader`."""


@dataclass(kw_only=True)
class Training:
    """Everything a run works with, built and on its device.

    Attributes:
        settings: of the run; model.num_classes is that of the data.
        class_names: by label, for the checkpoints.
        category_ids: by label, for the checkpoints.
        objective: images, padding mask and targets in, losses by name out; wrapped for several processes.
        model: the detector inside the objective, as it is saved.
        optimizer: over the model's parameters.
        schedule: of the learning rate.
        scaler: of fp16 gradients; switched off for other arithmetic.
        ema: average of the weights, None without.
        dtype: of autocast, None for float32.
        device: of this process.
        loader: of this process.
        micro_batch: images per process and forward pass.
        accumulation: micro batches per process and step.
        total_steps: optimizer steps of the whole run.
        run: the folder; only the process of rank 0 writes there.
        evaluate: AP and other numbers of the model as it is, in every process; None never evaluates.
        meter: collects what is logged.
        stop: whether a signal asked to stop.
        report: whom to tell.
        position: how far the run is.
        newest_line: of training in metrics.jsonl.
        loggers: who else is told what is logged; only the process of rank 0 has any.
        saver: writes the checkpoints.
        saved_at: monotonic time of the newest checkpoint.
        draw_at: monotonic time when the plots are due again.
        taken: micro batches of the newest step, for the reproducer of one that went wrong.
        bad: what was not finite in the newest step that was left out.
        pulse: told what is being done, for the watchdog.
        waits: notices that data comes too slowly.
        writers: all processes as writers of the checkpoints of a sharded training; None for any other.
    """

    settings: Settings
    class_names: list[str]
    category_ids: list[int]
    objective: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: ModelEma | None
    dtype: torch.dtype | None
    device: torch.device
    loader: Loader
    micro_batch: int
    accumulation: int
    total_steps: int
    run: RunFolder
    evaluate: Callable[[], dict[str, float]] | None
    meter: Meter
    stop: StopRequest
    report: Report
    position: Position = field(default_factory=Position)
    newest_line: dict[str, Any] = field(default_factory=dict)
    loggers: Loggers = field(default_factory=Loggers)
    saver: Saver = field(default_factory=Saver)
    saved_at: float = field(default_factory=time.monotonic)
    draw_at: float = field(default_factory=lambda: time.monotonic() + PLOT_SECONDS)
    taken: Taken = field(default_factory=list)
    bad: BadNumbers | None = None
    pulse: Pulse = field(default_factory=Pulse)
    waits: WaitWatch = field(default_factory=WaitWatch)
    writers: PartWriters | None = None

    def log(self, line: Mapping[str, Any]) -> None:
        """Writes a line of metrics.jsonl and tells the loggers; for the process of rank 0."""
        self.run.log(line)
        self.loggers.log(line)

    @property
    def bad_limit(self) -> int:
        """How many steps in a row may go wrong; a short run must not end without a good one."""
        return min(self.settings.train.max_nonfinite_steps, self.total_steps)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the newest evaluations brought no better AP for as long as the settings allow."""
        patience = self.settings.train.early_stop_patience
        return patience is not None and self.evaluate is not None and self.position.fruitless >= patience


def train(training: Training) -> None:
    """Trains to the end of the run, from wherever it is.

    Raises:
        StoppedError: a signal came; the work is saved.
        DivergedError: too many steps in a row had no finite loss or gradient, also after going back to a checkpoint.
        ResourceError: out of memory, or no space left to save.
    """
    adopt(training)
    with training.saver:
        _evaluate_if_due(training)  # one that a kill cut short is made up for
        while training.position.step < training.total_steps and not training.is_out_of_patience:
            train_one_epoch(training)
            _evaluate_if_due(training)
        wait_until_saved(training)
    if process_group.is_main():
        _finish(training)


def train_one_epoch(training: Training) -> None:
    """Trains from the position in an epoch to its end, or to the end of the run, and saves a checkpoint there.

    When too many steps go wrong, the run is put back to an earlier position instead.

    Raises:
        StoppedError: a signal came; a checkpoint of the newest step is saved.
        DivergedError: there is nothing left to try.
    """
    position, epoch = training.position, training.position.epoch
    left = training.loader.set_epoch(epoch, position.batch, other_order_from(position), position.segments)
    batches = iter(training.loader)
    training.objective.train()
    training.meter.restart()
    while left > 0 and position.step < training.total_steps:
        size = min(training.accumulation, left)
        set_learning_rate(training.optimizer, training.schedule.factor(position.step, epoch))
        norm = _step(training, batches, size)
        left -= size
        position.step += 1
        position.batch += size
        _report_step(training, norm)
        training.saver.check()
        if position.bad_steps >= training.bad_limit or _ends_badly(training):
            recover(training, restore)
            adopt(training)
            return
        if left == 0:
            position.begin_next_epoch()
        stopping, due = process_group.any_process(training.stop.number is not None, _is_save_due(training))
        if stopping or due or left == 0 or position.step == training.total_steps:
            save(training)
        if stopping:
            wait_until_saved(training)
            raise _stopped(training)


def _step(training: Training, batches: Iterator[Batch], size: int) -> float:
    """One optimizer step over `size` micro batches; one with numbers that are not finite changes no weight.

    Returns:
        the norm of the gradients before clipping.
    """
    seen = _gradients(training, batches, size)
    training.pulse("optimizer")
    training.scaler.unscale_(training.optimizer)
    parameters = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
    norm = clip_gradients(parameters, training.settings.train.clip_norm)
    finite = torch.stack([value for losses, _ in seen for value in losses.values()]).isfinite().all()
    finite_value, norm_value = torch.stack([finite.to(norm.dtype), norm]).tolist()  # the one wait for the device
    bad_losses, bad_gradients = process_group.any_process(finite_value == 0, not math.isfinite(norm_value))
    if is_bad_step(training.scaler, finite_losses=not bad_losses, finite_gradients=not bad_gradients):
        skip_step(training, seen)
        return float(norm_value)
    if not bad_gradients:
        training.position.bad_steps = 0
    training.scaler.step(training.optimizer)  # leaves out fp16 gradients that overflow, and lowers its factor
    training.scaler.update()
    if training.ema is not None:
        training.ema.update(training.model, training.position.step)
    training.meter.step_done()
    return float(norm_value)


def _ends_badly(training: Training) -> bool:
    """Whether the run has come to its end with a network that computes nothing finite."""
    position = training.position
    if not position.bad_steps or position.step < training.total_steps:
        return False
    data, batch = training.settings.data, training.taken[-1][0].to(training.device)
    images = normalize(batch.images, batch.padding_mask, data.mean, data.std)
    with gathered(training.objective):
        finite = has_finite_outputs(training.model, images, batch.padding_mask)
    return process_group.any_process(not finite)[0]


def _gradients(training: Training, batches: Iterator[Batch], size: int) -> Seen:
    """Forward and backward passes of `size` micro batches; in smaller parts, from the start, when memory runs out."""
    drawn: list[Batch] = []
    while True:
        training.optimizer.zero_grad(set_to_none=True)
        training.taken.clear()
        seen: Seen = []
        for index in range(size):
            if index == len(drawn):
                training.pulse("data", training.position.step + 1)
                with training.meter.waiting(), untouched_randomness():
                    batch = next(batches)
                if training.settings.train.global_batch_losses:
                    batch = pad(batch, *process_group.reduce_max(batch.images.shape[2:]))
                drawn.append(batch)
            try:
                losses = _forward_backward(training, drawn[index], size, last=index == size - 1)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                short_of_memory = drawn[index]
                break
            seen.append((losses, [int(target["image_id"]) for target in drawn[index].targets]))
        else:
            for losses, image_ids in seen:
                training.meter.add(losses, len(image_ids))
            return seen
        # Only here, where the error holds on to nothing any more, its memory can be had again.
        training.optimizer.zero_grad(set_to_none=True)
        shrink(training, short_of_memory)
        restore_random_states(training.taken[0][1], training.device)


def _forward_backward(training: Training, batch: Batch, size: int, *, last: bool) -> dict[str, Tensor]:
    """Adds the gradients of one micro batch, which counts 1 / size; processes exchange them with the last one.

    Returns:
        the losses, of parts as their mean over images.
    """
    parts = split(batch, training.position.parts, keep_padding=training.settings.train.global_batch_losses)
    losses: dict[str, Tensor] = {}
    for index, part in enumerate(parts):
        share = len(batch) / len(part)
        found = _forward_backward_part(training, part, size * share, last=last and index == len(parts) - 1)
        if len(parts) == 1:
            return found
        losses = {name: losses.get(name, 0.0) + value / share for name, value in found.items()}
    return losses


def _forward_backward_part(training: Training, batch: Batch, divisor: float, *, last: bool) -> dict[str, Tensor]:
    """Adds the gradients of what goes through the network at once, which counts 1 / divisor."""
    training.taken.append((batch, random_states(training.device)))
    data = training.settings.data
    batch = batch.to(training.device)
    images = normalize(batch.images, batch.padding_mask, data.mean, data.std)
    try:
        with nullcontext() if last else process_group.without_sync(training.objective):
            with torch.autocast(training.device.type, dtype=training.dtype, enabled=training.dtype is not None):
                training.pulse("forward")
                losses: dict[str, Tensor] = training.objective(images, batch.padding_mask, batch.targets)
            total = torch.stack(list(losses.values())).sum()
            training.pulse("backward")
            torch.autograd.backward(training.scaler.scale(total / divisor))
    except (RuntimeError, ValueError, IndexError) as error:
        # Matching and sampling may fail on outputs that are not finite before there is a loss to look at.
        # Sharded weights can only be gathered by all processes together, and this one may be alone with its error.
        asked = not is_out_of_memory(error) and not is_sharded(training.model)
        if not asked or has_finite_outputs(training.model, images, batch.padding_mask):
            raise
        ids = on_images([target["image_id"] for target in batch.targets])
        raise _diverged(training, f"the outputs of the network are not finite {ids}") from error
    return {name: value.detach() for name, value in losses.items()}


def _is_save_due(training: Training) -> bool:
    every = training.settings.train.checkpoint_every
    if training.position.bad_steps:
        return False  # the newest checkpoint stays one to go back to
    if every is not None:
        return training.position.step % every == 0
    return process_group.is_main() and time.monotonic() - training.saved_at > SAVE_SECONDS


def _report_step(training: Training, norm: float) -> None:
    """Logs a line when one is due, and tells the caller of the step."""
    step, left = training.position.step, training.total_steps - training.position.step
    due = step % training.settings.train.log_every == 0 or left == 0 or not training.newest_line
    if due and training.meter.has_losses:
        training.newest_line = {
            "kind": "train",
            "step": step,
            "epoch": training.position.epoch,
            "lr": training.optimizer.param_groups[-1]["lr"],
            "grad_norm": norm if math.isfinite(norm) else None,
            **training.meter.line(left),
        }
        if process_group.is_main():
            training.log(training.newest_line)
            advice = training.waits.advice(training.newest_line["data_wait"], training.settings)
            if advice is not None:
                training.run.event(advice)
                training.report.warn(advice)
            if time.monotonic() > training.draw_at:
                _draw(training)
                training.meter.restart()  # the window is empty, and drawing is no slow step
    if training.newest_line:
        training.report.step({**training.newest_line, "step": step}, left)


def _evaluate_if_due(training: Training) -> None:
    """Evaluates after every so many epochs and at the end, once a step, and keeps the best checkpoint."""
    position, every = training.position, training.settings.train.eval_every
    due = position.step == training.total_steps or (position.is_between_epochs and position.epoch % every == 0)
    if training.evaluate is None or not due or position.step in (0, position.evaluated_step):
        return
    wait_until_saved(training)  # a stop during the evaluation finds all done, and its workers start undisturbed
    started = time.monotonic()
    training.pulse("evaluation", position.step)
    averaged = nullcontext() if training.ema is None else training.ema.swapped_into(training.model)
    with untouched_randomness(), averaged:
        metrics = training.evaluate()
    ap = process_group.from_main(metrics["AP"] if process_group.is_main() else None)
    count_evaluation(position, position.step, ap)
    if process_group.is_main():
        if position.fruitless == 0:
            training.run.mark_best()
        line = {
            "kind": "eval",
            "step": position.step,
            "epoch": position.epoch,
            "metrics": metrics,
            "best": position.best,
            "seconds": time.monotonic() - started,
        }
        training.log(line)
        training.run.event(f"evaluation of step {position.step}: AP {metrics['AP']:.4f}, best {position.best:.4f}")
        training.report.evaluated(line)
        _draw(training)
    process_group.barrier()


def _finish(training: Training) -> None:
    position = training.position
    why = ""
    if position.step < training.total_steps:
        why = f" of {training.total_steps}: no better AP than {position.best:.4f} in {position.fruitless} evaluations"
    training.log({"kind": "end", "step": position.step, "epoch": position.epoch, "early": bool(why)})
    training.run.event(f"finished at step {position.step}{why}")
    if why:
        training.report.note(f"finished early, at step {position.step}{why}")
    _draw(training)


def _draw(training: Training) -> None:
    """Draws the plots; they are no reason to lose a training, nor to spend much of its time on."""
    started = time.monotonic()
    try:
        draw_plots(training.run.metrics(), training.run.plots_dir)
    except Exception as error:
        training.run.event(f"the plots could not be drawn: {type(error).__name__}: {error}")
    now = time.monotonic()
    training.draw_at = now + max(PLOT_SECONDS, PLOT_SHARE * (now - started))


def _stopped(training: Training) -> StoppedError:
    number = training.stop.number or 15  # the signal reached another process only
    step = training.position.step
    if process_group.is_main():
        training.run.event(f"stopped by {NAMES[number]} after step {step}")
    return StoppedError(
        f"stopped by {NAMES[number]} after step {step} of {training.total_steps}, saved in {training.run.path}: "
        "start the same command again to continue.",
        number,
    )


def _diverged(training: Training, what: str) -> DivergedError:
    text = (
        f"training diverged in step {training.position.step + 1} (epoch {training.position.epoch + 1}): {what}. "
        f"Nothing of this step was saved; the checkpoints in {training.run.checkpoints_dir} are as they were. Look at "
        "these images and their annotations, lower train.lr, or try --set train.precision=fp32."
    )
    if process_group.is_main():
        training.run.event(text)
    return DivergedError(text)
