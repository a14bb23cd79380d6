"""The app of `codetr browse` behind its guard: what is answered, to whom, with which policies, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra browse is not installed")
pytest.importorskip("plotly", reason="the extra browse is not installed")

from codetr_cli.analysis.data.splits import DataSplit, read_splits
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import ResourceError
from codetr_cli.inference.detections import DetectionTable
from codetr_cli.serving import browse_app
from codetr_cli.serving.browse_app import ADDRESSES, Guard, Keys, bind_local, build_app, check_installed, has_display
from codetr_cli.serving.browse_data import browse_data
from tests.conftest import REPOSITORY

MARKUP = "<img src=x onerror=alert(1)>"
KEYS = Keys(7860)
COOKIE = KEYS.cookie().partition(";")[0]


@dataclass
class Answer:
    """What an application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


def ask(app: Guard, address: str, *, method: str = "GET", **headers: str) -> Answer:
    """Asks an ASGI application, with the cookie of those who may look unless another one is given."""
    path, _, query = address.partition("?")
    given = {
        "host": "127.0.0.1:7860",
        "cookie": COOKIE,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860),
    }  # fmt: skip
    sent: list[dict] = []
    asked: list[bool] = []

    async def receive() -> dict:
        if asked:
            await asyncio.Event().wait()  # the client stays
        asked.append(True)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    start = next(message for message in sent if message["type"] == "http.response.start")
    names = {key.decode(): value.decode() for key, value in start["headers"]}
    return Answer(start["status"], names, b"".join(message.get("body", b"") for message in sent))


@pytest.fixture
def split(tiny_coco: Path) -> DataSplit:
    file = tiny_coco / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = MARKUP
    file.write_text(json.dumps(content))
    (tiny_coco / "val2017" / "secret.txt").write_text("not an image")
    (tiny_coco / "val2017" / "unlisted.jpg").write_bytes(b"not listed")
    return read_splits(DataConfig(root=str(tiny_coco)), only="val")[0]


@pytest.fixture
def app(split: DataSplit) -> Iterator[Guard]:
    objects = split.annotations
    detections = DetectionTable(
        objects.image_ids[objects.image_rows],
        objects.image_rows * 0 + objects.category_ids[0],
        objects.boxes_xywh,
        objects.boxes_xywh[:, 0] * 0 + 0.5,
    )
    return build_app(browse_data(split, detections), KEYS)


def test_pages_and_pictures_are_answered(app: Guard, split: DataSplit) -> None:
    image_id, name = int(split.annotations.image_ids[0]), split.annotations.file_names[0]
    for address in ("/", "/gallery?page=1", f"/detail/{image_id}", "/dashboard"):
        found = ask(app, address)
        assert found.status == 200, address
        assert found.headers["content-security-policy"] == browse_app.POLICY
        assert found.headers["content-type"].startswith("text/html")
        assert MARKUP not in found.text
    assert ask(app, f"/thumbnail/{image_id}").headers["content-type"] == "image/png"
    picture = ask(app, f"/images/{name}")
    assert (picture.status, picture.headers["content-type"]) == (200, "image/jpeg")
    assert picture.body == (split.paths.images_dir / name).read_bytes()
    assert picture.headers["content-security-policy"] == browse_app.IMAGE_POLICY
    assert picture.headers["x-content-type-options"] == "nosniff"


def test_nothing_on_the_pages_is_loaded_from_elsewhere(app: Guard, split: DataSplit) -> None:
    image_id = int(split.annotations.image_ids[0])
    loaded = set()
    for address in ("/", f"/detail/{image_id}", "/dashboard", "/gallery?page=1"):
        text = ask(app, address).text
        loaded |= set(re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']([^\"']+)", text))
        loaded |= set(re.findall(r"<link\b[^>]*\bhref=[\"']([^\"']+)", text))
        loaded |= set(re.findall(r"url\([\"']?([^\"')]+)", text))
    assert loaded
    for address in loaded:
        assert address.startswith(("/", "data:")), address
        path = address.partition("?")[0]
        assert address.startswith(("data:", "/images/")) or ADDRESSES.fullmatch(path), address
        if address.startswith(("/static/", "/fonts/")):
            assert ask(app, address).status == 200, address


@pytest.mark.parametrize(
    "address",
    [
        "/docs", "/redoc", "/openapi.json", "/images/secret.txt", "/images/unlisted.jpg", "/images/../annotations/x",
        "/images//etc/passwd", "/images/", "/static/../server.py", "/static/a/b", "/nowhere", "/fonts/", "/detail/1/2",
        "/detail/987654", "/thumbnail/987654", f"/thumbnail/{10**30}", "/thumbnail/-1",
    ],
)  # fmt: skip
def test_other_files_and_addresses_are_not(app: Guard, address: str) -> None:
    found = ask(app, address)
    assert found.status == 404
    assert found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "", "127.0.0.1.evil.example", "[::1]", "[", "a@b"]
)
def test_a_name_that_is_not_this_machines_is_refused(app: Guard, host: str) -> None:
    assert ask(app, "/", host=host).status == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:99", "LOCALHOST"])
def test_names_of_this_machine_are_answered(app: Guard, host: str) -> None:
    assert ask(app, "/", host=host).status == 200


@pytest.mark.parametrize(
    "cookie",
    ["", "other=1", f"{COOKIE}x", COOKIE[:-1], COOKIE.replace("7860", "7861"), COOKIE.partition("=")[0] + "="],
    ids=["none", "other", "longer", "shorter", "of another port", "empty"],  # tokens are random
)
def test_other_users_of_this_machine_see_nothing(app: Guard, split: DataSplit, cookie: str) -> None:
    image_id, name = int(split.annotations.image_ids[0]), split.annotations.file_names[0]
    addresses = ("/", "/?token=", "/?token=\u00e9", f"/detail/{image_id}", f"/thumbnail/{image_id}", f"/images/{name}")
    for address in (
        *addresses,
        "/gallery",
        "/dashboard",
        "/static/style.css",
        "/nowhere",
        f"/gallery?token={KEYS.token}",
    ):
        found = ask(app, address, cookie=cookie)
        assert (found.status, found.headers.get("set-cookie")) == (403, None), address
        assert name not in found.text


def test_a_token_becomes_a_cookie_and_a_ticket_only_once(app: Guard) -> None:
    entrance = ask(app, f"/?token={KEYS.token}", cookie="", sec_fetch_site="cross-site")
    assert entrance.status == 200
    assert "url=/" in entrance.text
    assert KEYS.token not in entrance.text
    cookie, *attributes = entrance.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    assert ask(app, "/", cookie=f'"odd={{; {cookie}; other=1').status == 200
    ticket = KEYS.new_ticket()
    assert ticket != KEYS.token
    assert ask(app, f"/?token={ticket}", cookie="").headers["set-cookie"] == KEYS.cookie()
    assert ask(app, f"/?token={ticket}", cookie="").status == 403


def test_other_pages_may_not_ask_and_nothing_can_be_changed(app: Guard) -> None:
    assert ask(app, "/", sec_fetch_site="cross-site").status == 403
    assert ask(app, "/", sec_fetch_site="same-origin").status == 200
    assert ask(app, "/", sec_fetch_site="none").status == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(app, "/gallery", method=method).status == 405


def test_a_file_that_is_no_image_by_its_name_is_not_sent_as_one(split: DataSplit, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>")
    link = tmp_path / "link.png"
    link.symlink_to(page)
    guard = Guard(None, {"page.html": page, "link.png": link, "gone.png": tmp_path / "gone.png"}, [], KEYS)
    assert ask(guard, "/images/page.html").status == 404
    assert ask(guard, "/images/link.png").headers["content-type"] == "image/png"  # as decoders would see it
    assert ask(guard, "/images/gone.png").status == 404


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr(browse_app, "PACKAGES", {"no_such_module": "no-such-package"})
    with pytest.raises(ResourceError, match=r"no-such-package.*pip install 'codetr-cli\[browse\]'"):
        check_installed()


def test_only_this_machine_is_listened_on() -> None:
    with bind_local(0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
        bound.listen()
        with pytest.raises(ResourceError, match="cannot listen on port"):
            bind_local(bound.getsockname()[1])
    with bind_local(None) as first:
        first.listen()
        assert first.getsockname()[1] >= browse_app.FIRST_PORT


def test_a_browser_is_opened_where_it_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert has_display()


def test_a_signal_ends_it(tiny_coco: Path) -> None:
    words = ["browse", str(tiny_coco), "--no-open", "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "codetr_cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as server:
        assert server.stdout is not None
        lines = []
        while not lines or lines[-1].strip() != b"}":
            lines.append(server.stdout.readline())
            assert lines[-1], server.stderr and server.stderr.read()
        address = json.loads(b"".join(lines))["address"]
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        browser.open(address, timeout=20).close()
        place = address.partition("?")[0]
        with browser.open(place, timeout=20) as page:
            assert b"dataset browser" in page.read()
        port = urllib.parse.urlsplit(place).port
        waiting = socket.create_connection(("127.0.0.1", port))  # as a tab that is open
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 130
        waiting.close()
