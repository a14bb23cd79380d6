"""Measures how fast images come: what a worker spends its time on, what workers bring together, and what holds them up.

Stages are timed one image after the other in this process, on the user's files and with the training's augmentation.
Rates are those of the training's own loader. Files are read before they are timed, so that they come from the system's
cache as they do in every epoch but the first; how long they take from the disk is measured apart.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from codetr_cli.benchmark.data_report import MAIN_STAGES, WORKER_STAGES, DataTiming, judged
from codetr_cli.config.schema import Settings
from codetr_cli.data.batch import normalize
from codetr_cli.data.coco import CocoDataset
from codetr_cli.data.images import read_file
from codetr_cli.data.loading.loader import TrainLoader, build_train_loader
from codetr_cli.data.loading.transport import pack
from codetr_cli.data.loading.workers import BatchReader
from codetr_cli.data.targets import Target
from codetr_cli.runtime.timing import Tick, seconds_of

HELD = 16
"""Images that are kept to put batches together of them and hand those over."""

ROUNDS = 3
"""How often these are handed over."""


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """What to measure with.

    Attributes:
        images: that are timed stage by stage.
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


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_numbers(most: int) -> tuple[int, ...]:
    """0, 1, 2, 4, ... and `most`."""
    powers = [2**power for power in range(most.bit_length()) if 2**power < most]
    return (0, *powers, most) if most else (0,)


def benchmark_data(dataset: CocoDataset, settings: Settings, plan: DataPlan, tick: Tick = lambda: None) -> DataTiming:
    """Times reading, stage by stage and as a whole.

    Args:
        dataset: training images with their augmentation.
        settings: of the training.
        plan: what to measure with.
        tick: called after each image that is timed, and after each measurement of the loader.
    """
    stages = _Stages(dataset, settings, plan)
    stages.measure(tick)
    rates = {}
    for workers in plan.workers:
        rates[workers] = _rate(dataset, settings, plan, workers)
        tick()
    timing = DataTiming(
        images=plan.images,
        micro_batch=settings.train.micro_batch,
        stages_ms={name: seconds * 1000 / plan.images for name, seconds in stages.seconds.items()},
        cold_read_ms=stages.cold_read_ms,
        file_bytes=float(np.mean(stages.file_bytes)),
        file_pixels=float(np.mean(stages.file_pixels)),
        network_pixels=float(np.mean(stages.network_pixels)),
        loader_images_per_s=rates,
        needed_images_per_s=plan.needed,
        cores=usable_cores(),
    )
    return judged(timing, images_in_all=len(dataset))


class _Stages:
    """Reads images one by one with a clock at every stage."""

    def __init__(self, dataset: CocoDataset, settings: Settings, plan: DataPlan) -> None:
        self.dataset, self.settings, self.plan = dataset, settings, plan
        self.seconds = dict.fromkeys((*WORKER_STAGES, *MAIN_STAGES), 0.0)
        self.cold_read_ms: float | None = None
        self.file_bytes: list[int] = []
        self.file_pixels: list[int] = []
        self.network_pixels: list[int] = []

    def measure(self, tick: Tick) -> None:
        """Times as many images as the plan says, the same again where there are fewer."""
        sampler = _loader(self.dataset, self.settings, self.plan, workers=0).sampler
        order = ((epoch, int(i)) for epoch in range(self.plan.images) for i in sampler.batches(epoch).ravel())
        keys = list(islice(order, self.plan.images))
        self.cold_read_ms = self._cold_reads([self.dataset.image_path(index) for _, index in keys])
        self.dataset[keys[0]]
        size = self.settings.train.micro_batch
        held = max(size, HELD // size * size)
        samples: list[tuple[np.ndarray, Target]] = []
        for key in keys:
            sample = self._one(key)
            samples += [sample] if len(samples) < held else []
            tick()
        self._batches([samples[start : start + size] for start in range(0, len(samples), size)])
        for name in ("batch", "hand-over", "copy"):
            self.seconds[name] *= len(keys) / len(samples)

    def _one(self, key: tuple[int, int]) -> tuple[np.ndarray, Target]:
        """Reads and transforms one image, and another one to paste where the settings say so."""
        seconds = dict.fromkeys(("read", "decode", "load", "augment", "paste"), 0.0)
        dataset = self.dataset
        with ExitStack() as stack:
            stack.enter_context(_one_thread())
            stack.enter_context(_timed(dataset, "read_bytes", seconds, "read"))
            stack.enter_context(_timed(dataset, "decode", seconds, "decode", self._note_file))
            stack.enter_context(_timed(dataset, "load_sample", seconds, "load"))
            stack.enter_context(_timed(dataset, "transform", seconds, "augment"))
            if dataset.copy_paste is not None:
                stack.enter_context(_timed(dataset, "copy_paste", seconds, "paste"))
            started = time.perf_counter()
            sample = dataset[key]
            whole = time.perf_counter() - started
        self.file_pixels.append(math.prod(sample[1]["orig_size"]))
        self.network_pixels.append(sample[0].shape[0] * sample[0].shape[1])
        self.seconds["read"] += seconds["read"]
        self.seconds["decode"] += seconds["decode"]
        self.seconds["objects"] += seconds["load"] - seconds["read"] - seconds["decode"]
        self.seconds["paste"] += seconds["paste"]
        self.seconds["augment"] += whole - seconds["load"] - seconds["paste"]
        return sample

    def _note_file(self, index: int, content: bytes) -> None:
        self.file_bytes.append(len(content))

    def _batches(self, batches: Sequence[Sequence[tuple[np.ndarray, Target]]]) -> None:
        """Puts samples together, hands them from one process to another, and copies them to the device."""
        data, device = self.settings.data, self.plan.device
        for samples in batches:
            with _one_thread():
                started = time.perf_counter()
                parcel = pack(samples)
                self.seconds["batch"] += time.perf_counter() - started
            batch = parcel.open()

            def copy(batch: Any = batch) -> None:
                moved = (batch.pin_memory() if device.type == "cuda" else batch).to(device)
                normalize(moved.images, moved.padding_mask, data.mean, data.std)

            self.seconds["copy"] += seconds_of(copy, device)
        ready = _Ready([sample for samples in batches for sample in samples])
        indices = iter(range(len(ready)))
        order = [list(islice(indices, len(samples))) for samples in batches]
        stream = iter(BatchReader(ready, [order[0], *order * ROUNDS], workers=1))
        next(stream)  # when the worker is there
        started = time.perf_counter()
        for _ in stream:
            pass
        self.seconds["hand-over"] = max(0.0, (time.perf_counter() - started) / ROUNDS - self.seconds["batch"])

    @staticmethod
    def _cold_reads(paths: Sequence[Path]) -> float | None:
        """Mean milliseconds of reading files that are not in the system's cache."""
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes as a worker does."""
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)


@contextmanager
def _timed(
    owner: object, name: str, seconds: dict[str, float], key: str, note: Callable[..., object] = lambda *values: None
) -> Iterator[None]:
    """Adds up the time of calls of an object's method or part.

    Args:
        owner: of it; a module too.
        name: of the attribute.
        seconds: where the time is added.
        key: under which.
        note: called with the arguments of each call.
    """
    function, attributes = getattr(owner, name), vars(owner)
    own = name in attributes

    def call(*arguments: Any, **options: Any) -> Any:
        note(*arguments)
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[key] += time.perf_counter() - started

    attributes[name] = call
    try:
        yield
    finally:
        if own:
            attributes[name] = function
        else:
            del attributes[name]


class _Ready:
    """Samples that need no reading."""

    def __init__(self, samples: Sequence[tuple[np.ndarray, Target]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[np.ndarray, Target]:
        return self.samples[key if isinstance(key, int) else key[1]]

    def image_path(self, index: int) -> Path:
        """A name for messages."""
        return Path(f"sample {index}")


def _loader(
    dataset: CocoDataset,
    settings: Settings,
    plan: DataPlan,
    *,
    workers: int,
) -> TrainLoader:
    return build_train_loader(
        dataset,
        micro_batch=settings.train.micro_batch,
        workers=workers,
        seed=settings.train.seed,
        rank=0,
        world_size=1,
        aspect_grouping=settings.data.aspect_grouping,
        pin_memory=plan.device.type == "cuda",
    )


def _rate(dataset: CocoDataset, settings: Settings, plan: DataPlan, workers: int) -> float:
    """Images per second of the training's loader, copied to the device, once it runs."""
    loader = _loader(dataset, settings, plan, workers=workers)

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
    while time.perf_counter() - started < plan.seconds:
        images += len(next(stream).to(plan.device))
    rate = images / (time.perf_counter() - started)
    loader.reader.close()
    return rate
