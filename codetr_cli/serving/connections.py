"""Connections: uvicorn's server and protocol with the limits that they lack.

uvicorn waits without end for the rest of a request's head, for the body of a request that was answered already, and
for a client that does not read its answer; and it takes any number of connections. Signals are handled by the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.serving.api_errors import ApiError
from codetr_cli.serving.options import HEAD_S, KEEP_ALIVE_S, MAX_CONNECTIONS, MAX_HEAD_BYTES, ServeOptions

BACKLOG = 512
CLOSE_S = 10
"""For clients to read the last answers when the server ends."""
FILES_OF_A_CONNECTION = 2
"""Files that a connection may need, its own included."""
REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Server(uvicorn.Server):
    """uvicorn's server without signal handlers: it ends when `should_exit` is set."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves all signals to the caller."""
        yield


class Protocol(H11Protocol):
    """A connection. The attributes `transport`, `conn` and `cycle` are uvicorn's."""

    _deadline: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            self._refuse(
                ApiError(503, "too_many_connections", "too many connections: try again later", retry_after_s=1)
            )
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the deadline."""
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request, or for the rest of the one that was answered."""
        super().on_response_complete()
        self._unsent = 0
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection; one whose client does not read its answer is cut."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and (not self._unsent or unsent < self._unsent):  # it reads slowly
            self._unsent = unsent
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif unsent:
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, or has a head that is too long."""
        limit = f"{MAX_HEAD_BYTES // 1024} KiB"
        self._refuse(
            ApiError(
                400, "invalid_http", f"the request is not valid HTTP, or its first line and headers exceed {limit}"
            )
        )

    def _watch(self) -> None:
        """Gives the client a limited time while it owes the server bytes; once only, whatever it sends."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.is_closing():
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self._too_slow)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.SEND_BODY:  # of a request that was answered
            self.transport.abort()
            return
        self._refuse(
            ApiError(408, "request_timeout", f"the first line and the headers did not arrive within {HEAD_S:g} s")
        )

    def _refuse(self, error: ApiError) -> None:
        """Writes an error where no request is, and closes the connection."""
        self._stop_watching()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        is_started = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not is_started:
            body = json.dumps(error.body())
            headers = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
            lines = [f"{name}: {value}" for name, value in {**headers, **error.headers}.items()]
            head = "\r\n".join([f"HTTP/1.1 {error.status} {REASONS[error.status]}", *lines])
            self.transport.write(f"{head}\r\n\r\n{body}".encode("latin-1"))
        self.transport.close()


def max_connections() -> int:
    """Connections at the same time: fewer than `MAX_CONNECTIONS` where the process may not open so many files."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files < 0 else max(8, min(MAX_CONNECTIONS, files // FILES_OF_A_CONNECTION - 64))


def build_server(app: Any) -> Server:
    """A server for an ASGI application; it listens on the sockets that `serve` gets."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        backlog=BACKLOG,
    )
    return Server(config)


@contextlib.contextmanager
def quiet_uvicorn() -> Iterator[None]:
    """Inside, uvicorn and the parser of forms log errors only, as messages of this package.

    They warn of every request that is wrong.
    """
    loggers = [logging.getLogger(name) for name in ("uvicorn", "python_multipart")]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [_Forward(logging.ERROR)], False
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        logging.getLogger(__name__).error("%s", text)


def bind(options: ServeOptions, *, shared: bool = False) -> socket.socket:
    """A socket at the address of a server, which does not listen yet.

    Args:
        options: host and port.
        shared: others may use the same port, to share its connections (Linux).

    Raises:
        ConfigError: the host is no address or name of this machine.
        ResourceError: the port is in use or reserved.
    """
    host, port = options.host, options.port
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}: not a known address ({error}); use 127.0.0.1, 0.0.0.0 or one of this machine"
        ) from error
    family, _, _, _, address = found[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ResourceError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port, or 0 for one that is free"
        ) from error
    bound.set_inheritable(False)
    return bound
