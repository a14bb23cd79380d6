"""The HTTP interface: what each path answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from codetr_cli.serving import api_schema
from codetr_cli.serving.api_errors import ApiError
from codetr_cli.serving.engine import Engine
from codetr_cli.serving.guard import DETECT, ROUTES, Guard, Traffic, unexpected
from codetr_cli.serving.image_job import ImageJob
from codetr_cli.serving.metrics import CONTENT_TYPE, Metrics
from codetr_cli.serving.model_info import describe_model
from codetr_cli.serving.options import ServeOptions
from codetr_cli.serving.requests import DetectRequest, read_request
from codetr_cli.serving.results import answer_json, image_json

LOADING_RETRY_S = 5
STOPPING_RETRY_S = 10
CODES = {404: "not_found", 405: "method_not_allowed"}


class Service:
    """What the paths share: the engine, and whether it accepts requests.

    Args:
        engine: not started yet.
        options: limits.
        metrics: of this process.
    """

    def __init__(self, engine: Engine, options: ServeOptions, metrics: Metrics) -> None:
        self.engine, self.options, self.metrics = engine, options, metrics
        self._is_loaded = self._is_stopping = False
        self._model: bytes | None = None
        self._traffic = Traffic()
        self.app = self._build_app()

    def loaded(self) -> None:
        """The engine can be used from now on."""
        self._model = json.dumps(describe_model(self.engine.detector, self.options)).encode()
        self._is_loaded = True
        self.metrics.ready.set(1)

    def stop(self) -> None:
        """Accepts no more requests; those that were accepted are answered."""
        self._is_stopping = True
        self.metrics.ready.set(0)

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and are not answered yet."""
        return self._traffic.in_flight

    @property
    def answered(self) -> int:
        """Requests that were accepted and have ended."""
        return self._traffic.answered

    def check_ready(self) -> None:
        """Ensures that requests for detections can be answered.

        Raises:
            ApiError: the server is loading or stopping.
        """
        if self._is_stopping:
            raise ApiError(
                503, "stopping", "the server is stopping and accepts no more requests", retry_after_s=STOPPING_RETRY_S
            )
        if not self._is_loaded:
            raise ApiError(503, "loading", "the model is being loaded", retry_after_s=LOADING_RETRY_S)

    def check_admission(self) -> None:
        """As `check_ready`, and that the queue has room."""
        self.check_ready()
        self.engine.check_room()

    def _build_app(self) -> FastAPI:
        app = FastAPI(
            title="codetr",
            openapi_url="/openapi.json",
            docs_url=None,  # FastAPI's pages load their scripts from another server
            redoc_url=None,
            redirect_slashes=False,
        )
        app.openapi = partial(api_schema.openapi, app, needs_key=self.options.api_key is not None)  # type: ignore[method-assign]
        app.post(DETECT, **api_schema.DETECT)(self.detect)
        app.get("/v1/model", **api_schema.MODEL)(self.model)
        app.get("/healthz", **api_schema.HEALTH)(self.health)
        app.get("/readyz", **api_schema.READY)(self.ready)
        app.get("/metrics", **api_schema.METRICS)(self.count)
        app.exception_handler(HTTPException)(_answer_http_error)
        app.add_middleware(  # it answers ApiError, which no handler here takes
            Guard,
            options=self.options,
            metrics=self.metrics,
            traffic=self._traffic,
            check_admission=self.check_admission,
        )
        if self.options.cors_origins:  # around the guard, so that pages can read errors
            app.add_middleware(
                CORSMiddleware,
                allow_origins=list(self.options.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "X-API-Key", "Content-Type"],
                expose_headers=["Retry-After", "Server-Timing"],
            )
        return app

    async def detect(self, request: Request) -> Response:
        """Finds the objects in one or more images."""
        asked = await read_request(request, self.options, self.engine.detector.class_names)
        jobs = [
            ImageJob(image.content, image.name, index, asked.options, _result_of(asked, index))
            for index, image in enumerate(asked.images)
        ]
        self.engine.submit(jobs)
        try:
            parts = await self._results(request, jobs)
        finally:
            for job in jobs:
                job.future.cancel()
        headers = {"Server-Timing": _timing(jobs)}
        return Response(answer_json(parts, asked.format), media_type="application/json", headers=headers)

    async def _results(self, request: Request, jobs: Sequence[ImageJob]) -> list[bytes]:
        """The results of all images.

        Raises:
            ApiError: the first that failed, or they take too long.
            asyncio.CancelledError: nobody waits for them.
        """
        everything = asyncio.create_task(_all_results(jobs))
        gone = asyncio.create_task(_wait_until_gone(request))
        try:
            waited: list[asyncio.Future[Any]] = [everything, gone]
            await asyncio.wait(waited, timeout=self.options.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                return await everything
            if gone.done():
                raise ClientDisconnect
            raise self._timed_out(jobs)
        except (ApiError, ClientDisconnect):
            raise
        except Exception as error:
            raise unexpected(error, "POST", DETECT) from error
        finally:
            gone.cancel()
            everything.cancel()

    def _timed_out(self, jobs: Sequence[ImageJob]) -> ApiError:
        waited = f"within {self.options.timeout_s:g} s"
        if any(job.is_started for job in jobs):
            return ApiError(504, "timeout", f"the images were not detected {waited}: send fewer or smaller ones")
        return ApiError(
            503, "overloaded", f"the turn of the images did not come {waited}", retry_after_s=LOADING_RETRY_S
        )

    async def model(self) -> Response:
        """The model, its classes and settings, and the limits of the server."""
        self.check_ready()
        return Response(self._model, media_type="application/json")

    async def health(self) -> Response:
        """Whether the process works; it should be started again if not."""
        reason = self.engine.why_unhealthy
        if reason is not None:
            raise ApiError(503, "unhealthy", f"the server should be started again: {reason}")
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        """Whether requests for detections are accepted: the model is loaded, and the server is not stopping."""
        self.check_ready()
        return JSONResponse({"status": "ready"})

    async def count(self) -> Response:
        """What the server counts, in the format of Prometheus."""
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def _all_results(jobs: Sequence[ImageJob]) -> list[bytes]:
    """The results of all images; the error of the first that fails."""
    return list(await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs)))


async def _wait_until_gone(request: Request) -> None:
    """Ends when the client closes its connection; what else it sends is not read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _result_of(asked: DetectRequest, index: int) -> Any:
    name, image_id = asked.images[index].name, asked.image_ids[index]
    return lambda prediction: image_json(prediction, name, image_id, asked.format)


def _timing(jobs: Sequence[ImageJob]) -> str:
    """The longest time that an image spent in each stage, as browsers show it."""
    stages = dict.fromkeys(stage for job in jobs for stage in job.seconds)
    longest = {stage: max(job.seconds.get(stage, 0.0) for job in jobs) for stage in stages}
    return ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in longest.items())


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework, such as a path that does not exist."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    messages = {
        404: f"there is nothing at {path}: this server has {', '.join(ROUTES)}",
        405: f"{path} does not take {request.method}",
    }
    code = CODES.get(error.status_code, "http_error")
    message = messages.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, code, message, headers=error.headers).response()
