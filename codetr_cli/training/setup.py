"""A training from its job to its outcome: processes, signals, run folder, loggers, then build and train."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from codetr_cli.config.schema import Settings
from codetr_cli.distributed import process_group
from codetr_cli.distributed.watchdog import Heartbeat
from codetr_cli.errors import ConfigError
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.runs.folder import RunFolder, Saved, event_log
from codetr_cli.runs.memory_record import with_fitted
from codetr_cli.runs.metrics_log import is_evaluation
from codetr_cli.runs.process_record import write_process
from codetr_cli.runs.resume import RunChoice, check_weights_named, choose_run, with_weights
from codetr_cli.runtime.disk_errors import writing
from codetr_cli.runtime.malloc import return_large_blocks
from codetr_cli.runtime.precision import float32_arithmetic, resolve_training_precision
from codetr_cli.runtime.signals import NAMES, StopRequest
from codetr_cli.training.bad_images import log_summary
from codetr_cli.training.build import build_training
from codetr_cli.training.checkpointing import find_lineage, load_newest, restore
from codetr_cli.training.liveness import check_same_disk, group_timeout, watchdog
from codetr_cli.training.loggers import Loggers, Record, open_loggers
from codetr_cli.training.loop import train
from codetr_cli.training.plan import TrainJob
from codetr_cli.training.reporter import Reporter, SilentReporter
from codetr_cli.training.state import RunIO, TrainContext, TrainState

logger = logging.getLogger(__name__)

LOCK_PATIENCE_S = 20.0  # for processes of a killed launcher, which save before they exit


@dataclass(frozen=True)
class Outcome:
    """Result of a finished training: its folder, steps and epochs of the whole run, and the newest weights.

    The metrics are those of the newest evaluation, the best ones those of the highest AP; both need an evaluation.
    """

    run: Path
    steps: int
    epochs: int
    weights: Path
    metrics: dict[str, float] = field(default_factory=dict)
    best_ap: float | None = None
    best_weights: Path | None = None


def run_training(job: TrainJob, *, device: torch.device, choice: RunChoice | None, reporter: Reporter) -> Outcome:
    """Trains a job to its end in this process, which may be one of several.

    Args:
        job: as planned.
        device: of the whole training; each of several processes uses its own GPU.
        choice: the run folder; None: the process of rank 0 chooses it.
        reporter: only used in the process of rank 0.

    Raises:
        StoppedError: a signal came; the work is saved.
        CodetrError: any error that the user can fix.
    """
    device = process_group.local_device(device)
    with process_group.joined(device, group_timeout(job.settings)) as store, ExitStack() as stack:
        local_reporter = reporter if process_group.is_main() else SilentReporter()
        stop = stack.enter_context(StopRequest(_log_stop, local_reporter.close))
        job, choice = _agree_on_run(job, choice)
        folder, heartbeat = RunFolder(choice.path), Heartbeat()
        if store is not None:
            stack.enter_context(watchdog(store, heartbeat, job.settings, folder))
        if process_group.is_main():
            _open_folder(folder, job, choice, stack)
            _record_process(folder, device)
        process_group.barrier()
        check_same_disk(folder)
        saved = load_newest(folder) if choice.resume else None
        if saved is None and choice.resume:
            check_weights_named(job.inputs, folder.path)
        loggers = _open_loggers(job.settings, folder, saved, stack)
        io = RunIO(folder=folder, loggers=loggers, reporter=local_reporter, stop=stop, heartbeat=heartbeat)
        return_large_blocks()
        _prepare_torch(job.settings)
        context, state = build_training(job, io, device=device, resume=choice.resume, has_checkpoint=saved is not None)
        context = replace(context, lineage=find_lineage(job.inputs.weights, saved))
        _continue_from(context, state, saved)
        precision = resolve_training_precision(context.settings.train.precision, device)
        with float32_arithmetic(precision, device):
            train(context, state)
        if process_group.is_main():
            if context.best_report is not None:
                context.best_report.write(folder)
            log_summary(folder)
        return _outcome(context, state)


def choose_for(job: TrainJob, *, dry_run: bool = False) -> RunChoice:
    """The run folder of the job; see `choose_run`."""
    return choose_run(job.settings, job.inputs, run=job.run, restart=job.restart, dry_run=dry_run)


def _agree_on_run(job: TrainJob, choice: RunChoice | None) -> tuple[TrainJob, RunChoice]:
    """The job and the run folder, the same in all processes; `resume` is set also after a restart of the processes."""
    (restarted,) = process_group.any_process(process_group.was_restarted())
    if choice is None:
        job = replace(job, restart=job.restart and not restarted)
        choice = process_group.from_main(choose_for(job) if process_group.is_main() else None)
    choice = replace(choice, resume=choice.resume or restarted)
    if choice.resume:
        job = replace(job, settings=with_fitted(job.settings, choice.path))
    return job, choice


def _open_folder(folder: RunFolder, job: TrainJob, choice: RunChoice, stack: ExitStack) -> None:
    """Creates, locks and recovers the run folder, and starts its event log; for the process of rank 0."""
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    stack.callback(folder.lock(LOCK_PATIENCE_S).release)
    if not choice.resume and folder.status() != "empty":
        raise ConfigError(
            f"another command has started a run in {folder.path} since this one: start this command again to continue "
            "that run, or give another folder with --run"
        )
    if choice.resume and not process_group.was_restarted():
        # Again: another command may have extended or finished the run while this one waited.
        choose_run(job.settings, job.inputs, run=folder.path)
    folder.open(job.settings, with_weights(job.inputs, folder.path) if choice.resume else job.inputs)
    folder.recover()
    stack.enter_context(event_log(folder))
    for note in (choice.note, *job.notes):
        logger.info("%s", note)
    for warning in job.warnings:
        logger.warning("%s", warning)
    if process_group.was_restarted():
        logger.debug("restarted: %s", os.environ.get(process_group.RESTART_REASON, "a process died"))


def _record_process(folder: RunFolder, device: torch.device) -> None:
    """Records this process, of rank 0, in the run folder, for those who watch it from elsewhere."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    with writing(folder.path):
        write_process(folder.path, processes=process_group.world_size(), device=name)


def _open_loggers(settings: Settings, folder: RunFolder, saved: Saved | None, stack: ExitStack) -> Loggers:
    """Connects the process of rank 0 with the services of `train.loggers` until the training ends."""
    if not process_group.is_main():
        return Loggers()
    step = 0 if saved is None else saved.state["step"]
    record = Record(folder=folder.path, settings=settings, step=step)
    return stack.enter_context(open_loggers(settings.train.loggers, record))


def _continue_from(context: TrainContext, state: TrainState, saved: Saved | None) -> None:
    """Restores the checkpoint, if there is one, and removes from metrics.jsonl what was logged after it."""
    if saved is not None:
        restore(context, state, saved)
        logger.info("resumed after step %d of %d", state.progress.step, state.total_steps)
    if process_group.is_main():
        if saved is None:
            _warn_of_dropped(context.io.folder)
        context.io.folder.rewind(state.progress.step)
        first, last, batches = state.progress.step, state.total_steps, context.batches.describe()
        logger.debug("training from step %d to %d: %s, %s", first, last, batches, context.device)
    process_group.barrier()


def _warn_of_dropped(folder: RunFolder) -> None:
    """Warns where a run starts from step 0 although it has logged steps: killed before its first checkpoint."""
    if dropped := max((line["step"] for line in folder.lines("train") if line["kind"] == "train"), default=0):
        logger.warning(
            "%s logged steps are dropped, because no checkpoint exists: training starts from step 0", f"{dropped:,}"
        )


def _log_stop(number: int) -> None:
    logger.info("%s: finishing this step and saving. Press Ctrl-C again to quit immediately.", NAMES[number])


def _prepare_torch(settings: Settings) -> None:
    if settings.train.deterministic:
        # cuBLAS reads it at its start; some operations have no deterministic version and only warn.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing reads memory before it is written; filling every new tensor would cost a kernel each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False


def _outcome(context: TrainContext, state: TrainState) -> Outcome:
    folder, progress = context.io.folder, state.progress
    evaluations = [line for line in folder.lines(containing="eval") if is_evaluation(line)]
    return Outcome(
        run=folder.path,
        steps=progress.step,
        epochs=progress.epoch,
        weights=folder.last / WEIGHTS_NAME,
        metrics=evaluations[-1]["metrics"] if evaluations else {},
        best_ap=max((line["metrics"]["AP"] for line in evaluations), default=None),
        best_weights=folder.best / WEIGHTS_NAME if evaluations else None,
    )
