"""Many images through a detector: read, batched, detected and finished, in order and in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from codetr_cli.images.decoder import BrokenImageError
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.models.postprocess import Detections

Item = TypeVar("Item")
Result = TypeVar("Result")
Pixels = NDArray[np.uint8]


class BatchDetector(Protocol):
    """The parts of `detector.Detector` that a stream needs; only `detect` uses the device."""

    def prepare(self, pixels: Pixels, options: DetectOptions) -> Any:
        """An image at the size of the network, or in tiles."""

    def detect(self, images: Sequence[Any], options: DetectOptions) -> list[Detections]:
        """The detections of a batch."""

    def to_prediction(self, detections: Detections, size: tuple[int, int], options: DetectOptions) -> Prediction:
        """What is kept of them."""


def detect_stream(
    detector: BatchDetector,
    items: Iterable[Item],
    options: DetectOptions,
    *,
    read: Callable[[Item], Pixels],
    finish: Callable[[Item, Pixels, Prediction, float], Result],
    failed: Callable[[Item, BrokenImageError], Result],
) -> Iterator[Result]:
    """Detects the objects of images, one result an item, in the order of the items.

    Args:
        detector: finds the objects.
        items: what `read` understands; taken as they are needed.
        options: how.
        read: the pixels (H, W, 3) uint8 RGB of an item.
        finish: makes the result of an item from its pixels, its detections and the seconds that they took.
        failed: makes the result of an item that `read` raised an error for.
    """
    for item in items:
        started = time.perf_counter()
        try:
            pixels = read(item)
        except BrokenImageError as error:
            yield failed(item, error)
            continue
        prepared = detector.prepare(pixels, options)
        (detections,) = detector.detect([prepared], options)
        prediction = detector.to_prediction(detections, prepared.orig_size, options)
        yield finish(item, pixels, prediction, time.perf_counter() - started)
