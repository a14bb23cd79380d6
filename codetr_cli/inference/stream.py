"""Many images through a detector: read, batched, detected and finished, in order and in bounded memory.

Reader threads take items one after the other, and decode and resize them side by side. The calling thread puts images
of one shape together and runs the network, which alone uses the device. Finisher threads make the results. OpenCV,
Pillow and PyTorch release the interpreter's lock in all three, so that threads are enough.

What is in flight is bounded twice, in images and in bytes of pixels: before the network, and behind it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_cli.images.decoder import BrokenImageError
from codetr_cli.inference.batching import BATCHES_AHEAD, BatchSize, LikeShapes
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.inference.stage_seconds import StageSeconds
from codetr_cli.models.postprocess import Detections
from codetr_cli.runtime.devices import cpu_count, use_device
from codetr_cli.runtime.memory import free_unused, is_out_of_memory, local_processes

Item = TypeVar("Item")
Result = TypeVar("Result")
Pixels = NDArray[np.uint8]

MAX_BYTES = 512 * 2**20
"""Pixels that wait for the network, and as many that wait for what comes after it; a larger image is alone."""
STALL_S = 0.05
"""After so long without a new item, a batch that is not complete goes to the network."""
MAX_WAITING = 1000
"""Results that wait for the one of an image before them that takes long."""
CLOSE_S = 1.0
"""How long a stream that is closed waits for items that block."""
READ_CLOSE_S = 10.0
"""How long it waits for images that are being read, from a dead network disk for example."""
MOST_WORKERS = 8


class Prepared(Protocol):
    """An image as the network takes it."""

    @property
    def orig_size(self) -> tuple[int, int]:
        """(height, width) of the image as given."""


class BatchDetector(Protocol):
    """The parts of `detector.Detector` that a stream needs; only `detect` uses the device for long."""

    device: torch.device
    batch_size: BatchSize

    def prepare(self, pixels: Pixels, options: DetectOptions) -> Prepared:
        """An image at the size of the network, or in tiles."""

    def shape_of(self, image: Any) -> Hashable:
        """Images of one shape need no padding in a batch; None: the image is a batch of its own."""

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
    weigh: Callable[[Item], int] = lambda item: 0,
    stages: StageSeconds | None = None,
) -> Generator[Result, None, None]:
    """Detects the objects of images, one result an item, in the order of the items.

    Any other error of a stage is raised in place of its item's result and ends the stream. Closing the generator ends
    its threads, after the work that they are in; an item whose iterator blocks is not waited for.

    Args:
        detector: finds the objects.
        items: what `read` understands; taken one by one, as they are needed, by other threads.
        options: how.
        read: the pixels (H, W, 3) uint8 RGB of an item; called by several threads at once.
        finish: makes the result of an item from its pixels, its detections and the seconds of work on it; called by
            several threads at once.
        failed: makes the result of an item that any stage raised a `BrokenImageError` for, `read` or one that reads
            tiles; called by the calling thread.
        weigh: bytes of the pixels that `read` will return, as far as they are known before.
        stages: adds up what the stages take.
    """
    stream = _Stream(detector, iter(items), options, read, finish, weigh, stages or StageSeconds())
    with closing(stream):
        stream.start()
        while (slot := stream.next_done()) is not None:
            if slot.unreadable is not None:
                yield failed(slot.item, slot.unreadable)
            elif slot.error is not None:
                raise slot.error
            else:
                yield slot.result


def default_workers(device: torch.device) -> int:
    """Threads that read, and as many that finish; on a CPU they use the cores that the network does not use.

    More would take the network's cores from it: with two cores, two threads of each kind instead of one make a small
    network, and all with it, a third slower (measured).
    """
    cores = max(1, cpu_count() // local_processes(1))
    if device.type == "cpu":
        cores = (cores - torch.get_num_threads() + 1) // 2
    return max(1, min(MOST_WORKERS, cores))


@dataclass(eq=False)
class _Slot:
    """An item on its way; what no later stage needs is released."""

    item: Any
    number: int
    weight: int = 0
    seconds: float = 0.0
    pixels: Any = None
    prepared: Any = None
    detections: Detections | None = None
    result: Any = None
    unreadable: BrokenImageError | None = None
    error: BaseException | None = None
    is_read: bool = False
    is_done: bool = False

    @property
    def has_failed(self) -> bool:
        return self.error is not None or self.unreadable is not None

    def release(self) -> None:
        self.pixels = self.prepared = self.detections = None


class _Stream(Generic[Item, Result]):
    """The state that the threads share: all of it changes under `_changed` only."""

    def __init__(
        self,
        detector: BatchDetector,
        items: Iterator[Item],
        options: DetectOptions,
        read: Callable[[Item], Pixels],
        finish: Callable[[Item, Pixels, Prediction, float], Result],
        weigh: Callable[[Item], int],
        stages: StageSeconds,
    ) -> None:
        self._detector, self._items, self._options = detector, items, options
        self._read, self._finish, self._weigh, self._stages = read, finish, weigh, stages
        self._workers = options.workers or default_workers(detector.device)
        self._readers: list[threading.Thread] = []
        self._finishers: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._slots: deque[_Slot] = deque()  # in order, until their results are taken
        self._coming: deque[_Slot] = deque()  # in order, until they and all before them are read
        self._shapes: LikeShapes[_Slot] = LikeShapes()
        self._to_finish: deque[_Slot] = deque()
        self._ahead = self._ahead_bytes = 0  # images on the way to the network
        self._behind = self._behind_bytes = 0  # that have left it and are not finished
        self._taken = self._reading = self._arrived = 0
        self._taker: threading.Thread | None = None  # the thread that waits for the next item
        self._lacks_room = False  # the next item waits for others to leave
        self._ended = self._closed = False

    # --------------------------------------------------------------------------------------------- the calling thread

    def start(self) -> None:
        """Starts the threads."""
        kinds = (("read", self._read_items, self._readers), ("finish", self._finish_items, self._finishers))
        for kind, work, threads in kinds:
            for number in range(self._workers):
                thread = threading.Thread(target=work, name=f"codetr-{kind}-{number}", daemon=True)
                thread.start()
                threads.append(thread)

    def close(self) -> None:
        """Ends the threads; what they have begun is completed, unless it is a file that cannot be read for long."""
        with self._changed:
            self._closed = True
            self._to_finish.clear()
            self._changed.notify_all()
            taker = self._taker
        deadline = time.monotonic() + READ_CLOSE_S
        for thread in self._readers:
            thread.join(CLOSE_S if thread is taker else max(0.0, deadline - time.monotonic()))
        for thread in self._finishers:
            thread.join()

    def next_done(self) -> _Slot | None:
        """The next slot in order, with its result or error, once it has one; None at the end."""
        while True:
            found = self._wait()
            if not isinstance(found, list):
                return found
            self._detect(found)

    def _wait(self) -> _Slot | list[_Slot] | None:
        """The next slot in order if it is done, else a batch for the network; None at the end."""
        with self._changed:
            stalled = False
            while True:
                if self._slots and self._slots[0].is_done:
                    self._changed.notify_all()
                    return self._slots.popleft()
                if self._ended and not self._slots:
                    return None
                has_room = not self._behind or (self._behind <= 2 * self._workers and self._behind_bytes < MAX_BYTES)
                if has_room and (batch := self._next_batch(stalled)):
                    return self._to_network(batch)
                # Images that are being read come soon; when the next item comes, nobody knows.
                is_waiting = has_room and bool(self._shapes) and not self._reading
                started = time.perf_counter()
                stalled = not self._changed.wait(STALL_S if is_waiting else None)
                self._stages.add("wait", time.perf_counter() - started)

    def _next_batch(self, stalled: bool) -> list[_Slot] | None:
        """The images that the network sees next; what they are depends on the images alone unless items stall."""
        size = self._detector.batch_size.of(self._options)
        while True:
            if batch := self._shapes.take(self._arrived, size):
                return batch
            if not (self._coming and self._coming[0].is_read):
                break
            slot = self._coming.popleft()
            self._arrived = slot.number
            if slot.has_failed:
                continue
            shape = self._detector.shape_of(slot.prepared)
            if shape is None:
                return [slot]
            self._shapes.add(slot.number, shape, slot)
        no_more = self._ended or self._lacks_room or stalled
        return self._shapes.take_oldest(size) if self._shapes and no_more and not self._reading else None

    def _to_network(self, batch: list[_Slot]) -> list[_Slot]:
        weight = sum(slot.weight for slot in batch)
        self._ahead, self._ahead_bytes = self._ahead - len(batch), self._ahead_bytes - weight
        self._behind, self._behind_bytes = self._behind + len(batch), self._behind_bytes + weight
        self._changed.notify_all()
        return batch

    def _detect(self, batch: list[_Slot]) -> None:
        """Runs the network; the images of a batch that fails are divided until the one that fails is alone."""
        parts = [batch]
        while parts:
            part = parts.pop(0)
            error = self._detect_part(part)
            if error is None:
                self._hand_over(part)
            elif len(part) == 1:
                # The tiles of a large file are read here.
                part[0].unreadable = error if isinstance(error, BrokenImageError) else None
                self._leave(part[0], None if part[0].unreadable else error)
            else:
                rest, size = sum(parts, part), 1
                is_memory = is_out_of_memory(error)
                del error  # it holds the tensors of the batch
                if is_memory:
                    self._detector.batch_size.halve(len(part))
                    free_unused(self._detector.device)
                    size = self._detector.batch_size.of(self._options)
                parts = [rest[first : first + size] for first in range(0, len(rest), size)]

    def _detect_part(self, part: list[_Slot]) -> Exception | None:
        started = time.perf_counter()
        try:
            with self._detector.batch_size.measured(self._options):
                found = self._detector.detect([slot.prepared for slot in part], self._options)
        except Exception as error:
            return error
        seconds = time.perf_counter() - started
        for slot, detections in zip(part, found, strict=True):
            slot.detections = detections
            slot.seconds += seconds / len(part)
        self._stages.add_batch(len(part), seconds)
        return None

    def _hand_over(self, part: list[_Slot]) -> None:
        with self._changed:
            self._to_finish.extend(part)
            self._changed.notify_all()

    def _leave(self, slot: _Slot, error: BaseException | None = None) -> None:
        """Takes note that a slot has left the network's far side, finished or failed."""
        with self._changed:
            slot.release()
            self._behind, self._behind_bytes = self._behind - 1, self._behind_bytes - slot.weight
            if isinstance(error, BrokenImageError):  # found when a tile of a large file was read
                slot.unreadable = error
            else:
                slot.error = error
                self._ended = self._ended or error is not None
            slot.is_done = True
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------ reader threads

    def _read_items(self) -> None:
        while (slot := self._take()) is not None:
            started = prepared = time.perf_counter()
            try:
                slot.pixels = self._read(slot.item)
                prepared = time.perf_counter()
                slot.prepared = self._detector.prepare(slot.pixels, self._options)
            except BrokenImageError as error:
                slot.unreadable = error
            except BaseException as error:
                slot.error = error
            ended = time.perf_counter()
            slot.seconds = ended - started
            self._stages.add("read", prepared - started)
            self._stages.add("prepare", ended - prepared)
            with self._changed:
                self._come(slot)

    def _take(self) -> _Slot | None:
        """The next item as a slot to read; None if there is none. One thread at a time waits for items."""
        with self._changed:
            while self._taker is not None or not self._may_take():
                if self._ended or self._closed:
                    return None
                self._changed.wait()
            if self._ended or self._closed:
                return None
            self._taker = threading.current_thread()
        slot = _Slot(None, self._taken)
        try:
            slot.item = next(self._items)  # may take for ever
            slot.weight = self._weigh(slot.item)
        except StopIteration:
            return self._add(None)
        except BaseException as error:
            slot.error = error
        return self._add(slot)

    def _may_take(self) -> bool:
        """Whether so few images are on their way that another one may be read."""
        most_ahead = self._workers + BATCHES_AHEAD * self._detector.batch_size.of(self._options)
        return self._ahead < most_ahead and len(self._slots) < most_ahead + MAX_WAITING

    def _add(self, slot: _Slot | None) -> _Slot | None:
        """Adds the item to those on their way, once there is room; returns it if it is to be read."""
        with self._changed:
            while slot and self._ahead and self._ahead_bytes + slot.weight > MAX_BYTES:
                if self._ended or self._closed:
                    break
                self._lacks_room = True
                self._changed.notify_all()
                self._changed.wait()
            self._lacks_room = False
            self._taker = None
            self._changed.notify_all()
            if slot is None or self._ended or self._closed:
                self._ended = True
                return None
            self._taken += 1
            self._reading += 1
            self._ahead, self._ahead_bytes = self._ahead + 1, self._ahead_bytes + slot.weight
            self._slots.append(slot)
            self._coming.append(slot)
            if slot.error is not None:
                self._come(slot)
                return None
            return slot

    def _come(self, slot: _Slot) -> None:
        """Takes note that a slot is read or has failed; under `_changed`."""
        self._reading -= 1
        self._ahead_bytes -= slot.weight
        if slot.has_failed:
            slot.release()
            self._ahead -= 1
            self._ended = self._ended or slot.error is not None
        else:
            slot.weight = getattr(slot.pixels, "nbytes", slot.weight)
            self._ahead_bytes += slot.weight
        slot.is_read, slot.is_done = True, slot.has_failed
        self._changed.notify_all()

    # ---------------------------------------------------------------------------------------------- finisher threads

    def _finish_items(self) -> None:
        if self._detector.device.type == "cuda":
            use_device(self._detector.device)  # the current GPU is a thread's own
        while (slot := self._take_detected()) is not None:
            started, failure = time.perf_counter(), None
            try:
                assert slot.detections is not None
                size = slot.prepared.orig_size
                prediction = self._detector.to_prediction(slot.detections, size, self._options)
                slot.prepared = slot.detections = None
                slot.seconds += time.perf_counter() - started
                slot.result = self._finish(slot.item, slot.pixels, prediction, slot.seconds)
                slot.item = None
            except BrokenImageError as error:  # a large file whose parts are read again
                slot.unreadable = error
            except BaseException as error:
                failure = error
            self._stages.add("finish", time.perf_counter() - started)
            self._leave(slot, failure)

    def _take_detected(self) -> _Slot | None:
        with self._changed:
            while not self._to_finish:
                if self._closed:
                    return None
                self._changed.wait()
            return self._to_finish.popleft()
