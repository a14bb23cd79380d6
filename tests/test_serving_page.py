"""Commands and programs of docs/serving.md, with a small stand-in for the model and a real server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from codetr_cli.cli import main
from codetr_cli.inference.detector import Detector
from codetr_cli.serving import run
from codetr_cli.serving.api_errors import ApiError
from codetr_cli.serving.options import ServeOptions
from codetr_cli.serving.run import ServerProcess
from tests.conftest import REPOSITORY
from tests.document_blocks import blocks
from tests.inference.fakes import write_run
from tests.serving.client import get
from tests.serving.fakes import served
from tests.serving.hostile import photo

PAGE = "docs/serving.md"
TEXT = (REPOSITORY / PAGE).read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, tiny_settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page names."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/co_dino_r50/1", tiny_settings, "best")
    (tmp_path / "photo.jpg").write_bytes(photo(200, 150, ".jpg"))
    return tmp_path


def test_commands_start_a_server(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Each that is a server ends once it accepts requests."""
    started = []

    class Ending(ServerProcess):
        def __init__(self, load, options, bound, *, on_ready, **named):
            def ready(running):
                on_ready(running)
                started.append(options)
                self.stop()

            super().__init__(load, options, bound, on_ready=ready, **named)

    monkeypatch.setattr(run, "ServerProcess", Ending)
    lines = [line for block in blocks(PAGE) if block.language == "bash" for line in block.text.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("codetr serve")]
    assert [line for line in lines if not line.startswith("codetr serve")] == ["pip install 'codetr-cli[serve]'"]
    for words in commands:
        assert main([*words, "--device", "cpu", "--port", "0"]) == 0
    assert len(started) == len(commands) == 2


def test_programs_run(place: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("supervision", reason="supervision is not installed")
    detector = Detector.load("runs/co_dino_r50/1", "cpu")
    with served(detector, ServeOptions()) as server:
        text = "\n".join(block.text for block in blocks(PAGE) if block.language == "python")
        names: dict[str, object] = {}
        exec(compile(text.replace("http://127.0.0.1:8000", server.url), PAGE, "exec"), names)
    assert len(names["detections"]) == len(names["columns"]["xyxy"])
    assert capsys.readouterr().out.count("\n") == len(names["found"]["images"][0]["detections"]) > 0


def test_every_metric_and_path_of_the_page_exists(place: Path):
    detector = Detector.load("runs/co_dino_r50/1", "cpu")
    with served(detector) as server:
        metrics = get(server.url, "/metrics").body.decode()
        paths = set(get(server.url, "/openapi.json").json["paths"]) | {"/openapi.json"}
        status = get(server.url, "/v1/model").json["limits"]
    for name in re.findall(r"`(codetr_\w+)", TEXT):
        assert name in metrics, name
    assert paths == set(re.findall(r"^\| `(?:GET|POST) (/[\w/.]+)`", TEXT, flags=re.MULTILINE))
    assert status["tiles"] == 64


def test_every_code_of_an_error_is_on_the_page():
    sources = (REPOSITORY / "codetr_cli" / "serving").glob("*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    used = set(re.findall(r'ApiError\(\s*\d{3},\s*"(\w+)"', text)) | {"queue_full", "not_found", "method_not_allowed"}
    assert len(used) > 20
    assert {code for code in used if f"`{code}`" not in TEXT} == set()
    assert ApiError(429, "queue_full", "text").code in used


def test_defaults_of_the_page():
    options = ServeOptions()
    assert f"{options.max_images} images and {options.max_body // 1_000_000} MB a request" in TEXT
    assert f"{options.max_pixels:,} pixels and {options.max_tiles} tiles an image" in TEXT
    assert f"a queue of {options.queue} images, {options.timeout_s:g} s a request" in TEXT
    assert options.warnings() == []
