from __future__ import annotations

import threading
import tracemalloc
import weakref
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from codetr_cli.errors import ResourceError
from codetr_cli.images.decoder import BrokenImageError
from codetr_cli.inference import stream
from codetr_cli.inference.batching import BATCHES_AHEAD, BatchSize
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.stage_seconds import StageSeconds
from codetr_cli.inference.stream import detect_stream

WAIT_S = 20.0  # for what comes at once unless a test fails


class FakeDetector:
    """Detects the value of an image's first pixel; its image is as wide as high."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.batch_size = BatchSize(self.device)
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.broken: dict[int, Exception] = {}
        self.most = 1000  # images that the memory holds

    def prepare(self, pixels, options):
        return SimpleNamespace(pixels=pixels, orig_size=pixels.shape[:2])

    def shape_of(self, image):
        return image.orig_size

    def detect(self, images, options):
        self.threads.add(threading.current_thread().name)
        values = [int(image.pixels[0, 0, 0]) for image in images]
        if len(values) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        for value in values:
            if value in self.broken:
                raise self.broken[value]
        self.batches.append(values)
        return values

    def to_prediction(self, detections, size, options):
        return detections


class Source:
    """Items 0, 1, ... of sides that repeat, with a count of those that are in flight."""

    def __init__(self, count: int, sides=(4,)) -> None:
        self.count, self.sides = count, sides
        self.taken = self.finished = self.most_in_flight = 0
        self.lock = threading.Lock()

    def __iter__(self):
        for number in range(self.count):
            with self.lock:
                self.taken += 1
                self.most_in_flight = max(self.most_in_flight, self.taken - self.finished)
            yield number

    def read(self, item):
        side = self.sides[item % len(self.sides)]
        return np.full((side, side, 3), item % 256, np.uint8)

    def finish(self, item, pixels, prediction, seconds):
        assert pixels[0, 0, 0] == prediction == item % 256
        assert seconds > 0
        with self.lock:
            self.finished += 1
        return item


def run(detector, source, *, batch=1, workers=2, **changes):
    options = DetectOptions(batch=batch, workers=workers)
    steps = {"read": source.read, "finish": source.finish, "failed": lambda item, error: (item, str(error))}
    return detect_stream(detector, source, options, **{**steps, **changes})


def collect(results, error, words) -> list:
    """The results before an error."""
    found = []
    with pytest.raises(error, match=words):
        deque(map(found.append, results), maxlen=0)
    return found


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("codetr-")] == []


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_results_come_in_the_order_of_the_items_and_memory_is_bounded(batch, workers):
    detector, source = FakeDetector(), Source(400, sides=(4, 5, 4, 4, 6))
    found = []
    for result in run(detector, source, batch=batch, workers=workers):
        found.append(result)
        assert source.taken - len(found) <= 2 * (workers + BATCHES_AHEAD * batch) + 2 * workers + batch + 1
    assert found == list(range(400))
    assert detector.threads == {threading.current_thread().name}  # one thread uses the device
    assert sum(map(len, detector.batches)) == 400


def test_batches_have_images_of_one_shape_and_are_the_same_every_time():
    made = []
    for _ in range(3):
        detector = FakeDetector()
        sides = (4, 5, 4, 4, 6, 4, 5)
        assert list(run(detector, Source(100, sides), batch=4, workers=3)) == list(range(100))
        made.append(detector.batches)
    assert made[0] == made[1] == made[2]
    for values in made[0]:
        assert len({sides[value % 7] for value in values}) == 1
        assert len(values) <= 4
    assert sum(len(values) == 4 for values in made[0]) > 15


def test_a_rare_shape_waits_for_a_bounded_number_of_others():
    detector, source = FakeDetector(), Source(200)

    def read(item):
        return np.full((9, 9, 3), item, np.uint8) if item == 3 else source.read(item)

    assert list(run(detector, source, batch=2, read=read)) == list(range(200))
    place = detector.batches.index([3])
    assert place <= 3 + BATCHES_AHEAD


def test_nothing_is_taken_before_the_first_result_is_asked_for():
    source = Source(5)
    results = run(FakeDetector(), source)
    assert source.taken == 0
    assert next(results) == 0
    results.close()


def test_no_items_give_no_results():
    assert list(run(FakeDetector(), Source(0))) == []


def test_the_pixels_of_large_images_do_not_multiply(monkeypatch):
    """Each is over half of what may wait: one is read or waits, one is finished."""
    monkeypatch.setattr(stream, "MAX_BYTES", 1000)
    alive: set[int] = set()
    most = [0]
    lock = threading.Lock()
    source = Source(40, sides=(16,))  # 768 bytes

    def read(item):
        pixels = source.read(item)
        with lock:
            alive.add(item)
            most[0] = max(most[0], len(alive))
        weakref.finalize(pixels, alive.discard, item)
        return pixels

    detector = FakeDetector()
    found = list(run(detector, source, batch=4, workers=4, read=read, weigh=lambda item: 768))
    assert found == list(range(40))
    assert most[0] <= 3  # the one that leaves the network while the next one is read, and one that is finished
    assert {len(values) for values in detector.batches} == {1}


def test_images_are_not_held_back_when_items_stall():
    """A camera: the next image comes after the result of the one before."""
    seen = threading.Event()

    def camera():
        for number in range(4):
            yield number
            assert seen.wait(WAIT_S), "the image was held back"
            seen.clear()

    source = Source(4)
    found = []
    options = DetectOptions(batch=8, workers=2)
    steps = {"read": source.read, "finish": source.finish, "failed": None}
    for result in detect_stream(FakeDetector(), camera(), options, **steps):
        found.append(result)
        seen.set()
    assert found == [0, 1, 2, 3]


def unreadable(item):
    if item % 3 == 1:
        raise BrokenImageError(f"no image {item}")
    return np.full((4, 4, 3), item, np.uint8)


@pytest.mark.parametrize("batch", [1, 4])
def test_items_that_cannot_be_read_have_their_place(batch):
    found = list(run(FakeDetector(), Source(10), batch=batch, read=unreadable))
    assert found == [(item, f"no image {item}") if item % 3 == 1 else item for item in range(10)]


@pytest.mark.parametrize("batch", [1, 4])
def test_items_whose_tiles_cannot_be_read_have_their_place(batch):
    detector, source = FakeDetector(), Source(10)
    detector.broken = {2: BrokenImageError("no tile of 2"), 3: BrokenImageError("no tile of 3")}

    def finish(item, *rest):
        if item == 5:
            raise BrokenImageError("no row of 5")
        return item

    found = list(run(detector, source, batch=batch, finish=finish))
    reasons = {2: "no tile of 2", 3: "no tile of 3", 5: "no row of 5"}
    assert found == [(item, reasons[item]) if item in reasons else item for item in range(10)]


def boom(item, *rest):
    if item == 7:
        raise RuntimeError(f"item {item}")
    return None if rest else np.full((4, 4, 3), item, np.uint8)


@pytest.mark.parametrize("stage", ["items", "weigh", "read", "detect", "finish"])
@pytest.mark.parametrize("batch", [1, 4])
def test_an_error_of_any_stage_is_raised_at_its_item(stage, batch):
    detector, source = FakeDetector(), Source(50)
    changes = {}
    if stage == "detect":
        detector.broken[7] = RuntimeError("item 7")
    elif stage == "items":

        def items():
            yield from range(7)
            raise RuntimeError("item 7")

        steps = {"read": source.read, "finish": source.finish, "failed": None}
        results = detect_stream(detector, items(), DetectOptions(batch=batch, workers=2), **steps)
    elif stage == "finish":
        changes["finish"] = lambda item, *rest: boom(item, *rest) or item
    else:
        changes[stage] = boom if stage == "read" else lambda item: boom(item).nbytes
    if stage != "items":
        results = run(detector, source, batch=batch, **changes)
    assert collect(results, RuntimeError, "item 7") == list(range(7))


def test_an_interrupt_in_the_network_ends_the_threads():
    detector = FakeDetector()

    def interrupted(images, options):
        raise KeyboardInterrupt

    detector.detect = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(run(detector, Source(1000)))


def test_a_stream_can_be_closed_at_any_time():
    for stop in (1, 2, 7):
        source = Source(10**9)
        results = run(FakeDetector(), source, batch=2)
        for expected in range(stop):
            assert next(results) == expected
        results.close()
        assert source.taken < 200


def test_a_stream_that_is_dropped_ends_its_threads():
    results = run(FakeDetector(), Source(10**9))
    next(results)
    del results


def test_closing_does_not_wait_for_items_that_block(monkeypatch):
    monkeypatch.setattr(stream, "CLOSE_S", 0.05)
    release = threading.Event()

    def items():
        yield 0
        release.wait(WAIT_S)

    source = Source(1)
    steps = {"read": source.read, "finish": source.finish, "failed": None}
    results = detect_stream(FakeDetector(), items(), DetectOptions(workers=2), **steps)
    assert next(results) == 0
    results.close()
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("codetr-"):
            thread.join(WAIT_S)


def test_closing_does_not_wait_for_a_file_that_blocks(monkeypatch):
    """On a network disk whose server is gone."""
    monkeypatch.setattr(stream, "READ_CLOSE_S", 0.05)
    begun, release, source = threading.Event(), threading.Event(), Source(10)

    def read(item):
        if item == 2:
            begun.set()
            release.wait(WAIT_S)
        return source.read(item)

    results = run(FakeDetector(), source, read=read)
    assert [next(results), next(results)] == [0, 1]
    assert begun.wait(WAIT_S)
    results.close()
    assert [thread.name[:11] for thread in threading.enumerate() if thread.name.startswith("codetr-")] == [
        "codetr-read"
    ]
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("codetr-"):
            thread.join(WAIT_S)


def test_results_behind_one_that_takes_long_are_bounded(monkeypatch):
    monkeypatch.setattr(stream, "MAX_WAITING", 20)
    stuck, source, finished = threading.Event(), Source(400), []

    def finish(item, pixels, prediction, seconds):
        if item == 0:
            stuck.wait(0.1)
            stuck.set()
        if not stuck.is_set():
            finished.append(item)
        return item

    assert list(run(FakeDetector(), source, finish=finish)) == list(range(400))
    assert len(finished) <= 20 + 2 + BATCHES_AHEAD


def test_what_has_begun_to_be_finished_is_completed():
    begun, completed = threading.Event(), []

    def finish(item, pixels, prediction, seconds):
        if item == 1:
            begun.set()
            released.wait(WAIT_S)
        completed.append(item)
        return item

    released = threading.Event()
    results = run(FakeDetector(), Source(100), finish=finish)
    assert next(results) == 0
    assert begun.wait(WAIT_S)
    threading.Timer(0.05, released.set).start()
    results.close()
    assert 1 in completed


def test_out_of_memory_halves_the_batches(caplog):
    detector, source = FakeDetector(), Source(64)
    detector.most = 3
    assert list(run(detector, source, batch=8)) == list(range(64))
    assert max(map(len, detector.batches)) == 2
    messages = [record.message for record in caplog.records]
    assert messages == [
        "out of memory with 8 images at once: from now on 4 images at once",
        "out of memory with 4 images at once: from now on 2 images at once",
    ]


def test_one_image_that_does_not_fit_is_an_error():
    detector = FakeDetector()
    detector.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(run(detector, Source(4), batch=4))


def test_an_error_of_the_network_is_that_of_one_image():
    detector = FakeDetector()
    detector.broken[5] = ResourceError("the device is gone")
    assert collect(run(detector, Source(8), batch=8), ResourceError, "gone") == [0, 1, 2, 3, 4]


def test_seconds_of_all_stages_are_added_up():
    stages = StageSeconds()
    list(run(FakeDetector(), Source(20), batch=4, stages=stages))
    assert (stages.images, stages.batches) == (20, 5)
    assert min(stages[name] for name in ("read", "prepare", "detect", "finish")) > 0


def test_exact_means_each_image_alone():
    detector, source = FakeDetector(), Source(20)
    options = DetectOptions(batch=8, exact=True, workers=2)
    steps = {"read": source.read, "finish": source.finish, "failed": None}
    assert list(detect_stream(detector, source, options, **steps)) == list(range(20))
    assert {len(values) for values in detector.batches} == {1}


@pytest.mark.parametrize(
    ("device", "cores", "threads", "workers"),
    [
        *(("cpu", 2, 1, 1), ("cpu", 2, 2, 1), ("cpu", 16, 8, 4), ("cpu", 16, 16, 1), ("cpu", 64, 8, 8)),
        *(("cuda", 2, 2, 2), ("cuda", 16, 16, 8)),
    ],
)
def test_workers_leave_the_network_its_cores(monkeypatch, device, cores, threads, workers):
    monkeypatch.setattr(stream, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert stream.default_workers(torch.device(device)) == workers


@pytest.mark.slow
def test_many_items_do_not_take_memory():
    detector, source = FakeDetector(), Source(60_000, sides=(1, 2))
    detector.detect = lambda images, options: [int(image.pixels[0, 0, 0]) for image in images]
    tracemalloc.start()
    for count, _ in enumerate(run(detector, source, batch=4)):
        if count == 2_000:
            before = tracemalloc.get_traced_memory()[0]
    assert tracemalloc.get_traced_memory()[0] - before < 200_000
    tracemalloc.stop()
