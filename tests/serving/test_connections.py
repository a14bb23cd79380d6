"""Connections that uvicorn would keep without end, and addresses that cannot be used."""

from __future__ import annotations

import socket
import time

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.serving import connections, guard
from codetr_cli.serving.options import ServeOptions
from tests.serving.client import FORM_TYPE, ask, connect, form, get, post, read, request
from tests.serving.fakes import FakeDetector, served
from tests.serving.hostile import photo


@pytest.fixture
def detector(tiny_settings) -> FakeDetector:
    return FakeDetector(tiny_settings)


def test_a_slow_head_ends_whatever_it_sends(detector: FakeDetector, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    with served(detector) as server, connect(server.url) as silent, connect(server.url) as slow:
        started = time.monotonic()
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(4):
            time.sleep(0.05)
            slow.sendall(b"X: y\r\n")
        for connection in (slow, silent):
            answer = read(connection)
            assert (answer.status, answer.code, answer.headers["connection"]) == (408, "request_timeout", "close")
            assert connection.recv(1) == b""
        assert time.monotonic() - started < 5
        assert get(server.url, "/healthz").status == 200


def test_a_slow_body_ends(detector: FakeDetector):
    with served(detector, ServeOptions(read_timeout_s=0.3)) as server, connect(server.url) as slow:
        slow.sendall(request("POST", "/v1/detect", {"Content-Type": FORM_TYPE, "Content-Length": "10000"}))
        slow.sendall(form(photo())[:200])
        answer = read(slow)
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert slow.recv(1) == b""
        assert server.process.service.in_flight == 0


def test_the_rest_of_a_refused_request_is_not_waited_for(detector: FakeDetector, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.4)
    with served(detector) as server, connect(server.url) as client:
        client.sendall(request("POST", "/v1/detect", {"Content-Type": "text/plain", "Content-Length": "10000"}))
        assert read(client).status == 415
        client.sendall(b"x")  # does not extend the time
        assert client.recv(1) == b""


def test_a_connection_serves_many_requests(detector: FakeDetector):
    with served(detector) as server, connect(server.url) as client:
        for _ in range(3):
            client.sendall(post(form(photo())))
            assert read(client).status == 200
        client.sendall(post("", "text/plain") + post(form(photo())))  # at once
        assert read(client).status == 415
        assert read(client).status == 200


def test_a_client_that_does_not_read_is_cut(detector: FakeDetector, monkeypatch: pytest.MonkeyPatch):
    with served(detector) as server:
        protocol = FakeProtocol(unsent=[1000, 500, 500])
        protocol.timeout_keep_alive_handler()
        protocol.timeout_keep_alive_handler()
        assert protocol.again == 2  # it reads
        protocol.timeout_keep_alive_handler()
        assert protocol.is_aborted
        assert get(server.url, "/healthz").status == 200


class FakeProtocol(connections.Protocol):
    """One with bytes that were not sent yet."""

    def __init__(self, unsent: list[int]) -> None:
        self.again, self.is_aborted, self.timeout_keep_alive = 0, False, 1
        self.transport = self.loop = self  # type: ignore[assignment]
        self._left = unsent

    def get_write_buffer_size(self) -> int:
        return self._left.pop(0)

    def call_later(self, *arguments: object) -> None:
        self.again += 1

    def abort(self) -> None:
        self.is_aborted = True


def test_connections_are_limited(detector: FakeDetector, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    with served(detector) as server:
        held = [connect(server.url) for _ in range(8)]
        time.sleep(0.2)
        answer = ask(server.url)
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "too_many_connections", "1")
        for each in held:
            each.close()
        time.sleep(0.2)
        assert get(server.url, "/healthz").status == 200


def test_bodies_in_memory_are_limited(detector: FakeDetector, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "MAX_HELD_BODIES", 1)
    with served(detector, ServeOptions(max_body=100_000)) as server, connect(server.url) as first:
        first.sendall(request("POST", "/v1/detect", {"Content-Type": FORM_TYPE, "Content-Length": "90000"}))
        first.sendall((form(photo())[:100] + b"x" * 80_000)[:80_000])
        time.sleep(0.2)
        answer = ask(server.url, post(form(b"x" * 50_000)))
        assert (answer.status, answer.code) == (429, "queue_full")
        first.close()
        time.sleep(0.2)
        assert ask(server.url, post(form(photo()))).status == 200


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ResourceError, match=f"cannot listen on 127.0.0.1:{port}.*another --port"):
            connections.bind(ServeOptions(port=port))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "a b"])
def test_a_host_that_is_none(host: str):
    with pytest.raises(ConfigError, match="--host"):
        connections.bind(ServeOptions(host=host, port=0))
