"""Builds what a training needs: data, model, objective, optimizer, evaluation."""

from __future__ import annotations

import torch

from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import CocoDataset, build_dataset
from codetr_cli.data.loading.loader import build_train_loader
from codetr_cli.distributed import process_group
from codetr_cli.distributed.fsdp import shard
from codetr_cli.distributed.sharded_state import ShardWriters, is_saved_in_shards
from codetr_cli.inference.loading import compile_for
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.collaborative import group_losses
from codetr_cli.losses.normalizers import Normalizers
from codetr_cli.models.codetr import CoDETR
from codetr_cli.runtime.precision import autocast_dtype
from codetr_cli.runtime.rng import seed_all
from codetr_cli.training.bad_images import BadFiles, open_bad_files
from codetr_cli.training.ema import ModelEma
from codetr_cli.training.initial_weights import build_trainable_model, load_initial_weights
from codetr_cli.training.memory_fit import check_memory
from codetr_cli.training.metrics import StepMetrics
from codetr_cli.training.optim import Schedule, build_optimizer
from codetr_cli.training.plan import TrainJob, batch_sizes, steps_per_epoch, total_steps
from codetr_cli.training.plots import RunPlots
from codetr_cli.training.state import RunIO, TrainContext, TrainState
from codetr_cli.training.validation import Validation, reading_timeout_s


def build_training(
    job: TrainJob, io: RunIO, *, device: torch.device, resume: bool, has_checkpoint: bool
) -> tuple[TrainContext, TrainState]:
    """Builds everything that a training needs, with the run folder open; all processes must call it.

    A resumed run may have no checkpoint yet. Where it has one the caller restores it: initial weights are not read.
    """
    has_validation = job.inputs.val_annotations is not None
    bad_files = open_bad_files(
        job.settings, io.folder, ["train", "val"] if has_validation else ["train"], resume=resume
    )
    dataset = build_dataset(job.settings, split="train", training=True, skip_files=bad_files.skipped("train"))
    seed_all(job.settings.train.seed)  # the same weights in every process
    model = build_trainable_model(job.settings)
    if not has_checkpoint:
        load_initial_weights(model, job)
    settings = check_memory(
        model.to(device),
        dataset,
        job.settings,
        device=device,
        folder=io.folder,
        inputs=job.inputs,
        auto_fit=job.auto_fit,
        started=has_checkpoint,
    )
    context = _build_context(job, settings, io, model=model, dataset=dataset, bad_files=bad_files, device=device)
    return context, _build_state(context, model)


def _build_context(
    job: TrainJob,
    settings: Settings,
    io: RunIO,
    *,
    model: CoDETR,
    dataset: CocoDataset,
    bad_files: BadFiles,
    device: torch.device,
) -> TrainContext:
    batches = batch_sizes(settings.train.batch_size, settings.train.micro_batch, process_group.world_size())
    loader = build_train_loader(
        dataset,
        micro_batch=batches.micro_batch,
        workers=settings.data.workers,
        seed=settings.train.seed,
        rank=process_group.rank(),
        world_size=batches.world_size,
        aspect_grouping=settings.data.aspect_grouping,
        pin_memory=device.type == "cuda",
        timeout_s=reading_timeout_s(settings),
    )
    loader.on_bad_file = bad_files.on_unreadable
    if settings.train.compile:
        compile_for(model, device, "train.compile")
    objective = build_objective(model, settings.train.loss, normalizers=build_normalizers(settings))
    seed_all(settings.train.seed + process_group.rank())  # different random numbers in each process
    wrap = shard if settings.train.fsdp else process_group.wrap_ddp
    wrapped = wrap(objective, device)
    shard_writers = ShardWriters() if is_saved_in_shards(model) else None
    validation = None
    if job.inputs.val_annotations is not None:
        validation = Validation(job, settings=settings, model=model, bad_files=bad_files, io=io, device=device)
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
        best_report=None if validation is None else validation.best_report,
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
        schedule=Schedule(settings, steps),
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
        world_size=process_group.world_size(),
        global_batch=settings.train.global_batch_losses,
    )
