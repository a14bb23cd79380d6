"""Benchmarks the data pipeline: the stages of a worker, the transfer to the device, and the loader as a whole.

Stages are timed one image after the other in this process, on the user's files and with the training's augmentation.
Rates are those of the training's own loader. Files are in the system's cache when they are timed, as in every epoch but
the first; reading them from the disk is measured separately.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from codetr_cli.benchmark.data_report import MAIN_STAGES, WORKER_STAGES, DataTiming, diagnose
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import Batch, normalize
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.loading.loader import TrainLoader, build_train_loader
from codetr_cli.data.loading.transport import pack
from codetr_cli.data.loading.workers import BatchReader
from codetr_cli.data.sample import Sample
from codetr_cli.data.targets import Target
from codetr_cli.data.transforms import DroppedSampleError
from codetr_cli.errors import DatasetError
from codetr_cli.images.decoder import BrokenImageError, read_file
from codetr_cli.runtime.devices import cpu_count
from codetr_cli.runtime.timing import Tick, seconds_of

Item = tuple[np.ndarray, Target]

KEPT_ITEMS = 16
"""Images that are kept for the stages of whole batches."""

TRANSFERS = 3
"""How often each batch of them is transferred from a worker."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What to measure.

    Attributes:
        images: number of images that are timed stage by stage.
        seconds: of each measurement of the loader.
        workers: numbers of worker processes to measure, ascending.
        device: where batches go.
        needed: images/s of the training step of one process; None where unknown.
    """

    images: int
    seconds: float
    workers: tuple[int, ...]
    device: torch.device
    needed: float | None = None

    @property
    def ticks(self) -> int:
        """How often the measurement reports progress."""
        return self.images + len(self.workers)


def worker_counts(most: int) -> tuple[int, ...]:
    """0, 1, 2, 4, ... and `most`."""
    powers = [2**power for power in range(most.bit_length()) if 2**power < most]
    return (0, *powers, most) if most else (0,)


def benchmark_data(dataset: CocoDataset, settings: Settings, spec: DataSpec, tick: Tick = lambda: None) -> DataTiming:
    """Times the data pipeline, stage by stage and as a whole.

    Args:
        dataset: training images with their augmentation.
        settings: of the training.
        spec: what to measure.
        tick: called after each image that is timed, and after each measurement of the loader.

    Raises:
        DatasetError: the images cannot be read.
    """
    batch_size = settings.train.micro_batch
    order = _build_loader(dataset, settings, spec, workers=0).sampler
    keys = ((epoch, int(index)) for epoch in range(spec.images) for index in order.batches(epoch).ravel())
    stages = _ImageStages(dataset)
    items: list[Item] = []
    with _single_thread():
        for _ in range(spec.images):
            item = stages.next_item(keys)
            if len(items) < max(batch_size, KEPT_ITEMS // batch_size * batch_size):
                items.append(item)
            tick()
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    pack_seconds, opened = _pack_batches(batches)
    per_batch_stages = {
        "batch": pack_seconds,
        "transfer": _transfer_seconds(batches, pack_seconds),
        "copy": _copy_seconds(opened, settings, spec.device),
    }
    stages_ms = {name: seconds * 1000 / spec.images for name, seconds in stages.seconds.items()}
    stages_ms |= {name: seconds * 1000 / len(items) for name, seconds in per_batch_stages.items()}
    rates = {}
    for workers in spec.workers:
        rates[workers] = _loader_rate(dataset, settings, spec, workers)
        tick()
    timing = DataTiming(
        images=spec.images,
        micro_batch=batch_size,
        stages_ms={name: stages_ms[name] for name in (*WORKER_STAGES, *MAIN_STAGES)},
        cold_read_ms=_cold_read_ms(stages.paths),
        file_bytes=float(np.mean(stages.file_bytes)),
        file_pixels=float(np.mean(stages.file_pixels)),
        network_pixels=float(np.mean([image.shape[0] * image.shape[1] for image, _ in items])),
        loader_images_per_s=rates,
        needed_images_per_s=spec.needed,
        cores=cpu_count(),
    )
    return diagnose(timing)


class _ImageStages:
    """Runs what `CocoDataset` does for one image, stage by stage, and adds up the seconds of each stage."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        self.seconds = dict.fromkeys(("read", "decode", "objects", "augment", "paste"), 0.0)
        self.paths: list[Path] = []
        self.file_bytes: list[int] = []
        self.file_pixels: list[int] = []

    def next_item(self, keys: Iterator[tuple[int, int]]) -> Item:
        """The item of the next key; keys whose image loses all objects, or may be skipped, are passed over.

        Raises:
            DatasetError: an image cannot be read, or no key is left.
        """
        for epoch, index in keys:
            try:
                return self._item(epoch, index)
            except DroppedSampleError:
                continue
            except BrokenImageError:
                if not self.dataset.skip_bad:
                    raise
        raise DatasetError("the data set has too few usable images for the benchmark: check it with `codetr prepare`")

    def _item(self, epoch: int, index: int) -> Item:
        dataset = self.dataset
        rng = np.random.default_rng([dataset.seed, epoch, index])
        orig_size, sample = self._transformed(index, rng)
        if dataset.copy_paste is not None:
            _, source = self._transformed(int(rng.integers(len(dataset))), rng)
            with self._timed("paste"):
                sample = dataset.copy_paste(sample, source, rng)
        with self._timed("augment"):
            sample = sample if dataset.mask_targets else replace(sample, masks=None)
            image_id = dataset.image_ids[index]
            target = sample.to_target(image_id=image_id, orig_size=orig_size, pad_divisor=dataset.pad_divisor)
            return np.ascontiguousarray(sample.image), target

    def _transformed(self, index: int, rng: np.random.Generator) -> tuple[tuple[int, int], Sample]:
        """(height, width) of the decoded file, and the augmented sample."""
        dataset = self.dataset
        dataset.read_bytes(index)  # into the system's cache
        with self._timed("read"):
            content = dataset.read_bytes(index)
        with self._timed("decode"):
            image = dataset.decode(index, content)
        with self._timed("objects"):
            sample = dataset.annotated(index, image)
        self.paths.append(dataset.image_path(index))
        self.file_bytes.append(len(content))
        self.file_pixels.append(math.prod(sample.size))
        with self._timed("augment"):
            return sample.size, dataset.transform(sample, rng)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


def _pack_batches(batches: Sequence[Sequence[Item]]) -> tuple[float, list[Batch]]:
    """Seconds that a worker needs to put all batches together, and the batches."""
    with _single_thread():
        started = time.perf_counter()
        packed = [pack(items) for items in batches]
        seconds = time.perf_counter() - started
    return seconds, [shared.open() for shared in packed]


def _copy_seconds(batches: Sequence[Batch], settings: Settings, device: torch.device) -> float:
    """Seconds of copying all batches to the device and normalizing them there."""

    def copy(batch: Batch) -> None:
        moved = (batch.pin_memory() if device.type == "cuda" else batch).to(device)
        normalize(moved.images, moved.padding_mask, settings.data.mean, settings.data.std)

    return sum(seconds_of(partial(copy, batch), device) for batch in batches)


def _transfer_seconds(batches: Sequence[Sequence[Item]], pack_seconds: float) -> float:
    """Seconds of transferring all batches from a worker to this process, without putting them together."""
    ready = _ReadyItems([item for items in batches for item in items])
    indices = iter(range(len(ready)))
    order = [list(islice(indices, len(items))) for items in batches]
    stream = iter(BatchReader(ready, [order[0], *order * TRANSFERS], workers=1))
    next(stream)  # the worker has started
    started = time.perf_counter()
    for _ in stream:
        pass
    return max(0.0, (time.perf_counter() - started) / TRANSFERS - pack_seconds)


def _cold_read_ms(paths: Sequence[Path]) -> float | None:
    """Mean milliseconds of reading files that the system was asked to drop from its cache; None where it cannot be."""
    if not hasattr(os, "posix_fadvise"):
        return None
    unique = list(dict.fromkeys(paths))
    for path in unique:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    for path in unique:
        read_file(path)
    return (time.perf_counter() - started) * 1000 / len(unique)


def _loader_rate(dataset: CocoDataset, settings: Settings, spec: DataSpec, workers: int) -> float:
    """Images per second of the training's loader, copied to the device, after its start."""
    loader = _build_loader(dataset, settings, spec, workers=workers)

    def endless() -> Iterator[Any]:
        epoch = 0
        while True:
            loader.set_epoch(epoch)
            yield from loader
            epoch += 1

    stream = endless()
    for _ in range(1 + workers):
        next(stream)
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < spec.seconds:
        images += len(next(stream).to(spec.device))
    rate = images / (time.perf_counter() - started)
    loader.reader.close()
    return rate


def _build_loader(dataset: CocoDataset, settings: Settings, spec: DataSpec, *, workers: int) -> TrainLoader:
    return build_train_loader(
        dataset,
        micro_batch=settings.train.micro_batch,
        workers=workers,
        seed=settings.train.seed,
        rank=0,
        world_size=1,
        aspect_grouping=settings.data.aspect_grouping,
        pin_memory=spec.device.type == "cuda",
    )


@contextmanager
def _single_thread() -> Iterator[None]:
    """Computes with one thread, as a worker does."""
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)


class _ReadyItems:
    """A data set of items that are in memory already."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        return self.items[key if isinstance(key, int) else key[1]]

    def image_path(self, index: int) -> Path:
        """A name for messages."""
        return Path(f"item {index}")
