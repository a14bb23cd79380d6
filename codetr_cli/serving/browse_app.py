"""hotcoco's browser of a data set, behind a guard, on this machine only, until a signal comes.

The app trusts its callers in ways that codetr does not: it serves every file of the folder of images, to pages of any
origin that make their name point to this machine; its description of itself loads scripts from elsewhere. The guard
answers for what it knows: the addresses that the app's own pages need, asked for by the name of this machine, and
images that the annotations list, as images. Policies tell browsers to load nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
import threading
import urllib.parse
import webbrowser
from collections.abc import Callable, Collection, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr_cli.errors import ResourceError, StoppedError
from codetr_cli.images.image_files import FORMAT_SUFFIXES
from codetr_cli.runtime.signals import StopRequest
from codetr_cli.serving.browse_data import BrowseData
from codetr_cli.serving.requirements import check_packages

if TYPE_CHECKING:
    from starlette.responses import Response

HOST = "127.0.0.1"
HOSTS = frozenset(("127.0.0.1", "localhost"))
"""Names of this machine that a request may be for: a page elsewhere cannot make its own name one of them."""
FIRST_PORT, PORTS = 7860, 100
"""Without a requested port, the first free one of so many from here on."""
PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "plotly": "plotly"}
"""Module -> package that hotcoco's app needs, and codetr does not."""
ADDRESSES = re.compile(r"/(gallery|dashboard|(detail|thumbnail)/(?P<image>\d+)|static/[\w.-]+|fonts/[\w.-]+)?")
"""What is answered besides images."""
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of pages: scripts stand in them, as the app writes them, and nothing is loaded from, or sent to, another machine."""
IMAGE_POLICY = "default-src 'none'; sandbox"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
MEDIA_TYPES = {suffix: f"image/{kind}" for kind, suffixes in FORMAT_SUFFIXES.items() for suffix in suffixes}
TICK_S = 0.05

Scope = MutableMapping[str, Any]


class Guard:
    """An ASGI application around another one, see above.

    Args:
        app: hotcoco's.
        images: name of each image -> its file.
        image_ids: of the images, as the app has them; it fails at others.
    """

    def __init__(self, app: Any, images: Mapping[str, Path], image_ids: Collection[int]) -> None:
        self._app, self._images, self._image_ids = app, images, frozenset(map(str, image_ids))

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith("/images/"):
            await self._image(path.removeprefix("/images/"))(scope, receive, send)
            return

        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = {**HEADERS, "content-security-policy": POLICY}
                others = [pair for pair in message["headers"] if pair[0].decode("latin-1").lower() not in added]
                message["headers"] = [*others, *((key.encode(), value.encode()) for key, value in added.items())]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        from starlette.responses import PlainTextResponse

        headers = dict(scope["headers"])
        if _host_name(headers.get(b"host", b"").decode("latin-1")) not in HOSTS:
            return PlainTextResponse("Open it by the address that codetr prints.", 421, headers=HEADERS)
        if headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            return PlainTextResponse("Other pages may not ask.", 403, headers=HEADERS)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Nothing can be changed.", 405, headers=HEADERS)
        if scope["path"].startswith("/images/"):
            return None
        address = ADDRESSES.fullmatch(scope["path"])
        if address is None or (address["image"] is not None and address["image"] not in self._image_ids):
            return PlainTextResponse("Not found.", 404, headers=HEADERS)
        return None

    def _image(self, name: str) -> Response:
        """The file of an image that the annotations list, as an image whatever it is."""
        from starlette.responses import FileResponse, PlainTextResponse

        path = self._images.get(name)
        media_type = MEDIA_TYPES.get(os.path.splitext(name)[1].lower())  # noqa: PTH122 (a name, not a path)
        if path is None or media_type is None or not path.is_file():
            return PlainTextResponse("Not found.", 404, headers=HEADERS)
        return FileResponse(path, media_type=media_type, headers={**HEADERS, "content-security-policy": IMAGE_POLICY})


def _host_name(text: str) -> str | None:
    """The name in a Host header, in lower case; None if it is none."""
    try:
        return urllib.parse.urlsplit(f"//{text}").hostname
    except ValueError:  # brackets without an address
        return None


def check_installed() -> None:
    """Ensures that all packages of the app are installed.

    Raises:
        ResourceError: one is not; names the command that installs them.
    """
    check_packages("browse", PACKAGES)


def build_app(data: BrowseData) -> Guard:
    """The app of hotcoco for a data set, guarded."""
    from hotcoco.server import create_app

    app = create_app(
        data.coco,
        image_dir=str(data.images_dir),
        dt_coco=data.detections,
        coco_eval=data.evaluation,
    )
    return Guard(app, data.images, data.coco.get_img_ids())


def serve_browser(data: BrowseData, *, port: int | None, open_browser: bool, ready: Callable[[str], object]) -> None:
    """Serves the app on this machine until a signal comes.

    Args:
        data: what is shown.
        port: None: the first free one from `FIRST_PORT`; 0: any.
        open_browser: open it in the user's browser if there is a display.
        ready: called with the address when the app answers.

    Raises:
        StoppedError: a signal came.
        ResourceError: the port cannot be used.
    """
    from codetr_cli.serving.connections import build_server, quiet_uvicorn

    logging.getLogger("hotcoco.server").setLevel(logging.CRITICAL)  # its tracebacks: uvicorn reports an error in a line
    stopped = threading.Event()
    with bind_local(port) as bound, quiet_uvicorn(), StopRequest(lambda number: stopped.set(), lambda: None) as stop:
        address = f"http://{HOST}:{bound.getsockname()[1]}"

        async def serve() -> None:
            server = build_server(build_app(data))
            listening = asyncio.create_task(server.serve(sockets=[bound]))
            while not (server.started or stopped.is_set() or listening.done()):
                await asyncio.sleep(TICK_S)
            if not stopped.is_set():
                ready(address)
                if open_browser and has_display():
                    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            while not (stopped.is_set() or listening.done()):
                await asyncio.sleep(TICK_S)
            server.should_exit = server.force_exit = True  # open tabs keep their connections
            await listening

        asyncio.run(serve())
    assert stop.number is not None
    raise StoppedError("stopped: the page is closed.", stop.number)


def bind_local(port: int | None) -> socket.socket:
    """A socket at a port of this machine, which no other machine reaches; it does not listen yet.

    Raises:
        ResourceError: the port is taken or reserved.
    """
    first = FIRST_PORT if port is None else port
    problem: OSError | None = None
    for number in range(first, first + (PORTS if port is None else 1)):
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(OSError):
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((HOST, number))
        except OSError as error:
            bound.close()
            problem = error
            continue
        bound.set_inheritable(False)
        return bound
    assert problem is not None
    raise ResourceError(
        f"cannot listen on port {first} of {HOST}: {problem.strerror or problem}. Choose another one with --port, or 0 "
        "for one that is free"
    ) from problem


def has_display() -> bool:
    """Whether a browser could be shown: one of a terminal would take the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
