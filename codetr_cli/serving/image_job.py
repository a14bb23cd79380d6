"""An image of a request on its way through the engine, and what the engine needs of a detector."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from codetr_cli.inference.batching import BatchSize
from codetr_cli.inference.loading import LoadedModel
from codetr_cli.inference.options import DetectOptions, TileOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.models.postprocess import Detections
from codetr_cli.serving.api_errors import ApiError


class ServedDetector(Protocol):
    """The parts of `inference.detector.Detector` that a server uses."""

    loaded: LoadedModel
    device: torch.device
    precision: str
    batch_size: BatchSize
    class_names: list[str]
    category_ids: list[int]

    def tiles_of(self, options: DetectOptions) -> TileOptions | None:
        """How large images are cut; None: not at all."""

    def prepare(self, image: Any, options: DetectOptions | None = None) -> Any:
        """An image at the size of the network, or in tiles."""

    def shape_of(self, image: Any) -> Hashable:
        """What images of one batch have in common; None: the image is a batch of its own."""

    def detect(self, images: Sequence[Any], options: DetectOptions) -> list[Detections]:
        """The detections of a batch."""

    def to_prediction(self, detections: Detections, size: tuple[int, int], options: DetectOptions) -> Prediction:
        """What is kept of them."""


@dataclass(eq=False)
class ImageJob:
    """An image of a request on its way; cancelling its future drops it, unless the network has it already.

    Attributes:
        content: bytes of the image file.
        name: that the client gave it.
        index: of the image in its request.
        options: how it is detected.
        result: makes the result of the future from the detections; a worker calls it.
        future: of the result.
        seconds: by stage, for the client.
        is_started: the network has had it.
        since: when the present stage began, by `time.perf_counter`.
        prepared: for the network.
        detections: of the network.
        held_bytes: of pixels that are in memory for the network.
        is_done: it takes no place of the queue any longer.
    """

    content: bytes
    name: str
    index: int
    options: DetectOptions
    result: Callable[[Prediction], Any]
    future: Future[Any] = field(default_factory=Future)
    seconds: dict[str, float] = field(default_factory=dict)
    is_started: bool = False
    since: float = field(default_factory=time.perf_counter)
    prepared: Any = None
    detections: Detections | None = None
    held_bytes: int = 0
    is_done: bool = False

    def passed(self, stage: str) -> float:
        """Takes note that a stage has ended, and begins the next; returns its seconds."""
        now = time.perf_counter()
        self.seconds[stage] = seconds = now - self.since
        self.since = now
        return seconds


class QueueFullError(ApiError):
    """The queue has no room for the images of a request."""

    def __init__(self, retry_after_s: int, message: str) -> None:
        super().__init__(429, "queue_full", message, retry_after_s=retry_after_s)
