"""A report in Chromium: nothing is requested from anywhere, what it injects does not run, and its script works.

Skipped where Chromium is not installed.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codetr_cli.report.evaluation_report import report_page
from tests.report.report_samples import HOSTILE, analysed, sample_inputs

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

BROWSERS_OWN = re.compile(rb"\.(google|googleapis|gstatic|gvt1)\.com")
"""Hosts that Chromium itself asks for the time and for updates."""
PROBE = "window.onload = () => { document.title = 'the probe has run'; };"


@contextmanager
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine that every host name leads to, and the first bytes of each connection."""
    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    done = threading.Event()

    def listen() -> None:
        while not done.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(1)
                heard.append(connection.recv(200))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield server.getsockname()[1], heard
    finally:
        done.set()
        thread.join()
        server.close()


def rendered(page: Path, profile: Path) -> tuple[str, list[bytes]]:
    """The document after its scripts have run, and what the browser has sent anywhere."""
    assert CHROMIUM is not None
    with listener() as (port, heard):
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter",
            "--no-first-run",
            f"--user-data-dir={profile}",
            f"--proxy-server=127.0.0.1:{port}",
            "--proxy-bypass-list=<-loopback>",
            "--virtual-time-budget=3000",
            "--dump-dom",
            page.as_uri(),
        ]
        ran = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return ran.stdout.decode(), [line for line in heard if not BROWSERS_OWN.search(line)]


def test_nothing_is_requested_and_nothing_injected_runs(tmp_path: Path) -> None:
    names = [*HOSTILE, f"</script><script>{PROBE}</script>", "<img src=http://probe.invalid/x.png>"]
    analysis, facts = analysed(sample_inputs(tmp_path, names, images=30), title="title")
    page = tmp_path / "report.html"
    page.write_text(report_page(analysis, facts), encoding="utf-8")
    document, sent = rendered(page, tmp_path / "profile")
    assert sent == []
    assert "<title>title</title>" in document
    assert "<button" in document  # the page's own script has run
    assert 'type="search"' in document


def test_the_browser_would_show_requests_and_injected_scripts(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text(f"<!DOCTYPE html><title>x</title><script>{PROBE}</script><img src=http://probe.invalid/x.png>")
    document, sent = rendered(page, tmp_path / "profile")
    assert any(b"probe.invalid" in line for line in sent)
    assert "the probe has run" in document


def test_the_policy_of_a_page_stops_both(tmp_path: Path) -> None:
    analysis, facts = analysed(sample_inputs(tmp_path, ["cat"], images=2), title="title")
    text = report_page(analysis, facts)
    injected = text.replace("</main>", f"<script>{PROBE}</script><img src=http://probe.invalid/x.png></main>")
    assert injected != text
    page = tmp_path / "injected.html"
    page.write_text(injected, encoding="utf-8")
    document, sent = rendered(page, tmp_path / "profile")
    assert not any(b"probe.invalid" in line for line in sent)
    assert "<title>title</title>" in document
