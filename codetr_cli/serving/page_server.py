"""Serves the page of `codetr demo` until a signal comes, without a request to any other machine."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli.errors import ResourceError, StoppedError
from codetr_cli.inference.detector import Detector
from codetr_cli.runtime.signals import StopRequest
from codetr_cli.serving.page import STYLE, Page, find_examples, import_gradio
from codetr_cli.serving.page_detection import PageDetector

FIRST_PORT, PORTS = 7860, 100
"""Without a requested port, the first free one of so many from here on."""
MAX_WAITING = 32
"""Requests that wait for the network; further ones are refused."""
FONTS = ("system-ui", "sans-serif")
MONO_FONTS = ("ui-monospace", "monospace")
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Of Gradio and the packages below it, which report what is done with them and look for new versions."""


@dataclass(frozen=True, kw_only=True)
class PagePlace:
    """Where the page is.

    Attributes:
        host: address that the server listens on.
        port: of it; None: a free one; 0: any.
        share: also at a public address, through a tunnel of Gradio's makers.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False


def serve_page(
    detector: Callable[[], Detector],
    place: PagePlace,
    *,
    examples: Path | None,
    max_upload_bytes: int,
    ready: Callable[[str, str | None], object],
) -> None:
    """Serves the page until a signal comes.

    Args:
        detector: loads the detector, once the place and the packages are there.
        place: where.
        examples: folder of pictures and videos to click on.
        max_upload_bytes: larger files are refused.
        ready: called with the address, and the public one if there is one, when the page answers.

    Raises:
        StoppedError: a signal came; the page is gone and its files are deleted.
        ResourceError: Gradio is not installed, or the address or port cannot be used.
        CodetrError: as `Detector.load`.
    """
    stopped = threading.Event()
    with (
        StopRequest(lambda number: stopped.set(), lambda: None) as stop,
        tempfile.TemporaryDirectory(prefix="codetr-demo-") as name,
        _environment({**ENVIRONMENT, "GRADIO_TEMP_DIR": name}),
    ):
        gr = import_gradio()
        port = free_port(place)
        folder = Path(name)
        found = find_examples(examples, folder / "examples") if examples is not None else []
        page = Page(PageDetector(detector()), folder, found)
        blocks = page.build(gr).queue(max_size=MAX_WAITING)
        if stop.number is None:
            addresses = _launch(gr, blocks, place, port, max_upload_bytes)
            try:
                ready(*addresses)
                stopped.wait()
            finally:
                page.stop_all()
                _close(blocks)
    assert stop.number is not None
    raise StoppedError("stopped: the page is closed.", stop.number)


def _launch(gr: Any, blocks: Any, place: PagePlace, port: int, max_upload_bytes: int) -> tuple[str, str | None]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            _, _, public = blocks.launch(
                server_name=place.host,
                server_port=port,
                share=place.share,
                max_file_size=max_upload_bytes,
                prevent_thread_lock=True,
                inline=False,
                inbrowser=False,
                quiet=True,
                show_error=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                footer_links=[],
                theme=gr.themes.Default(font=FONTS, font_mono=MONO_FONTS),
                css=STYLE,
            )
        except OSError as error:  # someone else has taken the port meanwhile
            raise _port_error(place, port, error) from error
    if place.share and public is None:
        _close(blocks)
        raise ResourceError(
            f"there is no public address: {' '.join(printed.getvalue().split()).rstrip('.') or 'no reason is known'}. "
            "Check the network, or use the page on this machine without --share"
        )
    return page_address(place.host, port), public


def page_address(host: str, port: int) -> str:
    """The address to open in a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"


def free_port(place: PagePlace) -> int:
    """The port of a place; a free one if none is requested.

    Raises:
        ResourceError: it is taken, or the address is not one of this machine.
    """
    first = FIRST_PORT if place.port is None else place.port
    for port in range(first, first + (PORTS if place.port is None else 1)):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(place.host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return int(probe.getsockname()[1])
        except OSError as error:
            if isinstance(error, socket.gaierror) or port == first + PORTS - 1 or place.port is not None:
                raise _port_error(place, port, error) from error
    raise AssertionError("a loop over ports ends with one or an error")


def _port_error(place: PagePlace, port: int, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot listen on port {port} of {place.host}: {error.strerror or error}. Choose another one with --port, or "
        "an address of this machine with --host"
    )


def _close(blocks: Any) -> None:
    blocks.server.force_exit = True  # open tabs keep their connections
    errors = logging.getLogger("uvicorn.error")  # with a traceback of what is cancelled so
    errors.addFilter(_drop)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            blocks.close(verbose=False)
    finally:
        errors.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
