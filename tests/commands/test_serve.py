"""`codetr serve` as a program: what it prints, how it ends, and what it needs."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from codetr_cli.serving.requirements import PACKAGES
from tests.forked import ForkedPython, run_forked
from tests.inference.fakes import write_checkpoint
from tests.serving.client import Answer, ask, form, get, post
from tests.serving.hostile import photo

needs_packages = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None,
    reason="the extra serve is not installed",
)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_settings) -> Path:
    return write_checkpoint(tmp_path / "tiny.safetensors", tiny_settings)


class Program:
    """`codetr serve` in a process of its own."""

    def __init__(self, folder: Path, *words: object, **environment: str) -> None:
        self.output = folder / "output.txt"
        self.output.touch()
        self.process = ForkedPython(
            *("-m", "codetr_cli", "serve", *words, "--device", "cpu", "--port", "0"),
            output=self.output,
            **environment,
        )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def url(self) -> str:
        """Where it serves, once it does."""
        end = time.monotonic() + 120
        while "/v1/detect" not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.02)
        return self.text.partition(" at ")[2].split()[0]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:  # a test that failed
            self.stop()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        assert self.process.returncode is not None
        return self.process.returncode


@needs_packages
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_serves_until_a_signal(tmp_path: Path, checkpoint: Path, number: int, code: int):
    with Program(tmp_path, checkpoint) as program:
        url = program.url()
        assert get(url, "/readyz").status == 200
        assert ask(url, post(form(photo(), score="0"))).status == 200
        assert program.stop(number) == code
        name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        assert f"error: stopped by {name}: 1 request answered" in program.text
        assert f"Serving {checkpoint} (tiny), 3 classes, at {url} (cpu, fp32)" in program.text
        assert f"Try: curl -F images=@photo.jpg -F score=0.5 {url}/v1/detect" in program.text
        assert "Limits: 16 images and 32 MB a request" in program.text


@needs_packages
def test_a_stop_under_load_loses_no_accepted_request(tmp_path: Path, checkpoint: Path):
    with Program(tmp_path, checkpoint) as program:
        url = program.url()
        is_stopped = False

        def client(number: int) -> list[tuple[bool, Answer | None]]:
            """The answers of one client, each with whether it was asked before the stop."""
            answers: list[tuple[bool, Answer | None]] = []
            for _ in range(1000):
                before = not is_stopped
                try:
                    answers.append((before, ask(url, post(form(photo(200, 150))))))
                except OSError:  # nothing listens any longer
                    answers.append((before, None))
                if answers[-1][1] is None:
                    return answers
            return answers

        with ThreadPoolExecutor(6) as pool:
            running = [pool.submit(client, number) for number in range(6)]
            time.sleep(0.7)
            is_stopped = True
            code = program.stop()
            found = [answer for each in running for answer in each.result()]
        assert code == 143
        assert all(answer is not None and answer.status == 200 for before, answer in found[:-1] if before)
        late = [answer for before, answer in found if not before and answer is not None and answer.status]
        assert all(answer.status in (200, 503) for answer in late)


@needs_packages
def test_json_has_the_address_and_limits(tmp_path: Path, checkpoint: Path):
    with Program(tmp_path, checkpoint, "--json", "--queue", "4", CODETR_API_KEY="0123456789abcdef") as program:
        program.url()
        found = json.loads(program.text[program.text.index("{") :].rpartition("}")[0] + "}")
        assert found["url"] == f"http://127.0.0.1:{found['port']}"
        assert found["limits"]["queue"] == found["limits"]["images"] == 4
        assert found["api_key"] is True
        assert "0123456789abcdef" not in program.text
        assert '-H "Authorization: Bearer $CODETR_API_KEY"' in program.text
        assert ask(found["url"], post(form(photo()))).status == 401
        assert program.stop() == 143


@needs_packages
@pytest.mark.skipif(sys.platform != "linux", reason="several processes share a port on Linux")
@pytest.mark.slow
def test_several_processes_share_the_port(tmp_path: Path, checkpoint: Path):
    with Program(tmp_path, checkpoint, "--workers", "2") as program:
        url = program.url()
        assert "2 processes" in program.text
        end = time.monotonic() + 60
        while b"codetr_ready_processes 2.0" not in get(url, "/metrics").body:
            assert time.monotonic() < end, program.text
            time.sleep(0.1)
        for _ in range(20):
            assert ask(url, post(form(photo()))).status == 200
        assert b"codetr_images_total 20.0" in get(url, "/metrics").body
        assert program.stop() == 143
        assert "stopped by SIGTERM" in program.text


def test_missing_packages_are_named(codetr, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    real, found = importlib.util.find_spec, {**dict.fromkeys(PACKAGES, ModuleSpec("", None)), "uvicorn": None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: found[name] if name in found else real(name, *more)
    )
    ran = codetr("serve", checkpoint)
    assert ran.code == 5
    assert "(uvicorn): pip install 'codetr-cli[serve]'" in " ".join(ran.err.split())


@needs_packages
def test_errors_come_before_anything_is_served(codetr, checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported = tmp_path / "model.xml"
    exported.write_text("<net/>")
    for words, code, text in (
        ((tmp_path / "no.safetensors",), 4, "there is no checkpoint"),
        (("no-such-preset",), 2, "neither a checkpoint nor a preset"),
        ((checkpoint, "--max-images", "99"), 2, "--max-images 99 is more than --queue 32"),
        ((checkpoint, "--batch", "none"), 2, "--batch none"),
        ((checkpoint, "--cors-origin", "example.org"), 2, "--cors-origin"),
        ((checkpoint, "--device", "gpu"), 2, "unknown device"),
        ((exported, "--device", "gpu", "--port", "0"), 4, "model.xml"),  # a device of OpenVINO
        ((checkpoint, "--gpus", "1", "--device", "cpu"), 2, "exclude each other"),
        ((checkpoint, "--host", "256.0.0.1", "--device", "cpu"), 2, "--host 256.0.0.1"),
        ((checkpoint, "--set", "test.nothing=1", "--device", "cpu", "--port", "0"), 2, "nothing"),
    ):
        ran = codetr("serve", *words)
        assert ran.code == code, ran.err
        assert text in " ".join(ran.err.split())


@needs_packages
def test_a_public_address_without_a_key_is_warned_of(codetr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CODETR_API_KEY", raising=False)
    ran = codetr("serve", tmp_path / "no.safetensors", "--host", "0.0.0.0")
    assert "warning: --host 0.0.0.0 without --api-key: everybody who reaches port 8000" in " ".join(ran.err.split())


@needs_packages
def test_an_empty_key_is_no_way_to_serve_without_one(codetr, checkpoint: Path):
    ran = codetr("serve", checkpoint, "--api-key", "")
    assert ran.code == 2
    assert "--api-key is empty" in ran.err


def test_nothing_else_imports_the_packages():
    """An installation without the extra has all other commands."""
    packages = ("fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart")
    script = (
        "import sys, codetr_cli.inference.detector, codetr_cli.commands.serve, codetr_cli.serving.requirements\n"
        f"print(*(name for name in {packages!r} if name in sys.modules))"
    )
    done = run_forked("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
