"""What can be checked and shown before a training: settings, and the plan for `--dry-run`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.data.loading.loader import build_train_loader
from codetr_cli.distributed.fsdp import check_shardable
from codetr_cli.errors import ResourceError
from codetr_cli.inference.loading import check_image_size
from codetr_cli.losses.build import build_objective
from codetr_cli.runtime.devices import why_no_training
from codetr_cli.runtime.precision import autocast_dtype, resolve_training_precision
from codetr_cli.training.bad_images import scan
from codetr_cli.training.initial_weights import build_trainable_model
from codetr_cli.training.loggers import check_loggers
from codetr_cli.training.optim import base_learning_rate
from codetr_cli.training.plan import BatchSizes, TrainJob, batch_sizes, steps_per_epoch, total_steps


@dataclass(frozen=True)
class Preview:
    """Plan of a training; its fields are printed with `--dry-run --json`."""

    images: int
    bad_files: int
    val_images: int | None
    batches: BatchSizes
    steps_per_epoch: int
    total_steps: int
    device: str
    precision: str
    learning_rate: float
    parameters: int
    trained_parameters: int


def check_settings(settings: Settings, device: torch.device, world_size: int) -> None:
    """Checks settings before data is read and a run folder is created.

    Raises:
        ResourceError: a device that does not train.
        ConfigError: batch sizes that do not divide, images that the network does not support, a precision that the
            device does not support, a setting that sharding does not support, or a logger that is not installed.
    """
    reason = why_no_training(device)
    if reason is not None:
        raise ResourceError(reason)
    check_loggers(settings.train.loggers)
    check_image_size(settings, training=True)
    batch_sizes(settings.train.batch_size, settings.train.micro_batch, world_size)
    dtype = autocast_dtype(settings.train.precision, device)
    if settings.train.fsdp:
        check_shardable(fp16=dtype == torch.float16, compiled=settings.train.compile)


def preview(job: TrainJob, *, device: torch.device, world_size: int) -> Preview:
    """The plan of a training."""
    settings = job.settings
    batches = batch_sizes(settings.train.batch_size, settings.train.micro_batch, world_size)
    bad = scan(settings, "train")[1] if settings.data.bad_files == "skip" else []
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
    evaluating = job.inputs.val_annotations is not None
    parameters = list(build_objective(build_trainable_model(settings), settings.train.loss).parameters())
    return Preview(
        images=len(dataset),
        bad_files=len(bad),
        val_images=len(build_dataset(settings, split="val", training=False)) if evaluating else None,
        batches=batches,
        steps_per_epoch=per_epoch,
        total_steps=total_steps(settings, per_epoch),
        device=str(device),
        precision=resolve_training_precision(settings.train.precision, device),
        learning_rate=base_learning_rate(settings.train),
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )
