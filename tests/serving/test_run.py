"""A server of the tiny network, from its start to its end: signals, errors and answers."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from codetr_cli.errors import CheckpointError
from codetr_cli.inference.detector import Detector
from codetr_cli.serving import connections
from codetr_cli.serving.engine import MAX_FAILURES
from codetr_cli.serving.options import ServeOptions
from codetr_cli.weights.checkpoint import load_checkpoint, save_checkpoint
from codetr_cli.weights.licence import stated_licence
from tests.inference.fakes import write_checkpoint
from tests.serving.client import ask, form, get, post
from tests.serving.fakes import FakeDetector, served
from tests.serving.hostile import photo


def test_the_answers_are_those_of_the_detector(tmp_path, tiny_settings):
    path = write_checkpoint(tmp_path / "tiny.safetensors", tiny_settings)
    found = vars(load_checkpoint(path))
    save_checkpoint(path, **{**found, "extra": stated_licence("MIT").as_extra})
    pixels = np.random.default_rng(1).integers(0, 255, (200, 260, 3), dtype=np.uint8)
    sent = cv2.imencode(".png", pixels)[1].tobytes()
    (tmp_path / "a.png").write_bytes(sent)
    detector = Detector.load(path, "cpu")
    with served(detector, ServeOptions(batch=1)) as server:
        for fields, options in (
            ({"score": "0"}, {"score": 0.0}),
            ({"score": "0", "max_dets": "3"}, {"score": 0.0, "max_dets": 3}),
            ({"score": "0", "max_dets": "10000"}, {"score": 0.0, "max_dets": 10000}),
            ({"score": "0", "nms": "hard"}, {"score": 0.0, "nms": "hard"}),
            ({"score": "0", "tiles": "100x100"}, {"score": 0.0, "tiles": "100x100"}),
            ({"class_scores": '{"disc": 0.0}', "score": "1"}, {"class_scores": {"disc": 0.0}, "score": 1.0}),
        ):
            expected = detector.predict(tmp_path / "a.png", **options)
            answer = ask(server.url, post(form(sent, format="coco", **fields)))
            assert answer.status == 200, answer.body
            assert answer.json == expected.to_coco(1)
            assert len(expected) > 0
        model = get(server.url, "/v1/model").json
        assert model["weights"]["file"] == "tiny.safetensors"
        assert len(model["weights"]["sha256"]) == 64
        assert model["weights"]["licence"] == "MIT"


def test_a_checkpoint_that_cannot_be_loaded_ends_the_server(tmp_path):
    def load():
        return Detector.load(tmp_path / "none.safetensors", "cpu")

    with served(None, load=load, wait=False) as server:
        server.thread.join(20)
        assert isinstance(server.errors[0], CheckpointError)


def test_a_stop_waits_for_requests_longer_than_for_connections(tiny_settings, monkeypatch):
    monkeypatch.setattr(connections, "CLOSE_S", 0.1)
    detector = FakeDetector(tiny_settings)
    with served(detector) as server, ThreadPoolExecutor(1) as pool:
        detector.gate.clear()
        answer = pool.submit(ask, server.url, post(form(photo())))
        assert detector.entered.wait(10)
        server.process.stop()
        server.thread.join(0.6)
        detector.gate.set()
        assert answer.result(30).status == 200


def test_an_unhealthy_process_ends_for_a_supervisor(tiny_settings):
    detector = FakeDetector(tiny_settings)
    with served(detector) as server:
        detector.fails = lambda images: RuntimeError("device-side assert")
        for _ in range(MAX_FAILURES):
            assert ask(server.url, post(form(photo()))).status == 500
        assert server.thread.is_alive()  # alone, it only says so
        server.process._end_unhealthy = True
        server.thread.join(20)
        assert "batches failed for unexpected reasons" in str(server.errors[0])


def test_a_stop_while_loading_waits_for_nothing():
    import threading

    gate = threading.Event()
    with served(None, load=lambda: gate.wait(60), wait=False) as server:
        server.process._engine.close = lambda: None  # type: ignore[method-assign]
        server.process.stop()
        server.thread.join(20)
        assert not server.thread.is_alive()
        gate.set()
