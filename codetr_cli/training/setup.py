"""From a planned job to a running training: builds data, network and optimizer and hands them to the loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codetr_cli.config.schema import Settings
from codetr_cli.data.annotations import read_annotations
from codetr_cli.data.coco import CocoDataset, build_dataset
from codetr_cli.data.formats.resolve import Split, find_data
from codetr_cli.data.loading.loader import EvalLoader, TrainLoader, build_train_loader
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import check_shardable, own_copy, shard
from codetr_cli.distributed.sharded_state import PartWriters, should_write_parts
from codetr_cli.distributed.watchdog import Pulse
from codetr_cli.errors import StoppedError
from codetr_cli.evaluation.evaluator import RankResults, evaluate
from codetr_cli.evaluation.request import EvalRequest, expects_masks
from codetr_cli.files import WEIGHTS_NAME
from codetr_cli.inference.loading import check_image_size, compile_for
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.collaborative import group_losses
from codetr_cli.losses.normalizers import Normalizers
from codetr_cli.models.build import build_model
from codetr_cli.models.codetr import CoDETR
from codetr_cli.models.inference_mode import optimize_for_inference
from codetr_cli.runs.folder import RunFolder
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
from codetr_cli.training.loggers import Record, check_loggers, open_loggers
from codetr_cli.training.loop import Training, train
from codetr_cli.training.memory_fit import check_memory
from codetr_cli.training.metrics import Meter
from codetr_cli.training.optim import base_learning_rate, build_optimizer, build_schedule
from codetr_cli.training.plan import BatchPlan, Job, plan_batches, steps_per_epoch, total_steps
from codetr_cli.training.reporter import Report, Silence

LOCK_PATIENCE_S = 20.0  # processes of a killed launcher save before they leave


@dataclass(frozen=True)
class Outcome:
    """What a finished training left.

    Attributes:
        run: the folder.
        steps: optimizer steps of the whole run.
        epochs: epochs completed.
        metrics: of the newest evaluation, empty without one.
        best_ap: highest AP, None without an evaluation.
        weights: file of the newest weights.
        best_weights: file of the weights with the highest AP, None without an evaluation.
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
    """What a training would do, for `--dry-run`."""

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


def run_training(job: Job, *, device: torch.device, choice: Choice | None, report: Report) -> Outcome:
    """Trains a job to its end in this process, which may be one of several.

    Args:
        job: as planned.
        device: as chosen for the whole training; each process of several takes its own GPU.
        choice: the run folder; None lets the process of rank 0 choose.
        report: whom to tell; only the process of rank 0 does.

    Raises:
        StoppedError: a signal came; the work is saved.
        CodetrError: anything a person can mend.
    """
    device = process_group.local_device(device)
    with process_group.process_group(device, group_timeout(job.settings)) as board, ExitStack() as stack:
        loud, report = report, report if process_group.is_main() else Silence()
        stop = stack.enter_context(StopRequest(lambda number: _announce(number, report), report.leave))
        (restarted,) = process_group.any_process(process_group.was_restarted())
        if choice is None:
            job = replace(job, fresh=job.fresh and not restarted)
            choice = process_group.from_main(choose_for(job) if process_group.is_main() else None)
        if choice.resume or restarted:
            job = replace(job, settings=with_fitted(job.settings, choice.path))
        folder, pulse = RunFolder(choice.path), Pulse()
        if board is not None:
            stack.enter_context(watchdog(board, pulse, job.settings, folder, loud))
        if process_group.is_main():
            with writing(folder.path):
                folder.path.mkdir(parents=True, exist_ok=True)
            stack.callback(folder.lock(LOCK_PATIENCE_S).release)
            folder.open(job.settings, job.origin)
            folder.recover()
            report.note(choice.note)
            for note in job.notes:
                report.note(note)
            for warning in job.warnings:
                report.warn(warning)
            if restarted:
                folder.event(f"started again: {os.environ.get(process_group.RESTART_REASON, 'a process died')}")
        process_group.barrier()
        check_same_disk(folder)
        resume = choice.resume or restarted
        training = build_training(job, folder, device=device, resume=resume, stop=stop, report=report)
        training.pulse = pulse
        if process_group.is_main():
            _open_loggers(training, stack)
        train(training)
        if process_group.is_main():
            sum_up(folder, report)
        return _outcome(training)


def check_settings(settings: Settings, device: torch.device, world_size: int) -> None:
    """Refuses early what a training could not do, before data is read and a run folder made.

    Raises:
        ConfigError: batch sizes that do not divide, images that the network cannot see, a precision that the device
            does not have, what sharding cannot do, or a logger that is not installed.
    """
    check_loggers(settings.train.loggers)
    check_image_size(settings, training=True)
    plan_batches(settings.train.batch_size, settings.train.micro_batch, world_size)
    dtype = autocast_dtype(settings.train.precision, device)
    if settings.train.fsdp:
        check_shardable(fp16=dtype == torch.float16, compiled=settings.train.compile)


def choose_for(job: Job) -> Choice:
    """The run folder that the job means; see `choose_run`."""
    return choose_run(job.settings, job.origin, run=job.run, fresh=job.fresh)


def build_training(
    job: Job, folder: RunFolder, *, device: torch.device, resume: bool, stop: StopRequest, report: Report
) -> Training:
    """Builds everything a run works with and puts it where the run was left.

    Args:
        job: as planned.
        folder: opened.
        device: of this process.
        resume: continue from the folder's newest checkpoint, if it has one yet.
        stop: asked after every step.
        report: whom to tell.
    """
    settings = job.settings
    return_large_blocks()
    _prepare_torch(settings)
    splits: list[Split] = ["train"] if job.origin.val_annotations is None else ["train", "val"]
    bad_files = open_bad_files(settings, folder, splits, resume=resume, report=report)
    dataset = build_dataset(settings, split="train", training=True, skip_files=bad_files.left_out("train"))
    seed_all(settings.train.seed)  # the same weights in every process
    model = _build_network(settings)
    saved = load_newest(folder, report) if resume else None
    if saved is None:
        start_weights(model, job, report)
    settings = check_memory(
        model.to(device),
        dataset,
        settings,
        device=device,
        folder=folder,
        origin=job.origin,
        auto_fit=job.auto_fit,
        begun=saved is not None,
        report=report,
    )
    batches = plan_batches(settings.train.batch_size, settings.train.micro_batch, process_group.world_size())
    loader = _train_loader(dataset, settings, batches, device)
    loader.on_bad_file = bad_files.meet
    if settings.train.compile:
        compile_for(model, device, "train.compile")
    objective = build_objective(model, settings.train.loss, normalizers=_normalizers(settings))
    seed_all(settings.train.seed + process_group.rank())  # other draws in each
    wrap = shard if settings.train.fsdp else process_group.wrap_ddp
    steps = total_steps(settings, steps_per_epoch(len(loader), batches.accumulation))
    dtype = autocast_dtype(settings.train.precision, device)
    training = Training(
        settings=settings,
        class_names=job.class_names,
        category_ids=job.category_ids,
        objective=wrap(objective, device),
        model=model,
        optimizer=build_optimizer(model, settings.train),
        schedule=build_schedule(settings.train, steps),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        ema=ModelEma(model, settings.train.ema_momentum) if settings.train.ema_momentum else None,
        dtype=dtype,
        device=device,
        loader=loader,
        micro_batch=batches.micro_batch,
        accumulation=batches.accumulation,
        total_steps=steps,
        run=folder,
        evaluate=None,
        meter=Meter(
            group_losses=group_losses,
            reduce_mean=process_group.reduce_mean,
            world_size=batches.world_size,
            device=device,
            rank=process_group.rank(),
        ),
        stop=stop,
        report=report,
    )
    if should_write_parts(model):
        training.writers = PartWriters()
    if job.origin.val_annotations is not None:
        training.evaluate = _evaluation(training, model, bad_files)
    if saved is not None:
        restore(training, saved)
        report.note(f"resumed after step {training.position.step} of {training.total_steps}")
    if process_group.is_main():
        folder.rewind(training.position.step)
        length = f"from step {training.position.step} to {training.total_steps}"
        folder.event(f"training {length}: {batches.describe()}, {device}")
    process_group.barrier()
    return training


def preview(job: Job, *, device: torch.device, world_size: int) -> Preview:
    """What a training would do, without doing it.

    Args:
        job: as planned.
        device: it would run on.
        world_size: number of processes.
    """
    settings = job.settings
    batches = plan_batches(settings.train.batch_size, settings.train.micro_batch, world_size)
    bad = scan(settings, "train", Silence())[1] if settings.data.bad_files == "skip" else []
    dataset = build_dataset(settings, split="train", training=True, skip_files=[file.path for file in bad])
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
    objective = build_objective(_build_network(settings), settings.train.loss)
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


def _build_network(settings: Settings) -> CoDETR:
    model = build_model(settings.model)
    if settings.train.freeze_backbone:
        model.backbone.requires_grad_(False)
    return model


def _normalizers(settings: Settings) -> Normalizers:
    return Normalizers(
        reduce_mean=process_group.reduce_mean,
        reduce_max=process_group.reduce_max,
        world_size=process_group.world_size(),
        global_batch=settings.train.global_batch_losses,
    )


def _prepare_torch(settings: Settings) -> None:
    if settings.train.deterministic:
        # cuBLAS reads it when it starts; some operations have no repeatable version and only warn.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def _train_loader(
    dataset: CocoDataset,
    settings: Settings,
    batches: BatchPlan,
    device: torch.device,
) -> TrainLoader:
    return build_train_loader(
        dataset,
        micro_batch=batches.micro_batch,
        workers=settings.data.workers,
        seed=settings.train.seed,
        rank=process_group.rank(),
        world_size=batches.world_size,
        aspect_grouping=settings.data.aspect_grouping,
        pin_memory=device.type == "cuda",
        timeout_s=_reading_patience_s(settings),
    )


def _reading_patience_s(settings: Settings) -> float:
    """Shorter than the watchdog's: the process whose workers hang shall say so before others call it frozen."""
    return 0.8 * 60 * settings.train.timeout_minutes


def _evaluation(training: Training, model: CoDETR, bad_files: BadFiles) -> Callable[[], dict[str, float]]:
    """Scores the model on the validation images, each process its share of them."""
    settings = training.settings
    annotations_path = find_data(settings.data, None, "val").annotations_path
    ground_truth = read_annotations(annotations_path, with_outlines=expects_masks(settings))
    request = EvalRequest.resolve(  # now, not after the first epoch
        settings,
        ground_truth,
        annotations_path,
        class_names=training.class_names,
        category_ids=training.category_ids,
    )
    loader = EvalLoader(
        build_dataset(settings, split="val", training=False, annotations=ground_truth),
        batch_size=settings.test.batch_size,
        workers=settings.data.workers,
        rank=process_group.rank(),
        world_size=process_group.world_size(),
        pin_memory=training.device.type == "cuda",
        timeout_s=_reading_patience_s(settings),
    )
    share = loader.num_images

    def gather(results: RankResults) -> list[RankResults]:
        training.pulse("scoring")
        return process_group.gather_objects(results)

    def show(images: int) -> None:
        training.report.evaluating(images, share)
        training.pulse("evaluation")
        if training.stop.number is not None:
            if process_group.is_main():
                training.run.event(f"stopped during the evaluation of step {training.position.step}")
            raise StoppedError(
                f"stopped during the evaluation after step {training.position.step}, which is saved in "
                f"{training.run.path}: start the same command again to continue.",
                training.stop.number,
            )

    said: list[str] = []

    def score() -> dict[str, float]:
        training.report.evaluating(0, share)
        result = evaluate(
            optimize_for_inference(own_copy(model, lambda: _build_network(settings))),
            loader,
            request,
            device=training.device,
            progress=show,
            gather=gather,
        )
        for bad in result.skipped:
            bad_files.meet(bad, "val")
        if result.protocol is not None:
            training.run.event(f"evaluated: {result.protocol}")
            if not said:  # the same at every evaluation of a run
                said.append(str(result.protocol))
                training.report.note(f"Protocol of the AP: {result.protocol}.")
        return result.metrics

    return score


def _open_loggers(training: Training, stack: ExitStack) -> None:
    """Connects the process of rank 0 with the services of the settings until the training ends."""

    def warn(text: str) -> None:
        training.run.event(text)
        training.report.warn(text)

    record = Record(
        folder=training.run.path,
        settings=training.settings,
        step=training.position.step,
        note=training.run.event,
    )
    training.loggers = stack.enter_context(open_loggers(training.settings.train.loggers, record, warn))


def _outcome(training: Training) -> Outcome:
    folder, position = training.run, training.position
    evaluations = [line for line in folder.metrics() if line["kind"] == "eval"]
    return Outcome(
        run=folder.path,
        steps=position.step,
        epochs=position.epoch,
        weights=folder.last / WEIGHTS_NAME,
        metrics=evaluations[-1]["metrics"] if evaluations else {},
        best_ap=max((line["metrics"]["AP"] for line in evaluations), default=None),
        best_weights=folder.best / WEIGHTS_NAME if evaluations else None,
    )


def _announce(number: int, report: Report) -> None:
    report.note(f"{NAMES[number]}: finishing this step and saving; once more stops at once")


def _count(module: nn.Module, *, trained: bool) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)
