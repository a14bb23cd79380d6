"""Which images a network sees at once: how many, and which of those that are waiting."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from codetr_cli.inference.options import DetectOptions
from codetr_cli.runtime.memory import capacity
from codetr_cli.runtime.timing import memory_in_use, peak_memory, reset_peak_memory

logger = logging.getLogger(__name__)

Waiting = TypeVar("Waiting")

LARGEST_AUTO_BATCH = 8
"""Larger batches keep a GPU hardly busier at the published input sizes."""
MEMORY_SHARE = 0.5
"""Of the free memory that an automatic batch may fill: later images may be larger than the first."""
BATCHES_AHEAD = 4
"""An image waits for others of its size until this many batches of later images have been read."""


class BatchSize:
    """How many images a network sees at once.

    By default 1 on a CPU, where more make a network hardly faster; on a GPU the memory that the first image took
    decides. Batches that the memory of the device cannot hold are halved, for good.

    Args:
        device: where the network runs.
        fixed: of an exported file that takes just so many, fewer being filled up; None: any number.
    """

    def __init__(self, device: torch.device, fixed: int | None = None) -> None:
        self.device, self.fixed = device, fixed
        self._limit: int | None = None  # what the memory was found to hold
        self._auto = fixed or (1 if device.type != "cuda" else None)

    def of(self, options: DetectOptions) -> int:
        """Images at once with these options, now; an automatic batch that was not measured yet is one image."""
        size = (1 if options.exact else options.batch) or self._auto or 1
        return size if self._limit is None else min(size, self._limit)

    @contextmanager
    def measured(self, options: DetectOptions) -> Iterator[None]:
        """Around the detection of one image: its memory decides on the automatic size, if that is unknown."""
        if options.images_at_once(self.device.type) is not None or self._auto is not None:
            yield
            return
        reset_peak_memory(self.device)
        before = memory_in_use(self.device)
        yield
        peak, free = peak_memory(self.device), capacity(self.device)
        if before is None or peak is None or free is None:
            self._auto = 1
            return
        self._auto = max(1, min(LARGEST_AUTO_BATCH, int(MEMORY_SHARE * (free - before) / max(peak - before, 1))))

    def halve(self, count: int) -> None:
        """Takes note that a batch of `count` images, at least 2, ran out of memory."""
        self._limit = max(1, count // 2)
        images = "1 image" if self._limit == 1 else f"{self._limit} images"
        logger.warning("out of memory with %d images at once: from now on %s at once", count, images)


class LikeShapes(Generic[Waiting]):
    """Sorts images by their shape into batches, in an order that depends on nothing but the images.

    A batch is complete when enough images of a shape have come, or when its oldest image has waited for long. Those
    that wait are at most `BATCHES_AHEAD` batches.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[tuple[int, Waiting]]] = {}  # the shape whose image has waited longest first

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, number: int, shape: Hashable, image: Waiting) -> None:
        """Adds an image; numbers ascend."""
        self._waiting.setdefault(shape, []).append((number, image))

    def take(self, number: int, size: int) -> list[Waiting] | None:
        """A batch that is complete now that the image of this number has come, in order; None if none is."""
        full = next((shape for shape, images in self._waiting.items() if len(images) >= size), None)
        if full is not None:
            return self._take(full, size)
        if self._waiting and number - self._oldest_number() >= size * BATCHES_AHEAD - 1:
            return self.take_oldest(size)
        return None

    def take_oldest(self, size: int) -> list[Waiting]:
        """The batch of the image that has waited longest; there must be one."""
        return self._take(next(iter(self._waiting)), size)

    def _oldest_number(self) -> int:
        return next(iter(self._waiting.values()))[0][0]

    def _take(self, shape: Hashable, size: int) -> list[Waiting]:
        images = self._waiting.pop(shape)
        if len(images) > size:  # the rest has waited for less long than the oldest of another shape, or longer
            self._waiting[shape] = images[size:]
            self._waiting = dict(sorted(self._waiting.items(), key=lambda entry: entry[1][0][0]))
        return [image for _, image in images[:size]]
