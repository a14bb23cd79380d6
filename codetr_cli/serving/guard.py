"""What every request passes first: keys, sizes, times and counts; and where an unexpected error becomes an answer."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect

from codetr_cli.errors import shown
from codetr_cli.serving.api_errors import ApiError
from codetr_cli.serving.metrics import Metrics
from codetr_cli.serving.options import MAX_HEAD_BYTES, ServeOptions
from codetr_cli.serving.requests import check_content_type

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

DETECT = "/v1/detect"
OPEN = ("/healthz", "/readyz", "/openapi.json")
"""Paths that need no key: probes, and the description of the API, which is the same for all models."""
ROUTES = (DETECT, "/v1/model", "/metrics", *OPEN)
MAX_HELD_BODIES = 8
"""Bodies of the largest size that are in memory at the same time."""
GONE = 499
"""Status, in the metrics only, of requests whose client left before the answer."""


@dataclass
class Traffic:
    """What a process has in hand.

    Attributes:
        in_flight: requests for detections that were accepted and are not answered yet.
        held_bytes: of their bodies.
        answered: requests for detections that were accepted and have ended.
    """

    in_flight: int = 0
    held_bytes: int = 0
    answered: int = 0


class Guard:
    """An ASGI application around another one.

    Args:
        app: answers what comes through.
        options: limits and the key.
        metrics: counts requests.
        traffic: counts what is in hand.
        check_admission: raises an `ApiError` if no request for detections can be accepted now.
    """

    def __init__(
        self,
        app: App,
        *,
        options: ServeOptions,
        metrics: Metrics,
        traffic: Traffic,
        check_admission: Callable[[], None],
    ) -> None:
        self._app = app
        self.options, self.metrics = options, metrics
        self._traffic, self._check_admission = traffic, check_admission

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return
        exchange = _Exchange(scope, receive, send)
        is_accepted = False
        try:
            exchange.check_length()
            self._check_key(exchange)
            if exchange.path == DETECT and exchange.method == "POST":
                self._check_head(exchange)
                self._check_admission()
                is_accepted = True
                self._traffic.in_flight += 1
                self.metrics.in_flight.set(self._traffic.in_flight)
            body = _Body(exchange, self)
            try:
                await self._app(scope, body.receive, exchange.send)
            finally:
                self._traffic.held_bytes -= body.length
        except ApiError as error:
            await exchange.answer(error)
        except ClientDisconnect:
            pass  # nobody reads an answer
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            await exchange.answer(unexpected(error, exchange.method, exchange.path))
        finally:
            if is_accepted:
                self._traffic.in_flight -= 1
                self._traffic.answered += 1
                self.metrics.in_flight.set(self._traffic.in_flight)
            self._count(exchange)

    def hold(self, count: int) -> None:
        """Counts bytes of a body that are in memory.

        Raises:
            ApiError: there are too many.
        """
        if self._traffic.held_bytes + count > MAX_HELD_BODIES * self.options.max_body:
            raise ApiError(
                429, "queue_full", "too many large requests at the same time: try again later", retry_after_s=1
            )
        self._traffic.held_bytes += count

    def _check_key(self, exchange: _Exchange) -> None:
        key = self.options.api_key
        if key is None or exchange.path in OPEN or exchange.method == "OPTIONS":
            return
        scheme, _, token = exchange.header("authorization").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else exchange.header("x-api-key")
        if not hmac.compare_digest(given.encode("latin-1"), key.encode("latin-1")):
            raise ApiError(
                401,
                "unauthorized",
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_head(self, exchange: _Exchange) -> None:
        """What can be refused before the body comes."""
        check_content_type(exchange.header("content-type"), exchange.header("content-encoding"))
        length = exchange.header("content-length")
        if length.isdecimal() and len(length) < 20 and int(length) > self.options.max_body:
            raise too_large(self.options.max_body)

    def _count(self, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        route = exchange.path if exchange.path in ROUTES else "other"
        self.metrics.requests.labels(route, str(exchange.status), exchange.code).inc()
        if route == DETECT:
            self.metrics.stages.labels("total").observe(seconds)
        if self.options.log_requests:
            client = (exchange.scope.get("client") or ("-",))[0]
            logger.info(
                "%s %s %s %d %s%.0f ms",
                *(client, exchange.method, exchange.path[:200], exchange.status),
                *(f"{exchange.code} " if exchange.code else "", 1000 * seconds),
            )


def too_large(max_body: int) -> ApiError:
    """The error of a body that is longer than allowed."""
    return ApiError(
        413, "body_too_large", f"the request is larger than {max_body:,} bytes: send fewer or smaller images"
    )


def unexpected(error: BaseException, method: str, path: str) -> ApiError:
    """The error of the API for a bug, which is logged; the client gets a number to find it there."""
    number = secrets.token_hex(4)
    logger.error(
        "unexpected %s in a request (%s %s, error %s): %s",
        type(error).__name__,
        method,
        path[:200],
        number,
        shown(str(error), 500),
    )
    for line in "".join(traceback.format_exception(error)).splitlines():
        logger.error("%s: %s", number, line)
    return ApiError(
        500, "internal_error", f"an unexpected error, which was logged on the server as {number}", error_id=number
    )


class _Exchange:
    """A request and what was answered so far."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.started = time.perf_counter()
        self.status = GONE  # until there is an answer
        self.code = ""
        self._is_started = False

    def header(self, name: str) -> str:
        """The value of a header, empty without it; of several the first."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == wanted), "")

    def check_length(self) -> None:
        """Refuses a first line and headers that are too long: the protocol does only if they come in pieces.

        Raises:
            ApiError: they are.
        """
        line = len(self.scope.get("raw_path") or b"") + len(self.scope["query_string"])
        if line + sum(len(name) + len(value) + 4 for name, value in self.scope["headers"]) > MAX_HEAD_BYTES:
            raise ApiError(
                431,
                "head_too_large",
                f"the first line and the headers of the request exceed {MAX_HEAD_BYTES // 1024} KiB",
                headers={"Connection": "close"},
            )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_started = True
            self.status = message["status"]
            self.code = next((v.decode() for k, v in message["headers"] if k == b"x-error-code"), "")
        await self._send(message)

    async def answer(self, error: ApiError) -> None:
        """Answers with an error, unless an answer has begun."""
        if not self._is_started:
            with suppress(OSError):
                await error.response()(self.scope, self.receive, self.send)


class _Body:
    """The body of a request, counted and timed while it is read."""

    def __init__(self, exchange: _Exchange, guard: Guard) -> None:
        self._exchange, self._guard = exchange, guard
        self.length = 0
        self._is_complete = False

    async def receive(self) -> Message:
        """The next message of the client.

        Raises:
            ApiError: the body is too long, or took too long.
        """
        if self._is_complete:
            return await self._exchange.receive()
        limit = self._guard.options.read_timeout_s
        left = self._exchange.started + limit - time.perf_counter()
        try:
            async with asyncio.timeout(left):
                message = await self._exchange.receive()
        except TimeoutError:
            raise ApiError(
                408,
                "request_timeout",
                f"the request did not arrive within {limit:g} s ({self.length:,} bytes did)",
                headers={"Connection": "close"},
            ) from None
        if message["type"] != "http.request":
            return message
        body = message.get("body", b"")
        if self.length + len(body) > self._guard.options.max_body:
            raise too_large(self._guard.options.max_body)
        self._guard.hold(len(body))
        self.length += len(body)
        if not message.get("more_body", False):
            self._is_complete = True
            if self._exchange.path == DETECT:
                self._guard.metrics.stages.labels("read").observe(time.perf_counter() - self._exchange.started)
        return message
