"""A client of a server under test that can send anything, valid or not."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

BOUNDARY = "codetr-boundary"


@dataclass(frozen=True)
class Answer:
    """What a server sent; status 0: it closed the connection without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error, which has the one form of errors."""
        assert set(self.json) == {"error"}, self.json
        assert self.json["error"]["message"]
        code: str = self.json["error"]["code"]
        return code


def part(name: str, value: bytes | str, file: str | None = None) -> bytes:
    """One field of a form."""
    value = value.encode() if isinstance(value, str) else value
    more = "" if file is None else f'; filename="{file}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*images: bytes, **fields: str) -> bytes:
    """The body of a form."""
    parts = [part("images", image, f"{number}.png") for number, image in enumerate(images)]
    return b"".join([*parts, *(part(*field) for field in fields.items()), f"--{BOUNDARY}--\r\n".encode()])


FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def post(body: bytes | str, kind: str | None = FORM_TYPE, path: str = "/v1/detect", **headers: str) -> bytes:
    """A request with a body."""
    body = body.encode() if isinstance(body, str) else body
    named = {"Content-Length": str(len(body)), **({"Content-Type": kind} if kind else {}), **headers}
    return request("POST", path, named) + body


def request(method: str, path: str, headers: dict[str, str] | None = None) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def connect(url: str, timeout: float = 30.0) -> socket.socket:
    """A connection to a server."""
    found = urlsplit(url)
    return socket.create_connection((found.hostname, found.port), timeout=timeout)


def ask(url: str, *chunks: bytes, pause: float = 0.0, timeout: float = 30.0) -> Answer:
    """Sends bytes over a connection of its own and reads one answer."""
    with connect(url, timeout) as connection:
        for chunk in chunks:
            with suppress(OSError):  # an early answer
                connection.sendall(chunk)
            if pause:
                time.sleep(pause)
        return read(connection)


def get(url: str, path: str, **headers: str) -> Answer:
    return ask(url, request("GET", path, headers))


def read(connection: socket.socket) -> Answer:
    """Reads one answer, and nothing of the next."""
    data = b""
    with suppress(ConnectionError):
        while not data.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
            data += byte
    if not data.endswith(b"\r\n\r\n"):
        return Answer(0, {}, data)
    status, *lines = data.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    left, body = int(headers.get("content-length", "0")), b""
    with suppress(ConnectionError):
        while left > len(body) and (more := connection.recv(left - len(body))):
            body += more
    return Answer(int(status.split()[1]), headers, body)


def chunked(pieces: Iterable[bytes]) -> bytes:
    """A body in chunks, whose length its head does not state."""
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"
