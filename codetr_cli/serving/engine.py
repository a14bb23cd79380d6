"""Images of many requests through one detector: a bounded queue, threads that decode, one that runs the network.

Workers decode and resize images, a few ahead of the network, so that what waits longer waits as the bytes that came.
The network's thread puts images of one shape and the same options together, until a batch is full or its oldest image
has waited for `max_wait_s`. Workers make results of the detections. Which images share a batch depends on their timing:
batches round differently, see `inference.batching`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from codetr_cli.images.decoder import decode_image
from codetr_cli.inference.batching import BATCHES_AHEAD
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.stream import MAX_BYTES, default_workers
from codetr_cli.inference.tiling import TiledImage, build_tiling
from codetr_cli.runtime.devices import use_device
from codetr_cli.runtime.memory import free_unused, is_out_of_memory
from codetr_cli.serving.api_errors import of_image
from codetr_cli.serving.image_job import ImageJob, QueueFullError, ServedDetector
from codetr_cli.serving.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Unexpected failures one after the other: the device does not recover, so the server should be started again."""
STUCK_S = 300.0
"""After so long in one batch, the network's thread counts as stuck."""
SMOOTHING = 0.2
"""Weight of the newest batch in the average time of an image."""
MAX_RETRY_S = 600


class Engine:
    """A detector and its threads. `load` runs in the network's thread, which alone uses the device for long.

    Args:
        load: makes the detector.
        capacity: images that are accepted and not done yet, at most.
        batch: images that the network sees at once; None: chosen for the device.
        max_wait_s: how long an image waits for others of its batch.
        max_pixels: of one image.
        max_tiles: of one image.
        timeout_s: requests that would wait longer are refused.
        metrics: counts what is done.
    """

    def __init__(
        self,
        load: Callable[[], ServedDetector],
        *,
        capacity: int,
        batch: int | None,
        max_wait_s: float,
        max_pixels: int,
        max_tiles: int,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._load, self._capacity, self._batch = load, capacity, batch
        self._max_wait_s, self._max_pixels, self._max_tiles = max_wait_s, max_pixels, max_tiles
        self._timeout_s, self._metrics = timeout_s, metrics
        self._detector: ServedDetector | None = None
        self._changed = threading.Condition()  # all below changes under it
        self._waiting: deque[ImageJob] = deque()
        self._ready: dict[Hashable, deque[ImageJob]] = {}  # by what a batch has in common
        self._to_finish: deque[ImageJob] = deque()
        self._pending = self._preparing = self._failures = 0
        self._held_bytes = 0  # of images that were decoded and are detected in tiles
        self._network_seconds = self._prepare_seconds = 0.0  # of an image, on average
        self._detecting_since: float | None = None
        self._closed = False
        self._workers = 1
        self._threads: list[threading.Thread] = []

    # ------------------------------------------------------------------------------------------------- other threads

    @property
    def detector(self) -> ServedDetector:
        """The detector; there must be one."""
        assert self._detector is not None
        return self._detector

    @property
    def pending(self) -> int:
        """Images that were accepted and are not done yet."""
        return self._pending

    @property
    def why_unhealthy(self) -> str | None:
        """Why the process should be started again; None if it need not be."""
        since = self._detecting_since
        if since is not None and time.monotonic() - since > STUCK_S:
            return f"the network has been busy with one batch for {time.monotonic() - since:.0f} s"
        if self._failures >= MAX_FAILURES:
            return f"the last {self._failures} batches failed for unexpected reasons"
        if self._threads and not self._closed and not self._threads[0].is_alive():
            return "the thread of the network has ended"
        return None

    def start(self, on_ready: Callable[[], None], on_failed: Callable[[BaseException], None]) -> None:
        """Starts the network's thread, which loads the detector and warms it up.

        Args:
            on_ready: called by that thread once images can be submitted.
            on_failed: called by that thread instead, with the error.
        """
        self._start(self._run_network, "network", on_ready, on_failed)

    def close(self, wait_s: float = 5.0) -> None:
        """Ends the threads after what they are in; a network that is stuck is not waited for any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def check_room(self, images: int = 1) -> None:
        """Ensures that images can be accepted now.

        Raises:
            QueueFullError: there are too many, or they would wait for longer than the time-out.
        """
        pending = self._pending
        if pending + images > self._capacity:
            raise QueueFullError(
                self._retry_after(pending // 2 + pending + images - self._capacity),
                f"the queue is full: {pending} of {self._capacity} places are taken. Try again later",
            )
        if pending and pending * self._image_seconds() > self._timeout_s:
            raise QueueFullError(
                self._retry_after(math.ceil(pending - self._timeout_s / self._image_seconds())),
                f"the {pending} images before would take longer than the time-out of {self._timeout_s:g} s. Try again "
                "later",
            )

    def submit(self, jobs: Sequence[ImageJob]) -> None:
        """Accepts images, all or none.

        Raises:
            QueueFullError: as `check_room`.
        """
        with self._changed:
            self.check_room(len(jobs))
            self._pending += len(jobs)
            self._metrics.queue.set(self._pending)
            self._waiting.extend(jobs)
            self._changed.notify_all()
        for job in jobs:
            job.future.add_done_callback(partial(self._drop_cancelled, job))

    def _drop_cancelled(self, job: ImageJob, future: Future[Any]) -> None:
        """Gives the place of a cancelled image to others, if no stage has it."""
        if not future.cancelled():
            return
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)
            self._leave(job)

    def _image_seconds(self) -> float:
        """The measured time for one more image."""
        return max(self._network_seconds, self._prepare_seconds / self._workers, 1e-3)

    def _retry_after(self, images: int) -> int:
        """Seconds until so many images are done; half of the queue, since all that were refused come again then."""
        return min(MAX_RETRY_S, max(1, math.ceil(images * self._image_seconds())))

    def _start(self, work: Callable[..., None], name: str, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, name=f"codetr-serve-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # ------------------------------------------------------------------------------------------------ network's thread

    def _run_network(self, on_ready: Callable[[], None], on_failed: Callable[[BaseException], None]) -> None:
        try:
            self._detector = self._load()
            self._warm_up()
        except BaseException as error:
            on_failed(error)
            return
        self._workers = default_workers(self.detector.device)
        for number in range(self._workers):
            self._start(self._run_worker, f"worker-{number}")
        on_ready()
        while (batch := self._next_batch()) is not None:
            self._detect(batch)

    def _warm_up(self) -> None:
        """Two images of the usual size: the first selects kernels, the second is timed."""
        settings: Settings = self.detector.loaded.settings
        options = DetectOptions(batch=self._batch)
        pixels = np.zeros((*settings.test.input_size, 3), np.uint8)
        for _ in range(2):
            prepared = self.detector.prepare(pixels, options)
            started = time.perf_counter()
            with self.detector.batch_size.measured(options):
                (found,) = self.detector.detect([prepared], options)
            self._network_seconds = time.perf_counter() - started
            self.detector.to_prediction(found, prepared.orig_size, options)

    def _next_batch(self) -> list[ImageJob] | None:
        """The images that the network sees next; None when the engine is closed."""
        with self._changed:
            while not self._closed:
                now = time.perf_counter()
                key, due = self._oldest_group(now)
                if key is not None and due <= now:
                    return self._take(key)
                self._changed.wait(None if key is None else due - now)
        return None

    def _oldest_group(self, now: float) -> tuple[Hashable | None, float]:
        """What the batch that is due first has in common, and when it is due."""
        first: tuple[Hashable | None, float] = (None, math.inf)
        for key, jobs in self._ready.items():
            due = jobs[0].since + (0.0 if len(jobs) >= self._size(jobs[0]) else self._max_wait_s)
            if due < first[1]:
                first = (key, due)
        return first

    def _size(self, job: ImageJob) -> int:
        """How many images a batch with this one has."""
        if self.detector.shape_of(job.prepared) is None:
            return 1
        return self.detector.batch_size.of(replace(job.options, batch=self._batch))

    def _take(self, key: Hashable) -> list[ImageJob]:
        jobs = self._ready[key]
        batch = [jobs.popleft() for _ in range(min(len(jobs), self._size(jobs[0])))]
        if not jobs:
            del self._ready[key]
        dropped = [job for job in batch if job.future.cancelled()]
        for job in dropped:
            self._leave(job)
        batch = [job for job in batch if job not in dropped]
        for job in batch:
            job.is_started = True
            self._metrics.stages.labels("batch").observe(job.passed("batch"))
        self._changed.notify_all()  # there is room for more
        return batch

    def _detect(self, batch: list[ImageJob]) -> None:
        """Runs the network; a batch that fails is divided until the image that fails is alone."""
        parts = [batch] if batch else []
        while parts:
            part = parts.pop(0)
            error = self._detect_part(part)
            if error is None:
                self._failures = 0
            elif len(part) == 1:
                self._fail(part[0], error)
            else:
                size = 1
                is_memory = is_out_of_memory(error)
                del error  # it holds the tensors of the batch
                if is_memory:
                    self.detector.batch_size.halve(len(part))
                    free_unused(self.detector.device)
                    size = max(1, len(part) // 2)
                parts[:0] = [part[first : first + size] for first in range(0, len(part), size)]

    def _detect_part(self, part: list[ImageJob]) -> Exception | None:
        started, self._detecting_since = time.perf_counter(), time.monotonic()
        lowest = min(job.options.lowest_score for job in part)  # masks are made from there on
        options = replace(part[0].options, score=lowest, class_scores={}, batch=self._batch)
        try:
            with self.detector.batch_size.measured(options):
                found = self.detector.detect([job.prepared for job in part], options)
        except Exception as error:
            return error
        finally:
            self._detecting_since = None
        seconds = time.perf_counter() - started
        self._network_seconds += SMOOTHING * (seconds / len(part) - self._network_seconds)
        self._metrics.batches.observe(len(part))
        with self._changed:
            for job, detections in zip(part, found, strict=True):
                job.detections = detections
                self._metrics.stages.labels("network").observe(job.passed("network"))
            self._to_finish.extend(part)
            self._changed.notify_all()
        return None

    # ------------------------------------------------------------------------------------------------------- workers

    def _run_worker(self) -> None:
        if self.detector.device.type == "cuda":
            use_device(self.detector.device)  # the current GPU is a thread's own
        while (work := self._next_work()) is not None:
            job, do = work
            try:
                do(job)
            except BaseException as error:
                self._fail(job, error)

    def _next_work(self) -> tuple[ImageJob, Callable[[ImageJob], None]] | None:
        with self._changed:
            while True:
                if self._to_finish:
                    return self._to_finish.popleft(), self._finish
                if self._closed:
                    return None
                if self._waiting and self._has_room_ahead():
                    self._preparing += 1
                    return self._waiting.popleft(), self._prepare
                self._changed.wait()

    def _has_room_ahead(self) -> bool:
        """Whether so few images are decoded that another one may be."""
        ahead = self._preparing + sum(map(len, self._ready.values()))
        most = self._workers + BATCHES_AHEAD * self.detector.batch_size.of(DetectOptions(batch=self._batch))
        return not ahead or (ahead < most and self._held_bytes < MAX_BYTES)

    def _prepare(self, job: ImageJob) -> None:
        try:
            self._metrics.stages.labels("queue").observe(job.passed("queue"))
            pixels = decode_image(job.content, job.name or "image", max_pixels=self._max_pixels)
            job.content = b""
            self._check_tiles(job, (pixels.shape[0], pixels.shape[1]))
            prepared = self.detector.prepare(pixels, job.options)
            shape = self.detector.shape_of(prepared)
            seconds = job.passed("prepare")
            self._metrics.stages.labels("prepare").observe(seconds)
            self._prepare_seconds += SMOOTHING * (seconds - self._prepare_seconds)
            key = (shape, id(job) if shape is None else None, job.options.nms, job.options.max_dets)
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify_all()
        with self._changed:
            job.prepared = prepared
            job.held_bytes = pixels.nbytes if isinstance(prepared, TiledImage) else 0
            self._held_bytes += job.held_bytes
            self._ready.setdefault(key, deque()).append(job)
            self._changed.notify_all()

    def _check_tiles(self, job: ImageJob, size: tuple[int, int]) -> None:
        """Refuses an image with too many tiles.

        Raises:
            ConfigError: it has.
        """
        cut = self.detector.tiles_of(job.options)
        if cut is None:
            return
        tiles = len(build_tiling(self.detector.loaded.settings, cut).tiles(size))
        if tiles > self._max_tiles:
            raise ConfigError(
                f"{size[1]} x {size[0]} pixels make {tiles:,} {cut}, and this server takes "
                f"{self._max_tiles}: use larger tiles, less overlap or a smaller image"
            )

    def _finish(self, job: ImageJob) -> None:
        assert job.detections is not None
        size = job.prepared.orig_size
        prediction = self.detector.to_prediction(job.detections, size, job.options)
        result = job.result(prediction)
        self._metrics.stages.labels("finish").observe(job.passed("finish"))
        self._metrics.images.inc()
        self._metrics.detections.inc(len(prediction))
        with self._changed:
            self._leave(job)
        with suppress(InvalidStateError):  # nobody waits for it any longer
            job.future.set_result(result)

    def _fail(self, job: ImageJob, error: BaseException) -> None:
        known = of_image(error, job.index, job.name, self._max_pixels)
        if known is None:
            self._failures += 1
        with self._changed:
            self._leave(job)
        with suppress(InvalidStateError):
            job.future.set_exception(known or error)

    def _leave(self, job: ImageJob) -> None:
        """Takes note that an image is done, failed or dropped; under `_changed`."""
        if job.is_done:
            return
        job.is_done = True
        self._pending -= 1
        self._held_bytes -= job.held_bytes
        job.content, job.prepared, job.detections = b"", None, None
        self._metrics.queue.set(self._pending)
        self._changed.notify_all()
