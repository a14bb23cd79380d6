"""hotcoco's browser of a data set, behind a guard, on this machine only, until a signal comes.

The app trusts its callers in ways that codetr does not: it serves every file of the folder of images, to pages of any
origin that make their name point to this machine, and to every user of this machine; its description of itself loads
scripts from elsewhere. The guard answers those who have the address that was printed, with its token, and for what it
knows: the addresses that the app's own pages need, asked for by the name of this machine, and images that the
annotations list, as images. Policies tell browsers to load nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import re
import secrets
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
TOKEN_BYTES = 32
ENTRANCE = (
    '<!doctype html><meta charset="utf-8"><title>codetr browse</title><meta http-equiv="refresh" content="0; url=/">'
)
"""Answer to a token. A redirect would still count as asked for by the page that the address was opened from, and a
browser would not send the cookie with it."""
TICK_S = 0.05

Scope = MutableMapping[str, Any]


class Keys:
    """Who may look: a token in the address that is printed, which a browser keeps as a cookie after its first request.

    Other users of this machine reach the port, too, and may see the command line of the browser that is opened. So that
    browser gets a ticket instead, which is good for one request.

    Args:
        port: of the server: browsers send cookies to all ports of a machine, so the name of the cookie has it.
    """

    def __init__(self, port: int) -> None:
        self.token, self._ticket = secrets.token_urlsafe(TOKEN_BYTES), ""
        self._cookie = f"codetr-browse-{port}"

    def new_ticket(self) -> str:
        """A token for one request; the one before is no longer good."""
        self._ticket = secrets.token_urlsafe(TOKEN_BYTES)
        return self._ticket

    def opens(self, token: str) -> bool:
        """Whether a token of an address is good; a ticket is used by this."""
        if self._ticket and _is_same(token, self._ticket):
            self._ticket = ""
            return True
        return _is_same(token, self.token)

    def holds(self, cookies: Mapping[str, str]) -> bool:
        """Whether the cookie is among those of a request."""
        return _is_same(cookies.get(self._cookie, ""), self.token)

    def cookie(self) -> str:
        """The value of a Set-Cookie header: for this session of the browser, for no script and no other page."""
        return f"{self._cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"


def _is_same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


class Guard:
    """An ASGI application around another one, see above.

    Args:
        app: hotcoco's.
        images: name of each image -> its file.
        image_ids: of the images, as the app has them; it fails at others.
        keys: of those who may look.
    """

    def __init__(self, app: Any, images: Mapping[str, Path], image_ids: Collection[int], keys: Keys) -> None:
        self._app, self._images, self._image_ids = app, images, frozenset(map(str, image_ids))
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":
            return
        answer = self._own_answer(scope)
        if answer is not None:
            await answer(scope, receive, send)
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

    def _own_answer(self, scope: Scope) -> Response | None:
        """The way in for a token, a refusal, or None for what the app or a file answers."""
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, PlainTextResponse

        request = Request(scope)
        if _host_name(request.headers.get("host", "")) not in HOSTS:
            return PlainTextResponse("Open it by the address that codetr prints.", 421, headers=HEADERS)
        token = request.query_params.get("token", "")
        if scope["path"] == "/" and scope["method"] == "GET" and token and self._keys.opens(token):
            policy = {"content-security-policy": "default-src 'none'", "set-cookie": self._keys.cookie()}
            return HTMLResponse(ENTRANCE, headers={**HEADERS, **policy})
        if not self._keys.holds(request.cookies):
            return PlainTextResponse(
                "Open it by the whole address that codetr prints, with its token.", 403, headers=HEADERS
            )
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
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


def build_app(data: BrowseData, keys: Keys) -> Guard:
    """The app of hotcoco for a data set, guarded."""
    from hotcoco.server import create_app

    app = create_app(
        data.coco,
        image_dir=str(data.images_dir),
        dt_coco=data.detections,
        coco_eval=data.evaluation,
    )
    return Guard(app, data.images, data.coco.get_img_ids(), keys)


def serve_browser(data: BrowseData, *, port: int | None, open_browser: bool, ready: Callable[[str], object]) -> None:
    """Serves the app on this machine until a signal comes.

    Args:
        data: what is shown.
        port: None: the first free one from `FIRST_PORT`; 0: any.
        open_browser: open it in the user's browser if there is a display.
        ready: called with the address and its token when the app answers.

    Raises:
        StoppedError: a signal came.
        ResourceError: the port cannot be used.
    """
    from codetr_cli.serving.connections import build_server, quiet_uvicorn

    logging.getLogger("hotcoco.server").setLevel(logging.CRITICAL)  # its tracebacks: uvicorn reports an error in a line
    stopped = threading.Event()
    with bind_local(port) as bound, quiet_uvicorn(), StopRequest(lambda number: stopped.set(), lambda: None) as stop:
        bound_port = bound.getsockname()[1]
        address, keys = f"http://{HOST}:{bound_port}/?token=", Keys(bound_port)

        async def serve() -> None:
            server = build_server(build_app(data, keys))
            listening = asyncio.create_task(server.serve(sockets=[bound]))
            while not (server.started or stopped.is_set() or listening.done()):
                await asyncio.sleep(TICK_S)
            if not stopped.is_set():
                ready(address + keys.token)
                if open_browser and has_display():
                    opened = address + keys.new_ticket()
                    threading.Thread(target=webbrowser.open, args=(opened,), daemon=True).start()
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
