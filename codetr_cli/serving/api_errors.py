"""Errors of the API: one form for all, with a status, a code for programs and a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from codetr_cli.errors import ConfigError, ResourceError, is_out_of_memory
from codetr_cli.images.decoder import BrokenImageError


class ApiError(Exception):
    """A request that is not answered with detections.

    Attributes:
        status: of HTTP.
        code: for programs, e.g. "queue_full".
        message: what was found and what to do.
        details: further entries: "field", "image", "retry_after_s".
        headers: of the response.
    """

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None, **details: Any
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.details = {name: value for name, value in details.items() if value is not None}
        self.headers = dict(headers or {})
        if "retry_after_s" in self.details:
            self.headers["Retry-After"] = str(self.details["retry_after_s"])

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        return {"error": {"code": self.code, "message": self.message, **self.details}}

    def response(self) -> JSONResponse:
        """The answer to a request."""
        return JSONResponse(self.body(), self.status, {"X-Error-Code": self.code, **self.headers})


def of_image(error: BaseException, index: int, name: str, max_pixels: int) -> ApiError | None:
    """The error of the API for what a stage raised for an image; None: it was not expected.

    Args:
        error: of the decoder or the detector.
        index: of the image in its request, from 0.
        name: that the client gave it.
        max_pixels: the limit of the server.
    """
    shown = f"image {index}" + (f" ({name[:100]})" if name else "")
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BrokenImageError) and error.limit_needed is not None:
        return ApiError(
            413,
            "image_too_large",
            f"{shown} counts {error.limit_needed:,} pixels, and this server decodes images of up to {max_pixels:,}: "
            "send a smaller one",
            image=index,
        )
    if isinstance(error, BrokenImageError):
        return ApiError(422, "unreadable_image", f"{shown} cannot be read: {error.reason or error}", image=index)
    if isinstance(error, ConfigError):
        return ApiError(422, "invalid_parameter", f"{shown}: {error}", image=index)
    if isinstance(error, ResourceError) or is_out_of_memory(error):
        return ApiError(
            503,
            "out_of_memory",
            f"{shown} needs more memory than the server has now: try again later, or send a smaller one or use tiles",
            image=index,
            retry_after_s=5,
        )
    return None
