"""One process of a server: it loads a detector, answers requests, and at a signal answers those that it accepted."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from codetr_cli.errors import StoppedError, counted
from codetr_cli.runtime.malloc import return_large_blocks, share_one_heap
from codetr_cli.runtime.signals import NAMES, StopRequest
from codetr_cli.serving.app import Service
from codetr_cli.serving.connections import build_server, quiet_uvicorn
from codetr_cli.serving.engine import Engine
from codetr_cli.serving.image_job import ServedDetector
from codetr_cli.serving.metrics import Metrics, forget_dead_processes
from codetr_cli.serving.options import ServeOptions

logger = logging.getLogger(__name__)

TICK_S = 0.05
MEMORY_TICKS = 100


@dataclass(frozen=True)
class Running:
    """A server that accepts requests.

    Attributes:
        detector: what is served.
        port: where.
    """

    detector: ServedDetector
    port: int


class ServerProcess:
    """The server of this process.

    Args:
        load: makes the detector.
        options: how it answers.
        bound: the socket that it listens on, which it closes.
        on_ready: called once requests are accepted.
        listen_early: answer probes while the model is loaded; otherwise connections are refused until then.
        end_unhealthy: end with an error when the process should be started again, for a supervisor that does so.
    """

    def __init__(
        self,
        load: Callable[[], ServedDetector],
        options: ServeOptions,
        bound: socket.socket,
        *,
        on_ready: Callable[[Running], None],
        listen_early: bool = True,
        end_unhealthy: bool = False,
    ) -> None:
        self._options, self._bound = options, bound
        self._on_ready, self._listen_early, self._end_unhealthy = on_ready, listen_early, end_unhealthy
        forget_dead_processes()
        metrics = Metrics()
        engine = Engine(
            load,
            capacity=options.queue,
            batch=options.batch,
            max_wait_s=options.max_wait_ms / 1000,
            max_pixels=options.max_pixels,
            max_tiles=options.max_tiles,
            timeout_s=options.timeout_s,
            metrics=metrics,
        )
        self._engine, self._metrics = engine, metrics
        self.service = Service(engine, options, metrics)
        self._loading = threading.Event()
        self._failure: BaseException | None = None
        self._stop = threading.Event()

    def stop(self) -> None:
        """Asks the server to end: what was accepted is answered. Any thread may call it."""
        self._stop.set()

    def run(self) -> None:
        """Serves until a signal or `stop`.

        Raises:
            StoppedError: a signal stopped it.
            CodetrError: what `load` raises.
            RuntimeError: with `end_unhealthy`; what could be answered was.
        """
        return_large_blocks()
        share_one_heap()
        with quiet_uvicorn(), StopRequest(self._on_signal, lambda: None) as request:
            try:
                asyncio.run(self._serve())
            finally:
                self._engine.close()
                self._bound.close()
        if self._failure is not None:
            raise self._failure
        if request.number is not None:
            answered = counted(self.service.answered, "request")
            raise StoppedError(f"stopped by {NAMES[request.number]}: {answered} answered, none is left", request.number)

    def _on_signal(self, number: int) -> None:
        waiting = counted(self.service.in_flight, "accepted request")
        logger.info(
            "%s: no more requests are accepted; answering %s. A second one ends at once.", NAMES[number], waiting
        )
        self.stop()

    async def _serve(self) -> None:
        server = build_server(self.service.app)
        self._engine.start(self._loading.set, self._on_failure)
        listening: asyncio.Task[Any] | None = None
        if self._listen_early:
            listening = asyncio.create_task(server.serve(sockets=[self._bound]))
        await self._until(lambda: self._loading.is_set() or self._stop.is_set())
        if self._loading.is_set() and self._failure is None and not self._stop.is_set():
            await asyncio.to_thread(self.service.loaded)
            if listening is None:
                listening = asyncio.create_task(server.serve(sockets=[self._bound]))
            await self._until(lambda: server.started or self._stop.is_set())
            self._on_ready(Running(self._engine.detector, self._bound.getsockname()[1]))
            await self._until(lambda: self._stop.is_set() or self._has_become_unhealthy())
        self.service.stop()
        await self._until(lambda: not self.service.in_flight)
        server.should_exit = True
        if listening is not None:
            await listening

    def _on_failure(self, error: BaseException) -> None:
        self._failure = error
        self._loading.set()

    def _has_become_unhealthy(self) -> bool:
        reason = self._engine.why_unhealthy if self._end_unhealthy else None
        if reason is not None:
            self._failure = RuntimeError(reason)
        return reason is not None

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits, and keeps the count of the memory up to date."""
        ticks = 0
        while not condition():
            if ticks % MEMORY_TICKS == 0:
                self._metrics.update_memory()
            ticks += 1
            await asyncio.sleep(TICK_S)
