"""From a planned job to a running training: builds data, model and optimizer, and runs the loop."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import CocoDataset, build_dataset
from codetr_cli.data.formats.resolve import Split
from codetr_cli.data.loading.loader import TrainLoader, build_train_loader
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import check_shardable, shard
from codetr_cli.distributed.sharded_state import PartWriters, should_write_parts
from codetr_cli.distributed.watchdog import Pulse
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.inference.loading import check_image_size, compile_for
from codetr_cli.losses.collaborative import CollaborativeObjective, group_losses
from codetr_cli.losses.normalizers import Normalizers
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR
from codetr_cli.runs.folder import RunFolder, Saved, event_log
from codetr_cli.runs.memory_record import with_fitted
from codetr_cli.runs.resume import Choice, choose_run
from codetr_cli.runtime.disk_errors import writing
from codetr_cli.runtime.malloc import return_large_blocks
from codetr_cli.runtime.precision import autocast_dtype
from codetr_cli.runtime.rng import seed_all
from codetr_cli.runtime.signals import NAMES, StopRequest
from codetr_cli.training.bad_images import BadFiles, open_bad_files, scan, sum_up
from codetr_cli.training.checkpointing import load_newest, restore
from codetr_cli.training.ema import ModelEma
from codetr_cli.training.initial_weights import start_weights
from codetr_cli.training.liveness import check_same_disk, group_timeout, watchdog
from codetr_cli.training.loggers import Loggers, Record, check_loggers, open_loggers
from codetr_cli.training.loop import train
from codetr_cli.training.memory_fit import check_memory
from codetr_cli.training.metrics import StepMetrics
from codetr_cli.training.optim import base_learning_rate, build_optimizer, build_schedule
from codetr_cli.training.plan import BatchPlan, Job, plan_batches, steps_per_epoch, total_steps
from codetr_cli.training.plots import RunPlots
from codetr_cli.training.reporter import Reporter, SilentReporter
from codetr_cli.training.state import RunIO, TrainContext, TrainState
from codetr_cli.training.validation import Validation, reading_patience_s

logger = logging.getLogger(__name__)

LOCK_PATIENCE_S = 20.0  # for processes of a killed launcher, which save before they exit


@dataclass(frozen=True)
class Outcome:
    """Result of a finished training.

    Attributes:
        run: the folder.
        steps: optimizer steps of the whole run.
        epochs: epochs completed.
        metrics: of the newest evaluation, empty without one.
        best_ap: highest AP, None without an evaluation.
        weights: file with the newest weights.
        best_weights: file with the weights of the highest AP, None without an evaluation.
    """

    run: Path
    steps: int
    epochs: int
    weights: Path
    metrics: dict[str, float] = field(default_factory=dict)
    best_ap: float | None = None
    best_weights: Path | None = None


@dataclass(frozen=True)
class Preview:
    """Plan of a training, for `--dry-run`."""

    images: int
    bad_files: int
    val_images: int | None
    batches: BatchPlan
    steps_per_epoch: int
    total_steps: int
    device: str
    precision: str
    learning_rate: float
    parameters: int
    trained_parameters: int

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def run_training(job: Job, *, device: torch.device, choice: Choice | None, reporter: Reporter) -> Outcome:
    """Trains a job to its end in this process, which may be one of several.

    Args:
        job: as planned.
        device: of the whole training; each of several processes uses its own GPU.
        choice: the run folder; None: the process of rank 0 chooses it.
        reporter: shows the progress; only used in the process of rank 0.

    Raises:
        StoppedError: a signal came; the work is saved.
        CodetrError: any error that the user can fix.
    """
    device = process_group.local_device(device)
    with process_group.process_group(device, group_timeout(job.settings)) as store, ExitStack() as stack:
        local_reporter = reporter if process_group.is_main() else SilentReporter()
        stop = stack.enter_context(StopRequest(_log_stop, local_reporter.close))
        job, choice = _agree_on_run(job, choice)
        folder, heartbeat = RunFolder(choice.path), Pulse()
        if store is not None:
            stack.enter_context(watchdog(store, heartbeat, job.settings, folder, _LogReport(reporter)))
        if process_group.is_main():
            _open_folder(folder, job, choice, stack)
        process_group.barrier()
        check_same_disk(folder)
        saved = load_newest(folder) if choice.resume else None
        loggers = _open_loggers(job.settings, folder, saved, stack)
        io = RunIO(folder=folder, loggers=loggers, reporter=local_reporter, stop=stop, heartbeat=heartbeat)
        context, state = build_training(job, io, device=device, saved=saved, resume=choice.resume)
        train(context, state)
        if process_group.is_main():
            sum_up(folder, _LogReport(local_reporter))
        return _outcome(context, state)


def check_settings(settings: Settings, device: torch.device, world_size: int) -> None:
    """Checks settings before data is read and a run folder is created.

    Raises:
        ConfigError: batch sizes that do not divide, images that the network does not support, a precision that the
            device does not support, a setting that sharding does not support, or a logger that is not installed.
    """
    check_loggers(settings.train.loggers)
    check_image_size(settings, training=True)
    plan_batches(settings.train.batch_size, settings.train.micro_batch, world_size)
    dtype = autocast_dtype(settings.train.precision, device)
    if settings.train.fsdp:
        check_shardable(fp16=dtype == torch.float16, compiled=settings.train.compile)


def choose_for(job: Job) -> Choice:
    """The run folder of the job; see `choose_run`."""
    return choose_run(job.settings, job.origin, run=job.run, fresh=job.fresh)


def build_training(
    job: Job, io: RunIO, *, device: torch.device, saved: Saved | None, resume: bool
) -> tuple[TrainContext, TrainState]:
    """Builds everything that a training needs; all processes must call it.

    Args:
        job: as planned.
        io: of the run; its folder is open.
        device: of this process.
        saved: checkpoint to continue from; None starts from the first step.
        resume: continue the run, which may have no checkpoint yet.
    """
    return_large_blocks()
    _prepare_torch(job.settings)
    bad_files = _find_bad_files(job, io, resume=resume)
    dataset = build_dataset(job.settings, split="train", training=True, left_out=bad_files.left_out("train"))
    seed_all(job.settings.train.seed)  # the same weights in every process
    model = _build_model(job.settings)
    if saved is None:
        start_weights(model, job, _LogReport(io.reporter))
    settings = check_memory(
        model.to(device),
        dataset,
        job.settings,
        device=device,
        folder=io.folder,
        origin=job.origin,
        auto_fit=job.auto_fit,
        begun=saved is not None,
        report=_LogReport(io.reporter),
    )
    context = _build_context(job, settings, io, model=model, dataset=dataset, bad_files=bad_files, device=device)
    state = _build_state(context, model)
    if saved is not None:
        restore(context, state, saved)
        logger.info("resumed after step %d of %d", state.progress.step, state.total_steps)
    if process_group.is_main():
        io.folder.rewind(state.progress.step)
        first, last, batches = state.progress.step, state.total_steps, context.batches.describe()
        logger.debug("training from step %d to %d: %s, %s", first, last, batches, device)
    process_group.barrier()
    return context, state


def preview(job: Job, *, device: torch.device, world_size: int) -> Preview:
    """The plan of a training.

    Args:
        job: as planned.
        device: to train on.
        world_size: number of processes.
    """
    settings = job.settings
    batches = plan_batches(settings.train.batch_size, settings.train.micro_batch, world_size)
    bad = scan(settings, "train", _LogReport(SilentReporter()))[1] if settings.data.bad_files == "skip" else []
    dataset = build_dataset(settings, split="train", training=True, left_out=[file.path for file in bad])
    loader = build_train_loader(
        dataset,
        micro_batch=batches.micro_batch,
        workers=0,
        seed=settings.train.seed,
        rank=0,
        world_size=world_size,
        aspect_grouping=settings.data.aspect_grouping,
    )
    per_epoch = steps_per_epoch(len(loader), batches.accumulation)
    evaluating = job.origin.val_annotations is not None
    objective = CollaborativeObjective(_build_model(settings), **settings.train.loss.model_dump())
    dtype = autocast_dtype(settings.train.precision, device)
    return Preview(
        images=len(dataset),
        bad_files=len(bad),
        val_images=len(build_dataset(settings, split="val", training=False)) if evaluating else None,
        batches=batches,
        steps_per_epoch=per_epoch,
        total_steps=total_steps(settings, per_epoch),
        device=str(device),
        precision="fp32" if dtype is None else str(dtype).removeprefix("torch."),
        learning_rate=base_learning_rate(settings.train),
        parameters=_count(objective, trained=False),
        trained_parameters=_count(objective, trained=True),
    )


# ----------------------------------------------------------------------------------------------------- the run's folder


def _agree_on_run(job: Job, choice: Choice | None) -> tuple[Job, Choice]:
    """The job and the run folder, the same in all processes; `resume` is set also after a restart of the processes."""
    (restarted,) = process_group.any_process(process_group.was_restarted())
    if choice is None:
        job = replace(job, fresh=job.fresh and not restarted)
        choice = process_group.from_main(choose_for(job) if process_group.is_main() else None)
    choice = replace(choice, resume=choice.resume or restarted)
    if choice.resume:
        job = replace(job, settings=with_fitted(job.settings, choice.path))
    return job, choice


def _open_folder(folder: RunFolder, job: Job, choice: Choice, stack: ExitStack) -> None:
    """Creates, locks and recovers the run folder, and starts its event log; for the process of rank 0."""
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    stack.callback(folder.lock(LOCK_PATIENCE_S).release)
    folder.open(job.settings, job.origin)
    folder.recover()
    stack.enter_context(event_log(folder))
    for note in (choice.note, *job.notes):
        logger.info("%s", note)
    for warning in job.warnings:
        logger.warning("%s", warning)
    if process_group.was_restarted():
        logger.debug("restarted: %s", os.environ.get(process_group.RESTART_REASON, "a process died"))


def _open_loggers(settings: Settings, folder: RunFolder, saved: Saved | None, stack: ExitStack) -> Loggers:
    """Connects the process of rank 0 with the services of `train.loggers` until the training ends."""
    if not process_group.is_main():
        return Loggers()
    step = 0 if saved is None else saved.state["step"]
    record = Record(folder=folder.path, settings=settings, step=step, note=logger.debug)
    return stack.enter_context(open_loggers(settings.train.loggers, record, logger.warning))


def _find_bad_files(job: Job, io: RunIO, *, resume: bool) -> BadFiles:
    splits: list[Split] = ["train"] if job.origin.val_annotations is None else ["train", "val"]
    return open_bad_files(job.settings, io.folder, splits, resume=resume, report=_LogReport(io.reporter))


def _log_stop(number: int) -> None:
    logger.info("%s: finishing this step and saving. Press Ctrl-C again to quit immediately.", NAMES[number])


# ------------------------------------------------------------------------------------------------ what a training is of


def _build_context(
    job: Job,
    settings: Settings,
    io: RunIO,
    *,
    model: CoDETR,
    dataset: CocoDataset,
    bad_files: BadFiles,
    device: torch.device,
) -> TrainContext:
    batches = plan_batches(settings.train.batch_size, settings.train.micro_batch, process_group.world_size())
    loader = _build_loader(dataset, settings, batches, device)
    loader.on_bad_file = bad_files.meet
    if settings.train.compile:
        compile_for(model, device, "train.compile")
    objective = CollaborativeObjective(model, **settings.train.loss.model_dump(), agreement=build_normalizers(settings))
    seed_all(settings.train.seed + process_group.rank())  # different random numbers in each process
    wrap = shard if settings.train.fsdp else process_group.wrap_ddp
    wrapped = wrap(objective, device)
    shard_writers = PartWriters() if should_write_parts(model) else None
    validation = None
    if job.origin.val_annotations is not None:
        build = partial(_build_model, settings)
        validation = Validation(
            job, settings=settings, model=model, build=build, bad_files=bad_files, io=io, device=device
        )
    return TrainContext(
        settings=settings,
        class_names=job.class_names,
        category_ids=job.category_ids,
        device=device,
        dtype=autocast_dtype(settings.train.precision, device),
        batches=batches,
        objective=wrapped,
        model=model,
        loader=loader,
        evaluate=validation,
        shard_writers=shard_writers,
        io=io,
    )


def _build_state(context: TrainContext, model: CoDETR) -> TrainState:
    settings, device = context.settings.train, context.device
    steps = total_steps(context.settings, steps_per_epoch(len(context.loader), context.batches.accumulation))
    return TrainState(
        optimizer=build_optimizer(model, settings),
        scaler=torch.amp.GradScaler(device.type, enabled=context.dtype == torch.float16),
        ema=ModelEma(model, settings.ema_momentum) if settings.ema_momentum else None,
        total_steps=steps,
        schedule=build_schedule(settings, steps),
        metrics=StepMetrics(
            group_losses=group_losses,
            reduce_mean=process_group.reduce_mean,
            world_size=context.batches.world_size,
            device=device,
            rank=process_group.rank(),
        ),
        plots=RunPlots(context.io.folder),
    )


def build_normalizers(settings: Settings) -> Normalizers:
    """How the losses are normalized over the processes of this training."""
    return Normalizers(
        reduce_mean=process_group.reduce_mean,
        reduce_max=process_group.reduce_max,
        processes=process_group.world_size(),
        whole_batch=settings.train.global_batch_losses,
    )


def _build_model(settings: Settings) -> CoDETR:
    model = build_model(settings.model)
    if settings.train.freeze_backbone:
        model.backbone.requires_grad_(False)
    return model


def _build_loader(dataset: CocoDataset, settings: Settings, batches: BatchPlan, device: torch.device) -> TrainLoader:
    return build_train_loader(
        dataset,
        micro_batch=batches.micro_batch,
        workers=settings.data.workers,
        seed=settings.train.seed,
        rank=process_group.rank(),
        world_size=batches.world_size,
        aspect_grouping=settings.data.aspect_grouping,
        pin_memory=device.type == "cuda",
        tell=logger.warning,
        patience_s=reading_patience_s(settings),
    )


def _prepare_torch(settings: Settings) -> None:
    if settings.train.deterministic:
        # cuBLAS reads it at its start; some operations have no deterministic version and only warn.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def _outcome(context: TrainContext, state: TrainState) -> Outcome:
    folder, progress = context.io.folder, state.progress
    evaluations = [line for line in folder.metrics() if line["kind"] == "eval"]
    return Outcome(
        run=folder.path,
        steps=progress.step,
        epochs=progress.epoch,
        weights=folder.last / WEIGHTS_NAME,
        metrics=evaluations[-1]["metrics"] if evaluations else {},
        best_ap=max((line["metrics"]["AP"] for line in evaluations), default=None),
        best_weights=folder.best / WEIGHTS_NAME if evaluations else None,
    )


def _count(module: nn.Module, *, trained: bool) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


class _LogReport:
    """Passes texts on to `logging`."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def note(self, text: str) -> None:
        logger.info("%s", text)

    def warn(self, text: str) -> None:
        logger.warning("%s", text)

    def failed(self, text: str) -> None:
        self._reporter.close()
        logger.error("%s", text)
