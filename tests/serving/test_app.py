"""Every path of a server, over HTTP."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from codetr_cli import __version__
from codetr_cli.serving.options import ServeOptions
from tests.serving.client import ask, connect, form, get, part, post, read, request
from tests.serving.fakes import FakeDetector, served
from tests.serving.hostile import photo

KEY = "0123456789abcdef"
JSON_TYPE = "application/json"


@pytest.fixture
def detector(tiny_settings) -> FakeDetector:
    return FakeDetector(tiny_settings)


def encoded(*images: bytes, **parameters: Any) -> bytes:
    """A request in JSON."""
    given = [{"data": base64.b64encode(image).decode(), "name": f"{n}.png"} for n, image in enumerate(images)]
    return post(json.dumps({"images": given, **parameters}), JSON_TYPE)


def test_a_form_and_json_give_the_same(detector: FakeDetector):
    images = photo(64, 48), photo(32, 32, ".jpg")
    with served(detector) as server:
        first, second = ask(server.url, post(form(*images))), ask(server.url, encoded(*images))
        assert first.status == second.status == 200
        assert first.json == second.json
        assert [image["name"] for image in first.json["images"]] == ["0.png", "1.png"]
        assert first.json["images"][0]["detections"][0]["box"] == [0, 0, 64, 48]
        assert first.headers["content-type"] == JSON_TYPE
        assert {stage.partition(";")[0] for stage in first.headers["server-timing"].split(", ")} == {
            "queue", "prepare", "batch", "network", "finish",
        }  # fmt: skip


def test_parameters_reach_the_detector(detector: FakeDetector):
    with served(detector) as server:
        image = photo()
        assert ask(server.url, post(form(image, score="0.95"))).json["images"][0]["detections"] == []
        assert ask(server.url, encoded(image, score=0.95)).json["images"][0]["detections"] == []
        coco = ask(server.url, post(form(image, image, format="coco", image_ids="5,9")))
        assert [record["image_id"] for record in coco.json] == [5, 9]
        assert [record["image_id"] for record in ask(server.url, encoded(image, format="coco")).json] == [1]
        columns = ask(server.url, encoded(image, format="supervision")).json["images"][0]
        assert columns["confidence"] == [pytest.approx(0.9)]
        tiled = ask(server.url, post(form(photo(300, 300), tiles="128", overlap="0.1")))
        assert tiled.status == 200
        fields = {"nms": "hard", "max_dets": "3", "class_scores": '{"disc": 0.95, "bar": 0.95, "ring": 0.95}'}
        assert ask(server.url, post(form(image, **fields))).status == 200


def test_a_data_url_is_a_file(detector: FakeDetector):
    with served(detector) as server:
        url = "data:image/png;base64," + base64.b64encode(photo()).decode()
        assert ask(server.url, post(json.dumps({"images": [{"data": url}]}), JSON_TYPE)).status == 200


def test_odd_names_come_back(detector: FakeDetector):
    with served(detector) as server:
        for name in ("fotografía.png", "a\x1b[2Jb.png", "x" * 200):
            sent = post(part("images", photo(), name) + form())
            assert ask(server.url, sent).json["images"][0]["name"] == name


def test_one_bad_image_refuses_the_request_and_is_named(detector: FakeDetector):
    with served(detector) as server:
        answer = ask(server.url, post(form(photo(), b"text")))
        assert (answer.status, answer.code) == (422, "unreadable_image")
        assert answer.json["error"]["image"] == 1
        assert answer.json["error"]["message"].startswith("image 1 (1.png) cannot be read")


def test_probes_while_loading_and_stopping(detector: FakeDetector):
    is_loading = threading.Event()

    def load() -> FakeDetector:
        assert is_loading.wait(30)
        return detector

    with served(detector, load=load, wait=False) as server:
        until(lambda: get(server.url, "/healthz").status == 200)
        answer = get(server.url, "/readyz")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "loading", "5")
        assert ask(server.url, post(form(photo()))).code == "loading"
        assert get(server.url, "/v1/model").code == "loading"
        assert get(server.url, "/openapi.json").status == 200
        is_loading.set()
        until(lambda: get(server.url, "/readyz").status == 200)
        detector.gate.clear()
        with connect(server.url) as accepted:
            accepted.sendall(post(form(photo())))
            assert detector.entered.wait(10)
            until(lambda: server.process.service.in_flight == 1)
            server.process.stop()
            until(lambda: get(server.url, "/readyz").status == 503)
            assert get(server.url, "/healthz").status == 200
            refused = ask(server.url, post(form(photo())))
            assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "stopping", "10")
            detector.gate.set()
            assert read(accepted).status == 200  # what was accepted is answered
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert server.errors == []


def until(condition: Any) -> None:
    """Waits for what the server does; it may not listen yet."""
    end = time.monotonic() + 20
    while True:
        with suppress(ConnectionError):
            if condition():
                return
        assert time.monotonic() < end
        time.sleep(0.01)


def test_keys(detector: FakeDetector):
    with served(detector, ServeOptions(api_key=KEY)) as server:
        for path in ("/healthz", "/readyz", "/openapi.json"):
            assert get(server.url, path).status == 200
        for path in ("/v1/model", "/metrics", "/nothing"):
            answer = get(server.url, path)
            assert (answer.status, answer.code, answer.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        for wrong in ("Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xe4\xf6", KEY):
            assert get(server.url, "/v1/model", Authorization=wrong).status == 401
        assert ask(server.url, post(form(photo()))).status == 401
        assert get(server.url, "/v1/model", Authorization=f"Bearer {KEY}").status == 200
        assert get(server.url, "/v1/model", Authorization=f"bearer  {KEY}").status == 200
        assert get(server.url, "/metrics", X_API_Key=KEY).status == 200
        assert ask(server.url, post(form(photo()), X_API_Key=KEY)).status == 200
        schema = get(server.url, "/openapi.json").json
        assert schema["paths"]["/v1/detect"]["post"]["security"] == [{"bearer": []}, {"header": []}]
        assert KEY not in json.dumps(schema)


def test_pages_of_other_origins(detector: FakeDetector):
    origin = {"Origin": "https://example.org"}
    preflight = request("OPTIONS", "/v1/detect", {**origin, "Access-Control-Request-Method": "POST"})
    with served(detector) as server:
        assert "access-control-allow-origin" not in ask(server.url, post(form(photo()), **origin)).headers
        assert ask(server.url, preflight).status == 405
    options = ServeOptions(cors_origins=("https://example.org",), api_key=KEY)
    with served(detector, options) as server:
        answer = ask(server.url, post(form(photo()), X_API_Key=KEY, **origin))
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        assert ask(server.url, preflight).status == 200
        refused = ask(server.url, post(form(photo()), **origin))  # a page can read the error
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://example.org")
        other = ask(server.url, post(form(photo()), X_API_Key=KEY, Origin="https://other.org"))
        assert "access-control-allow-origin" not in other.headers


def test_overload_is_refused_before_the_body_comes(detector: FakeDetector):
    with served(detector, ServeOptions(queue=4, max_images=4, batch=1)) as server, ThreadPoolExecutor(4) as pool:
        detector.gate.clear()
        waiting = [pool.submit(ask, server.url, post(form(photo()))) for _ in range(4)]
        until(lambda: server.process.service.engine.pending == 4)
        head = request(
            "POST", "/v1/detect", {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "999"}
        )
        answer = ask(server.url, head)
        assert (answer.status, answer.code) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) == answer.json["error"]["retry_after_s"] >= 1
        detector.gate.set()
        assert [each.result().status for each in waiting] == [200] * 4
        assert ask(server.url, post(form(photo()))).status == 200


def test_time_outs(detector: FakeDetector):
    with served(detector, ServeOptions(timeout_s=0.3, batch=1)) as server, ThreadPoolExecutor(1) as pool:
        detector.gate.clear()
        detecting = pool.submit(ask, server.url, post(form(photo())))
        assert detector.entered.wait(10)
        time.sleep(0.1)
        waiting = ask(server.url, post(form(photo())))
        assert (waiting.status, waiting.code) == (503, "overloaded")
        assert int(waiting.headers["retry-after"]) > 0
        assert (detecting.result().status, detecting.result().code) == (504, "timeout")
        detector.gate.set()
        until(lambda: server.process.service.engine.pending == 0)
        assert ask(server.url, post(form(photo()))).status == 200


def test_a_client_that_leaves_costs_no_detection(detector: FakeDetector):
    with served(detector, ServeOptions(batch=1)) as server, ThreadPoolExecutor(1) as pool:
        detector.gate.clear()
        first = pool.submit(ask, server.url, post(form(photo())))
        assert detector.entered.wait(10)
        with connect(server.url) as leaving:
            leaving.sendall(post(form(photo())))
            until(lambda: server.process.service.engine.pending == 2)
        until(lambda: server.process.service.in_flight == 1)
        detector.batches.clear()
        detector.gate.set()
        assert first.result().status == 200
        until(lambda: server.process.service.engine.pending == 0)
        assert detector.batches == [1]
        assert 'status="499"' in get(server.url, "/metrics").body.decode()


def test_an_unexpected_error_is_logged_and_not_shown(detector: FakeDetector, caplog: pytest.LogCaptureFixture):
    with served(detector) as server:
        detector.fails = lambda images: RuntimeError("secret of the server")
        answer = ask(server.url, post(form(photo())))
        assert (answer.status, answer.code) == (500, "internal_error")
        assert b"secret" not in answer.body
        assert b"Traceback" not in answer.body
        number = answer.json["error"]["error_id"]
        logged = [record.getMessage() for record in caplog.records if number in record.getMessage()]
        assert any("secret of the server" in line for line in logged)
        assert any("fakes.py" in line for line in logged)
        detector.fails = lambda images: None
        assert ask(server.url, post(form(photo()))).status == 200


def test_a_bug_outside_of_the_detector_has_the_form_of_errors(detector: FakeDetector, monkeypatch: pytest.MonkeyPatch):
    with served(detector) as server:
        monkeypatch.setattr(server.process.service.metrics, "text", lambda: 1 / 0)
        answer = get(server.url, "/metrics")
        assert (answer.status, answer.code) == (500, "internal_error")


def test_an_unhealthy_server_says_so(detector: FakeDetector):
    with served(detector, ServeOptions(batch=1)) as server:
        detector.fails = lambda images: RuntimeError("device-side assert")
        for _ in range(3):
            assert ask(server.url, post(form(photo()))).status == 500
        assert get(server.url, "/healthz").code == "unhealthy"


def test_the_model(detector: FakeDetector):
    with served(detector, ServeOptions(max_pixels=1000)) as server:
        found = get(server.url, "/v1/model").json
        assert found["classes"][2] == {"label": 2, "name": "ring", "category_id": 7}
        assert found["name"] == "tiny"
        assert found["protocol"]["short_side"] == 96
        assert found["limits"]["pixels"] == 1000
        assert found["versions"]["codetr"] == __version__
        assert set(found["weights"]) == {"file", "sha256", "licence"}


def test_metrics_count(detector: FakeDetector):
    with served(detector) as server:
        assert ask(server.url, post(form(photo(), photo()))).status == 200
        assert get(server.url, "/no-such-path").status == 404
        answer = get(server.url, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        text = answer.body.decode()
        assert 'codetr_requests_total{code="",route="/v1/detect",status="200"} 1.0' in text
        assert 'codetr_requests_total{code="not_found",route="other",status="404"} 1.0' in text
        assert "codetr_images_total 2.0" in text
        assert "codetr_detections_total 2.0" in text
        assert 'codetr_stage_seconds_count{stage="network"} 2.0' in text
        assert 'codetr_stage_seconds_count{stage="total"} 1.0' in text
        assert "codetr_ready_processes 1.0" in text


def test_the_description_of_the_api(detector: FakeDetector):
    with served(detector) as server:
        schema = get(server.url, "/openapi.json").json
        assert schema["info"]["version"] == __version__
        assert set(schema["paths"]) == {"/v1/detect", "/v1/model", "/healthz", "/readyz", "/metrics"}
        detect = schema["paths"]["/v1/detect"]["post"]
        assert set(detect["requestBody"]["content"]) == {"multipart/form-data", JSON_TYPE}
        assert {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"} <= set(detect["responses"])
        assert "HTTPValidationError" not in json.dumps(schema)
        references = {text.split('"')[0] for text in json.dumps(schema).split('"$ref": "#/components/schemas/')[1:]}
        assert references <= set(schema["components"]["schemas"])
        for example in detect["requestBody"]["content"][JSON_TYPE]["examples"].values():  # they work
            assert ask(server.url, post(json.dumps(example["value"]), JSON_TYPE)).status == 200
        for path in ("/docs", "/redoc"):  # they would load scripts from elsewhere
            assert get(server.url, path).status == 404


def test_requests_are_logged_when_asked(detector: FakeDetector, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "codetr_cli")
    with served(detector, ServeOptions(log_requests=True)) as server:
        get(server.url, "/no\x1bsuch")
        ask(server.url, post(form(photo())))
    lines = [record.getMessage() for record in caplog.records]
    assert any("POST /v1/detect 200" in line for line in lines)
