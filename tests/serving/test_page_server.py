"""The server of the page of `codetr demo`: its address, and its end. The page in a browser: `test_page_browser.py`."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codetr_cli.errors import ResourceError
from codetr_cli.serving import page_server
from codetr_cli.serving.page_server import PagePlace, free_port, page_address, serve_page
from tests.conftest import REPOSITORY
from tests.inference.fakes import write_checkpoint


@pytest.fixture
def taken() -> int:
    """A port that something listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_free_port_is_found(taken, monkeypatch):
    assert free_port(PagePlace(port=0)) > 0
    monkeypatch.setattr(page_server, "FIRST_PORT", taken)
    assert taken < free_port(PagePlace()) < taken + page_server.PORTS
    monkeypatch.setattr(page_server, "PORTS", 1)
    with pytest.raises(ResourceError, match=f"cannot listen on port {taken} of 127"):
        free_port(PagePlace())


def test_a_place_that_cannot_be_used(taken):
    with pytest.raises(ResourceError, match=f"cannot listen on port {taken} of 127.* --port"):
        free_port(PagePlace(port=taken))
    with pytest.raises(ResourceError, match="an address of this machine with --host"):
        free_port(PagePlace(host="192.0.2.1", port=0))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::1", "http://[::1]:1"),
        ("::", "http://[::1]:1"),
        ("gpu7", "http://gpu7:1"),
    ],
)
def test_the_address_for_a_browser(host, address):
    assert page_address(host, 1) == address


def test_without_gradio_nothing_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    before = dict(os.environ)
    with pytest.raises(ResourceError, match=r"codetr-cli\[demo\]"):
        serve_page(
            lambda: pytest.fail("the detector is loaded"),
            PagePlace(port=0),
            examples=None,
            max_upload_bytes=1,
            ready=lambda *addresses: None,
        )
    assert dict(os.environ) == before


class FakeBlocks:
    """Gradio's components, whose launch ends as requested."""

    def __init__(self, *, public: str | None = None, error: OSError | None = None) -> None:
        self.public, self.error = public, error
        self.options: dict[str, Any] = {}
        self.server = SimpleNamespace(force_exit=False)
        self.is_closed = False

    def launch(self, **options: Any) -> tuple[None, str, str | None]:
        self.options = options
        sys.stdout.write("Could not create share link.\n")
        if self.error is not None:
            raise self.error
        return None, "http://127.0.0.1:1/", self.public

    def close(self, **options: Any) -> None:
        self.is_closed = True


GRADIO = SimpleNamespace(themes=SimpleNamespace(Default=lambda **fonts: fonts))


def test_the_page_is_for_this_machine_and_loads_nothing(capsys):
    blocks = FakeBlocks()
    assert page_server._launch(GRADIO, blocks, PagePlace(), 1, 5) == ("http://127.0.0.1:1", None)
    options = blocks.options
    assert (options["server_name"], options["server_port"], options["max_file_size"]) == ("127.0.0.1", 1, 5)
    assert not any(options[name] for name in ("share", "inbrowser", "show_error", "ssr_mode", "mcp_server", "pwa"))
    assert options["theme"] == {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    assert capsys.readouterr().out == ""


def test_a_public_address():
    place = PagePlace(share=True)
    shared = page_server._launch(GRADIO, FakeBlocks(public="https://public"), place, 1, 5)
    assert shared == ("http://127.0.0.1:1", "https://public")
    blocks = FakeBlocks()
    with pytest.raises(ResourceError, match=r"no public address: Could not create share link\. Check the network"):
        page_server._launch(GRADIO, blocks, place, 1, 5)
    assert blocks.is_closed


def test_a_port_that_was_taken_meanwhile():
    with pytest.raises(ResourceError, match=r"cannot listen on port 1 .* --port"):
        page_server._launch(GRADIO, FakeBlocks(error=OSError("Cannot find empty port")), PagePlace(), 1, 5)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gradio") is None, reason="the extra [demo] is not installed")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(tmp_path: Path, tiny_settings, number, code):
    checkpoint = write_checkpoint(tmp_path / "tiny.safetensors", tiny_settings)
    words = [sys.executable, "-m", "codetr_cli", "demo", str(checkpoint), "--port", "0", "--device", "cpu", "--json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "PYTHONPATH": str(REPOSITORY)}
    (tmp_path / "scratch").mkdir()
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        text = ""
        for line in server.stdout:
            text += line
            if line.startswith("}") or line.rstrip().endswith("}"):
                break
        address = json.loads(text)["address"]
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert "codetr demo" in answer.read().decode()
        server.send_signal(number)
        assert server.wait(60) == code
    assert list((tmp_path / "scratch").glob("codetr-demo-*")) == []


def test_the_end_logs_no_traceback(caplog: pytest.LogCaptureFixture):
    """uvicorn logs what the end of the page cancels."""
    errors = logging.getLogger("uvicorn.error")
    blocks = SimpleNamespace(server=SimpleNamespace(), close=lambda verbose: errors.error("CancelledError"))
    page_server._close(blocks)
    assert not caplog.text
    errors.error("later")
    assert "later" in caplog.text
