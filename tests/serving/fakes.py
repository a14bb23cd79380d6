"""Servers for tests: in a thread, with a detector whose answers are given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codetr_cli.config.schema import Settings
from codetr_cli.images.regions import ArrayRegions
from codetr_cli.inference.batching import BatchSize
from codetr_cli.inference.options import DetectOptions, TileOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.tiling import TiledImage
from codetr_cli.models.postprocess import Detections
from codetr_cli.serving.connections import bind
from codetr_cli.serving.options import ServeOptions
from codetr_cli.serving.run import ServerProcess

CLASS_NAMES = ["disc", "bar", "ring"]


@dataclass
class FakeLoaded:
    settings: Settings
    path: Path | None = None
    tiles: TileOptions | None = None
    model: Any = None


@dataclass
class FakeImage:
    pixels: np.ndarray

    @property
    def orig_size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]


class FakeDetector:
    """Finds one object an image: a box of its size, of the class that its first pixel's red names, score 0.9.

    Args:
        settings: of the network.
        seconds: that a batch takes.
    """

    def __init__(self, settings: Settings, seconds: float = 0.0) -> None:
        self.loaded: Any = FakeLoaded(settings)
        self.device = torch.device("cpu")
        self.precision = "auto"
        self.batch_size = BatchSize(self.device)
        self.class_names = CLASS_NAMES
        self.category_ids = [2, 3, 7]
        self.seconds = seconds
        self.batches: list[int] = []
        self.gate = threading.Event()  # the network waits for it
        self.gate.set()
        self.entered = threading.Event()
        self.fails: Callable[[Sequence[Any]], Exception | None] = lambda images: None

    def tiles_of(self, options: DetectOptions) -> TileOptions | None:
        return options.tiles or self.loaded.tiles

    def prepare(self, image: Any, options: DetectOptions | None = None) -> Any:
        if options is not None and self.tiles_of(options) is not None and max(image.shape) > 200:
            return TiledImage(ArrayRegions(image))
        return FakeImage(image)

    def shape_of(self, image: Any) -> Any:
        return None if isinstance(image, TiledImage) else image.orig_size

    def detect(self, images: Sequence[Any], options: DetectOptions) -> list[Detections]:
        self.entered.set()
        assert self.gate.wait(30)
        time.sleep(self.seconds)
        error = self.fails(images)
        if error is not None:
            raise error
        self.batches.append(len(images))
        found = []
        for image in images:
            height, width = image.orig_size
            label = 0 if isinstance(image, TiledImage) else int(image.pixels[0, 0, 0]) % 3
            box = torch.tensor([[0.0, 0.0, float(width), float(height)]])
            found.append(Detections(box, torch.tensor([0.9]), torch.tensor([label])))
        return found

    def to_prediction(self, detections: Detections, size: tuple[int, int], options: DetectOptions) -> Prediction:
        labels = detections.labels.numpy()
        prediction = Prediction(
            boxes=detections.boxes.numpy(),
            scores=detections.scores.numpy(),
            labels=labels,
            category_ids=np.array(self.category_ids)[labels],
            class_names=[self.class_names[label] for label in labels],
            image_size=size,
        )
        return prediction[prediction.scores >= options.score][: options.max_dets]


@dataclass
class Served:
    """A server that runs."""

    url: str
    process: ServerProcess
    detector: FakeDetector
    thread: threading.Thread
    errors: list[BaseException] = field(default_factory=list)

    def stop(self) -> None:
        self.process.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextmanager
def served(
    detector: Any, options: ServeOptions | None = None, *, load: Callable[[], Any] | None = None, wait: bool = True
) -> Iterator[Served]:
    """A server in a thread, on a free port."""
    options = replace(options or ServeOptions(), port=0)
    bound = bind(options)
    is_ready = threading.Event()
    process = ServerProcess(load or (lambda: detector), options, bound, on_ready=lambda running: is_ready.set())
    errors: list[BaseException] = []

    def run() -> None:
        try:
            process.run()
        except BaseException as error:
            errors.append(error)

    port = bound.getsockname()[1]
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    found = Served(f"http://127.0.0.1:{port}", process, detector, thread, errors)
    try:
        if wait:
            assert is_ready.wait(60), errors
            if isinstance(detector, FakeDetector):
                detector.entered.clear()  # by the warm-up
        yield found
    finally:
        if isinstance(detector, FakeDetector):
            detector.gate.set()
        found.stop()
