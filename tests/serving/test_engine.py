"""The queue, batches and threads of a server, with a detector that waits when it is asked to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from codetr_cli.inference.options import DetectOptions, TileOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.serving import engine as engine_module
from codetr_cli.serving.api_errors import ApiError
from codetr_cli.serving.engine import Engine
from codetr_cli.serving.image_job import ImageJob, QueueFullError
from codetr_cli.serving.metrics import Metrics
from tests.serving.fakes import FakeDetector
from tests.serving.hostile import photo, png


@contextmanager
def running(detector: FakeDetector, **changed: Any) -> Iterator[Engine]:
    """An engine that is ready."""
    named = {"capacity": 8, "batch": 4, "max_wait_s": 0.0, "max_pixels": 10_000_000, "max_tiles": 20, "timeout_s": 60.0}
    engine = Engine(lambda: detector, metrics=Metrics(), **{**named, **changed})
    is_ready, errors = threading.Event(), []
    engine.start(is_ready.set, errors.append)
    assert is_ready.wait(30), errors
    detector.batches.clear()
    detector.entered.clear()
    try:
        yield engine
    finally:
        detector.gate.set()
        engine.close()


def job(content: bytes, index: int = 0, **options: Any) -> ImageJob:
    return ImageJob(content, "a.png", index, DetectOptions(**options), lambda prediction: prediction)


def until(condition: Any) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def detector(tiny_settings) -> FakeDetector:
    return FakeDetector(tiny_settings)


def test_an_image_becomes_its_prediction(detector: FakeDetector):
    with running(detector) as engine:
        asked = job(photo(64, 48))
        engine.submit([asked])
        found: Prediction = asked.future.result(30)
        assert found.boxes.tolist() == [[0, 0, 64, 48]]
        assert list(asked.seconds) == ["queue", "prepare", "batch", "network", "finish"]
        until(lambda: engine.pending == 0)
        assert asked.content == b""  # nothing of it stays in memory


def test_images_of_one_shape_and_options_share_batches(detector: FakeDetector):
    with running(detector, max_wait_s=30.0) as engine:
        jobs = [job(photo(64, 48), number) for number in range(4)]  # a full batch waits for nothing
        engine.submit(jobs)
        for each in jobs:
            each.future.result(10)
        assert detector.batches == [4]


def test_a_batch_waits_no_longer_than_allowed(detector: FakeDetector):
    with running(detector, max_wait_s=0.05) as engine:
        jobs = [job(photo(64, 48)), job(photo(48, 64)), job(photo(64, 48), nms="none"), job(photo(64, 48), max_dets=1)]
        engine.submit(jobs)
        for each in jobs:
            each.future.result(10)
        assert detector.batches == [1, 1, 1, 1]


def test_scores_do_not_divide_batches_and_each_image_has_its_own(detector: FakeDetector):
    with running(detector, max_wait_s=30.0) as engine:
        jobs = [job(photo(), score=score) for score in (0.1, 0.95, 0.5, 0.91)]
        engine.submit(jobs)
        assert [len(each.future.result(10)) for each in jobs] == [1, 0, 1, 0]
        assert detector.batches == [4]


def test_the_queue_is_bounded_and_says_when_to_come_back(detector: FakeDetector):
    detector.seconds = 0.2
    with running(detector, batch=1) as engine:
        detector.gate.clear()
        jobs = [job(photo(), number) for number in range(8)]
        engine.submit(jobs[:6])
        with pytest.raises(QueueFullError, match="6 of 8 places") as caught:
            engine.submit([job(photo()) for _ in range(3)])  # all or none
        assert engine.pending == 6
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
        engine.submit(jobs[6:])
        assert engine._retry_after(50) == pytest.approx(10, abs=2)  # 0.2 s each, as measured
        detector.gate.set()
        for each in jobs:
            each.future.result(30)
        until(lambda: engine.pending == 0)


def test_images_that_could_not_be_done_in_time_are_refused(detector: FakeDetector):
    detector.seconds = 0.3
    with running(detector, batch=1, timeout_s=1.0) as engine:
        detector.gate.clear()
        engine.submit([job(photo()) for _ in range(5)])
        with pytest.raises(QueueFullError, match="would take longer than the time-out of 1 s"):
            engine.submit([job(photo())])


def test_a_cancelled_image_makes_room_and_is_not_detected(detector: FakeDetector):
    with running(detector, batch=1) as engine:
        detector.gate.clear()
        first = job(photo())
        engine.submit([first])
        assert detector.entered.wait(10)
        others = [job(photo(), number) for number in range(7)]
        engine.submit(others)
        for each in others:
            assert each.future.cancel()
        detector.gate.set()
        first.future.result(10)
        until(lambda: engine.pending == 0)
        assert detector.batches == [1]
        with pytest.raises(CancelledError):
            others[0].future.result(0)


def test_the_image_that_fails_is_alone(detector: FakeDetector):
    detector.fails = lambda images: RuntimeError("bad one") if any(i.pixels[0, 0, 0] == 255 for i in images) else None
    white = photo_of(255)
    with running(detector, max_wait_s=30.0) as engine:
        jobs = [job(photo_of(0)), job(white), job(photo_of(1)), job(photo_of(2))]
        engine.submit(jobs)
        assert [len(jobs[n].future.result(10)) for n in (0, 2, 3)] == [1, 1, 1]
        with pytest.raises(RuntimeError, match="bad one"):
            jobs[1].future.result(10)
        assert engine.why_unhealthy is None


def test_a_batch_that_the_memory_cannot_hold_is_halved(detector: FakeDetector):
    detector.fails = lambda images: MemoryError("no room") if len(images) > 1 else None
    with running(detector, max_wait_s=30.0) as engine:
        jobs = [job(photo_of(0)) for _ in range(4)]
        engine.submit(jobs)
        for each in jobs:
            each.future.result(10)
        assert detector.batches == [1, 1, 1, 1]
        assert detector.batch_size.of(DetectOptions(batch=4)) == 1  # from now on


def test_one_image_without_memory_is_an_error_of_its_own(detector: FakeDetector):
    detector.fails = lambda images: MemoryError("no room")
    with running_after_warm_up(detector) as engine:
        asked = job(photo())
        engine.submit([asked])
        with pytest.raises(ApiError, match="needs more memory") as caught:
            asked.future.result(10)
        assert caught.value.status == 503


@contextmanager
def running_after_warm_up(detector: FakeDetector, **changed: Any) -> Iterator[Engine]:
    fails, detector.fails = detector.fails, lambda images: None
    with running(detector, **changed) as engine:
        detector.fails = fails
        yield engine


def test_a_device_that_always_fails_makes_the_server_unhealthy(detector: FakeDetector):
    with running(detector, batch=1) as engine:
        detector.fails = lambda images: RuntimeError("device-side assert")
        for _ in range(engine_module.MAX_FAILURES):
            asked = job(photo())
            engine.submit([asked])
            with pytest.raises(RuntimeError):
                asked.future.result(10)
        assert "unexpected reasons" in (engine.why_unhealthy or "")
        detector.fails = lambda images: None
        asked = job(photo())
        engine.submit([asked])
        asked.future.result(10)
        until(lambda: engine.why_unhealthy is None)


def test_a_stuck_network_makes_the_server_unhealthy(detector: FakeDetector, monkeypatch: pytest.MonkeyPatch):
    with running(detector) as engine:
        detector.gate.clear()
        engine.submit([job(photo())])
        assert detector.entered.wait(10)
        assert engine.why_unhealthy is None
        monkeypatch.setattr(engine_module, "STUCK_S", 0.0)
        assert "busy with one batch" in (engine.why_unhealthy or "")


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (png(5000, 5000), 413, "counts 25,000,000 pixels, and this server decodes images of up to 10,000,000"),
        (photo()[:-20], 422, "cannot be read"),
        (b"text", 422, "cannot be read"),
    ],
)
def test_files_that_are_no_images(detector: FakeDetector, content: bytes, status: int, words: str):
    with running(detector) as engine:
        asked = job(content, 3)
        engine.submit([asked])
        with pytest.raises(ApiError, match=words) as caught:
            asked.future.result(10)
        assert (caught.value.status, caught.value.details["image"]) == (status, 3)
        until(lambda: engine.pending == 0)
        assert engine.why_unhealthy is None


def test_tiles_are_limited_and_alone(detector: FakeDetector):
    with running(detector, max_wait_s=30.0) as engine:
        tiles = TileOptions(size=(128, 128), overlap=0.0)
        few, many = job(photo(300, 300), tiles=tiles), job(photo(900, 900), tiles=tiles)
        engine.submit([few, many])
        assert len(few.future.result(10)) == 1  # without waiting for others
        with pytest.raises(ApiError, match=r"make 64 tiles .* takes 20"):
            many.future.result(10)
        until(lambda: engine._held_bytes == 0)


def test_tiles_of_an_exported_file_are_limited_too(detector: FakeDetector):
    detector.loaded.tiles = TileOptions(size=(128, 128), overlap=0.0)
    with running(detector) as engine:
        many = job(photo(900, 900))
        engine.submit([many])
        with pytest.raises(ApiError, match=r"make 64 tiles of 128x128.* takes 20"):
            many.future.result(10)


def test_images_wait_as_files_not_as_pixels(detector: FakeDetector):
    with running(detector, batch=1, capacity=100) as engine:
        detector.gate.clear()
        jobs = [job(photo(), number) for number in range(50)]
        engine.submit(jobs)
        assert detector.entered.wait(10)
        most = engine._workers + engine_module.BATCHES_AHEAD
        until(lambda: sum(each.prepared is not None for each in jobs) >= most)
        time.sleep(0.05)
        assert sum(each.prepared is not None for each in jobs) <= most + 1
        detector.gate.set()
        for each in jobs:
            each.future.result(30)


def test_a_detector_that_cannot_be_loaded_is_reported():
    def load() -> Any:
        raise OSError("no such file")

    named = {"batch": None, "max_wait_s": 0.0, "max_pixels": 1, "max_tiles": 1, "timeout_s": 1.0}
    engine = Engine(load, capacity=1, metrics=Metrics(), **named)
    failed, errors = threading.Event(), []
    engine.start(lambda: None, lambda error: (errors.append(error), failed.set()))
    assert failed.wait(10)
    assert isinstance(errors[0], OSError)


def photo_of(red: int) -> bytes:
    """An image of one colour."""
    import cv2
    import numpy as np

    return cv2.imencode(".png", np.full((32, 32, 3), (0, 0, red), np.uint8))[1].tobytes()
