"""HTTP requests within limits: redirects, schemes, time, and the size of headers.

Proxies are those of the environment (http_proxy, https_proxy, no_proxy).
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any
from urllib.parse import quote, urljoin

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.weights.urls import URL_SAFE, Address, parse_url, shown_url

TIMEOUT_S = 30.0
"""Longest time without a single byte."""
WINDOW_S = 60.0
MIN_BYTES_PER_S = 5_000
"""Least average rate in every window."""
MAX_HOURS = 24
MAX_REDIRECTS = 8
MAX_HEADER_BYTES = 100_000
REDIRECTS = (301, 302, 303, 307, 308)


class TransferWatch:
    """Ends connections that are too slow or take too long, whatever the thread that uses them waits for.

    Timeouts of sockets are not enough: a server that sends one byte every 29 seconds never meets them.

    Attributes:
        reason: why a connection was ended; empty as long as none was.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._received = 0
        self._socket: socket.socket | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="codetr-download-watch", daemon=True)

    def __enter__(self) -> TransferWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def attach(self, connected: socket.socket) -> None:
        """Watches another connection.

        Raises:
            TimeoutError: the time is over already.
        """
        self._socket = connected
        if self.reason:
            raise TimeoutError

    def add(self, count: int) -> None:
        """Counts bytes of the file."""
        self._received += count

    def _run(self) -> None:
        deadline, before = time.monotonic() + MAX_HOURS * 3600, 0
        while not self._ended.wait(WINDOW_S):
            received = self._received
            if time.monotonic() > deadline:
                self.reason = f"it takes more than {MAX_HOURS} hours"
            elif received - before < MIN_BYTES_PER_S * WINDOW_S:
                self.reason = f"the server sends less than {MIN_BYTES_PER_S / 1000:g} kB per second"
            else:
                before = received
                continue
            if self._socket is not None:
                with suppress(OSError):
                    # Not the method of an encrypted socket, which changes what another thread is using.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return


class _Connection(http.client.HTTPConnection):
    watch: TransferWatch

    def connect(self) -> None:
        super().connect()
        self.watch.attach(self.sock)


class _EncryptedConnection(http.client.HTTPSConnection):
    watch: TransferWatch

    def connect(self) -> None:
        super().connect()
        self.watch.attach(self.sock)


class _Handler(urllib.request.HTTPHandler):
    """Opens watched connections."""

    def __init__(self, watch: TransferWatch) -> None:
        super().__init__()
        self.watch = watch

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connect(_Connection), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connect(_EncryptedConnection), req)

    https_request = urllib.request.HTTPHandler.http_request

    def _connect(self, kind: type[_Connection] | type[_EncryptedConnection]) -> Any:
        def connect(host: str, **options: Any) -> _Connection | _EncryptedConnection:
            connection = kind(host, **options)
            connection.watch = self.watch
            return connection

        return connect


def open_url(url: str, headers: Mapping[str, str], watch: TransferWatch) -> http.client.HTTPResponse:
    """The response to a GET request; redirects are followed to http and https, from https to https only.

    Args:
        url: with user and password, where the server needs them; they are not sent to another server.
        headers: of the request.
        watch: of the connection.

    Raises:
        ConfigError: not an http or https URL.
        HTTPError: the server returns another status than 2xx.
        ResourceError: too many redirects, a wrong one, or too large headers.
        OSError, HTTPException: no connection.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(watch),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    address = parse_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        request = urllib.request.Request(address.url, headers=dict(headers))
        if address.authorization:
            request.add_unredirected_header("Authorization", address.authorization)
        try:
            response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if watch.reason:  # what came of the headers means nothing
                error.close()
                raise TimeoutError from None
            if error.code not in REDIRECTS:
                raise
            with error:  # its body is not read: it could be endless
                address = _redirected(url, address, error.headers.get("Location"))
            continue
        size = sum(len(name) + len(value) for name, value in response.headers.items())
        if size > MAX_HEADER_BYTES:
            response.close()
            raise ResourceError(f"{shown_url(url)} returns headers of {size:,} bytes, which no file needs.")
        return response
    raise ResourceError(f"{shown_url(url)} redirects more than {MAX_REDIRECTS} times: nothing was downloaded.")


def _redirected(url: str, address: Address, location: str | None) -> Address:
    """The address that a redirect names.

    Raises:
        ResourceError: it names none, another scheme, or an unencrypted server.
    """
    if location is None:
        raise ResourceError(f"{shown_url(url)} redirects to nowhere: nothing was downloaded.")
    try:
        target = parse_url(urljoin(address.url, quote(location, safe=URL_SAFE, encoding="latin-1")))
    except (ValueError, ConfigError):
        raise ResourceError(
            f"{shown_url(url)} redirects to {shown_url(location[:200])}, which is not an http or https URL: nothing "
            "was downloaded."
        ) from None
    if address.is_encrypted and not target.is_encrypted:
        # Not every published file has a known hash: without encryption it could be replaced on the way.
        raise ResourceError(
            f"{shown_url(url)} redirects to {shown_url(target.url)}, which is not encrypted: nothing was downloaded. "
            "Give another URL with --url, or download it manually."
        )
    if target.authorization is None and target.origin == address.origin:
        return Address(target.url, target.origin, address.authorization)
    return target


def connection_error(error: Exception) -> str:
    """What failed, for a message; a server's words are shortened and made printable."""
    cause: Any = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} seconds"
    if isinstance(cause, http.client.BadStatusLine) and not isinstance(cause, http.client.RemoteDisconnected):
        return "the server does not answer in HTTP"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return "".join(char if char.isprintable() else " " for char in text)[:300]
