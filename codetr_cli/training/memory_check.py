"""Memory that training needs for the worst batch of data and augmentation, measured before the first step.

The worst batch has the largest images that can share a batch, each with the most objects of any image. One forward and
backward pass runs on it; what is allocated later is added. Weights, gradients and random states are unchanged
afterwards. A GPU raises an error when memory runs out. A process on a CPU would be killed, so smaller images are
measured first, and the full size only when it is certain to fit.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from codetr_cli.config.model_settings import ViTConfig
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import normalize
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.transforms import (
    DetrAugmentation,
    LsjAugmentation,
    ResizeParams,
    ResizeShortLong,
    ResizeToCanvas,
    build_transforms,
)
from codetr_cli.images.image_header import Size
from codetr_cli.losses.build import build_objective
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.models.codetr import CoDETR
from codetr_cli.runtime.memory import capacity, free_unused, gib_text, is_out_of_memory
from codetr_cli.runtime.precision import autocast_dtype
from codetr_cli.runtime.rng import random_states, restore_random_states
from codetr_cli.runtime.synthetic import synthetic_batch
from codetr_cli.runtime.timing import memory_in_use, peak_memory, reset_peak_memory
from codetr_cli.training.recomputation import set_checkpointing

MARGIN = {"cuda": 0.03, "cpu": 0.05}  # share of the memory that must stay free: fragmentation, other programs
# On a CPU, the full size runs only when this factor times its estimate fits, and not when that would take longer.
ESTIMATE_MARGIN = 1.3
MAX_SECONDS = 20.0
SMALLEST_SIDE = 64


@dataclass(frozen=True)
class WorstBatch:
    """The largest batch of a forward pass: (height, width) in pixels, images, and objects of each image."""

    size: Size
    images: int
    objects: int

    def __str__(self) -> str:
        each = " each" if self.images > 1 else ""
        images = f"{self.images} image{'s' if self.images > 1 else ''} of {self.size[0]}x{self.size[1]}"
        return f"{images}, {self.objects} object{'' if self.objects == 1 else 's'}{each}"


@dataclass(frozen=True)
class Need:
    """Memory that a training needs for its worst batch.

    Attributes:
        needed: bytes, of the process or on its GPU.
        capacity: bytes that the process may use.
        margin: share of the capacity that must stay free.
        measured: whether the full batch ran; else the number is estimated from smaller images, or is a lower bound
            where a GPU ran out of memory.
        exceeded: whether a GPU ran out of memory.
    """

    needed: int
    capacity: int
    margin: float
    measured: bool = True
    exceeded: bool = False

    @property
    def fits(self) -> bool:
        """Whether there is enough memory."""
        return not self.exceeded and self.needed <= self.capacity * (1 - self.margin)

    @property
    def share(self) -> float:
        """Share of the capacity, to compare processes."""
        return math.inf if self.exceeded else self.needed / max(1, self.capacity)

    def __str__(self) -> str:
        how = "more than " if self.exceeded else "" if self.measured else "about "
        return f"{how}{gib_text(self.needed)} of {gib_text(self.capacity)} GiB"


# ------------------------------------------------------------------------------------------------------ the worst batch


def worst_batch(settings: Settings, dataset: CocoDataset, micro_batch: int, processes: int = 1) -> WorstBatch:
    """The largest batch that the data set and the augmentation of the settings can give to a forward pass."""
    counts = dataset.object_counts
    objects = int(counts.max(initial=0))
    if settings.data.copy_paste == "boxes":  # objects inside a pasted box come with it
        objects *= 2
    elif settings.data.copy_paste == "masks":
        objects += min(objects, settings.data.max_pasted - 1)
    # Images that are padded to one size over several processes may have any orientation.
    padded_together = processes if settings.train.global_batch_losses else 1
    grouped = settings.data.aspect_grouping and padded_together == 1
    groups = dataset.aspect_flags if grouped else np.zeros_like(dataset.aspect_flags)
    sizes = [
        _largest(settings, np.unique(dataset.sizes[groups == group], axis=0), micro_batch * padded_together)
        for group in np.unique(groups)
    ]
    divisor = settings.data.pad_divisor
    height, width = max(sizes, key=math.prod)
    return WorstBatch((-(-height // divisor) * divisor, -(-width // divisor) * divisor), micro_batch, objects)


def _largest(settings: Settings, sizes: np.ndarray, images: int) -> Size:
    """(height, width) of the largest batch of images of these sizes (N, 2)."""
    transform = build_transforms(settings.data, settings.test, train=True)
    if isinstance(transform, LsjAugmentation | ResizeToCanvas):
        return transform.canvas, transform.canvas
    reached: set[Size] = set()
    for height, width in sizes.tolist():
        if isinstance(transform, DetrAugmentation):
            reached.update(_reached_by(transform, (height, width)))
        elif isinstance(transform, ResizeShortLong):
            reached.add(_resized(transform, (height, width)))
        else:
            reached.add((height, width))
    if images == 1:
        return max(reached, key=math.prod)
    # Any two images may share a batch: it is as high as the highest and as wide as the widest.
    return max(height for height, _ in reached), max(width for _, width in reached)


def _reached_by(transform: DetrAugmentation, size: Size) -> Iterator[Size]:
    """The largest sizes that an image can get: without a crop, and by the highest, widest and largest crops."""
    yield _resized(transform.resize, size)
    limits = max(transform.resize.short_sides), transform.resize.long_side
    best = max(limits) / min(limits)
    for index in range(len(transform.resize_before_crop.short_sides)):
        before = transform.resize_before_crop.new_size(size, ResizeParams(index))
        (low_h, high_h), (low_w, high_w) = (
            (min(side, transform.crop.low), min(side, transform.crop.high)) for side in before
        )
        highest, widest = high_h / low_w, low_h / high_w
        for ratio in (highest, widest, best, 1 / best):  # height by width
            ratio = min(max(ratio, widest), highest)
            yield _resized(transform.resize, (round(1000 * ratio), 1000))


def _resized(resize: ResizeShortLong, size: Size) -> Size:
    """The largest size that an image gets."""
    largest = max(range(len(resize.short_sides)), key=lambda index: resize.short_sides[index])
    return resize.new_size(size, ResizeParams(largest))


# --------------------------------------------------------------------------------------------------------- measuring it


def measure(
    model: CoDETR,
    settings: Settings,
    worst: WorstBatch,
    device: torch.device,
    *,
    processes: int = 1,
    local_processes: int = 1,
    limit: int | None = None,
) -> Need | None:
    """Memory that a training with these settings needs for the batch; changes only activation checkpointing.

    Args:
        model: on its device, neither wrapped nor compiled yet.
        settings: precision, activation checkpointing, optimizer and FSDP matter.
        worst: the batch.
        device: of this process.
        processes: the world size.
        local_processes: processes that share this node's memory.
        limit: bytes that the process may use; None: what is available.

    Returns:
        None where the system does not report memory use, or where a network for a fixed size runs on a CPU.
    """
    set_checkpointing(model, settings.model)
    room = capacity(device, local_processes) if limit is None else limit
    fixed = isinstance(settings.model.backbone, ViTConfig) and settings.model.backbone.fixed_size is not None
    held = memory_in_use(device)
    if room is None or held is None or (fixed and device.type != "cuda"):
        return None
    allocated_later = _allocated_later(model, settings, device)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    if settings.train.fsdp:
        later = allocated_later - int((1 - 1 / processes) * (allocated_later + weights + trained))
    else:  # the buckets of gradients are allocated all the time
        later = allocated_later + (trained if processes > 1 else 0)
    with _unchanged(model, device):
        objective = build_objective(model, settings.train.loss).train()

        def growth(share: float) -> int:
            return _growth(objective, settings, _smaller(worst, share), device)

        if device.type != "cuda":
            grown, measured = estimate_growth(growth, room - held - later)
            return Need(held + grown + later, room, MARGIN["cpu"], measured)
        taken: int | None = None
        try:
            taken = growth(1.0)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    if limit is None:  # kernels loaded meanwhile use some of it
        room = capacity(device) or room
    if taken is None:
        return Need(room, room, MARGIN["cuda"], measured=False, exceeded=True)
    # Only here the allocator has released the memory of the pass.
    return Need(torch.cuda.memory_reserved(device) + taken + later, room, MARGIN["cuda"])


def estimate_growth(growth: Callable[[float], int], limit: int) -> tuple[int, bool]:
    """Memory of a step on a CPU, without risking to exceed the limit.

    Args:
        growth: bytes of a step on images with a given share of the worst batch's area.
        limit: bytes that it may use.

    Returns:
        bytes, and whether the full batch ran; else it is a linear estimate from smaller ones.
    """
    started = time.monotonic()
    least = 16 * growth(1 / 16)  # and more where libraries are loaded
    if ESTIMATE_MARGIN * least <= limit and 16 * (time.monotonic() - started) <= MAX_SECONDS:
        return growth(1.0), True
    started = time.monotonic()
    quarter = growth(1 / 4)
    seconds = time.monotonic() - started
    estimate = 4 * quarter
    if ESTIMATE_MARGIN * estimate > limit and ESTIMATE_MARGIN * 2 * quarter <= limit:
        half = growth(1 / 2)
        estimate = max(half, 3 * half - 2 * quarter)
    if ESTIMATE_MARGIN * estimate > limit or 4 * seconds > MAX_SECONDS:
        return estimate, False
    return growth(1.0), True


def _growth(objective: CollaborativeObjective, settings: Settings, worst: WorstBatch, device: torch.device) -> int:
    """Bytes by which memory grows in a forward and backward pass."""
    classes, masks = settings.model.num_classes, settings.learns_masks
    batch = synthetic_batch(worst.size, worst.images, objects=worst.objects, num_classes=classes, masks=masks)
    dtype = autocast_dtype(settings.train.precision, device)
    _start_peak(device)
    before = torch.cuda.memory_reserved(device) if device.type == "cuda" else memory_in_use(device)
    try:
        batch = batch.to(device)
        images = normalize(batch.images, batch.padding_mask, settings.data.mean, settings.data.std)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            losses = objective(images, batch.padding_mask, batch.targets)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory(device)
    finally:
        objective.zero_grad(set_to_none=True)
    return max(0, (peak or 0) - (before or 0))


@contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restores mode and random states, drops gradients, and resets the peak memory."""
    training, states = model.training, random_states(device)
    gc.collect()
    gc.freeze()  # collections inside are fast then: they visit new objects only
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        restore_random_states(states, device)
        _start_peak(device)
        gc.unfreeze()


def _start_peak(device: torch.device) -> None:
    """Releases unused memory and resets the peak memory."""
    if device.type == "cuda":
        free_unused(device)
    reset_peak_memory(device)  # collects garbage, and releases memory on a CPU


def _smaller(worst: WorstBatch, share: float) -> WorstBatch:
    """The batch with a share of the image area."""
    if share == 1.0:
        return worst
    height, width = (max(SMALLEST_SIDE, round(side * math.sqrt(share))) for side in worst.size)
    return WorstBatch((height, width), worst.images, worst.objects)


def _allocated_later(model: nn.Module, settings: Settings, device: torch.device) -> int:
    """Bytes allocated only later: by the optimizer, the average, and the copies for checkpoints."""
    weights = sum(value.nbytes for value in model.state_dict().values())
    optimizer = 2 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    average = weights if settings.train.ema_momentum else 0
    copied = weights + optimizer + average if device.type == "cpu" else 0
    return optimizer + average + copied
