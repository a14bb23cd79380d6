"""The description of the API for `/openapi.json`, with examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from codetr_cli import __version__
from codetr_cli.serving.requests import FILES, FORM, JSON, DetectBody, DetectParameters
from codetr_cli.serving.results import CocoRecord, ObjectsAnswer, SupervisionAnswer

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
"""A PNG of one black pixel."""


class ErrorContent(BaseModel):
    """What was found and what to do."""

    code: str = Field(description="For programs; it does not change.")
    message: str = Field(description="For people.")
    field: str | None = Field(None, description="The parameter that is wrong.")
    image: int | None = Field(None, description="Index of the image in the request, from 0.")
    retry_after_s: int | None = Field(None, description="As the header Retry-After.")
    error_id: str | None = Field(None, description="To find an unexpected error in the log of the server.")


class ErrorAnswer(BaseModel):
    """The form of all errors."""

    error: ErrorContent


class Status(BaseModel):
    """Of a probe."""

    status: str


_DETECTION = {"box": [12.5, 30.0, 210.25, 180.75], "score": 0.91, "label": 0, "category_id": 1, "class_name": "person"}
_NAMED = {"name": "street.jpg", "width": 640, "height": 480}
ANSWERS = {
    "objects": {"images": [{**_NAMED, "detections": [_DETECTION]}]},
    "coco": [{"image_id": 1, "category_id": 1, "bbox": [12.5, 30.0, 197.75, 150.75], "score": 0.91}],
    "supervision": {
        "images": [
            {
                **_NAMED,
                "xyxy": [[12.5, 30.0, 210.25, 180.75]],
                "confidence": [0.91],
                "class_id": [0],
                "data": {"class_name": ["person"], "category_id": [1]},
            }
        ]
    },
}
"""An example of each form."""

_MEANINGS = {
    400: "The body is no form or no JSON.",
    401: "The API key is missing or wrong.",
    408: "The body did not arrive in time.",
    413: "The body or an image is too large, or there are too many images.",
    415: "The body is of another kind, or compressed.",
    422: "A parameter is wrong, or an image cannot be read.",
    431: "The first line and the headers are too long.",
    429: "The queue is full; Retry-After gives the seconds until there is room.",
    500: "An unexpected error.",
    503: "The server is loading, stopping, overloaded or out of memory.",
    504: "The images were not detected in time.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "model": ErrorAnswer,
            "description": _MEANINGS[status],
            **({"headers": {"Retry-After": {"schema": {"type": "integer"}}}} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def _form_schema() -> dict[str, Any]:
    """The fields of a form: the parameters, of which tables are JSON in a text, and the files."""
    properties = dict(DetectParameters.model_json_schema()["properties"])
    properties["class_scores"] = {
        "type": "string",
        "contentMediaType": JSON,
        "description": f"{properties['class_scores']['description']} As JSON.",
    }
    images = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "format": "binary"},
        "description": "Image files.",
    }
    return {
        "type": "object",
        "required": [FILES],
        "properties": {FILES: images, **properties},
        "additionalProperties": False,
    }


DETECT: dict[str, Any] = {
    "summary": "Detect objects",
    "operation_id": "detect",
    "responses": {
        200: {
            "model": ObjectsAnswer | SupervisionAnswer | list[CocoRecord],
            "description": "The detections, best score first, in the form that `format` asks for.",
            "headers": {"Server-Timing": {"schema": {"type": "string"}, "description": "Milliseconds by stage."}},
            "content": {JSON: {"examples": {name: {"value": value} for name, value in ANSWERS.items()}}},
        },
        **_errors(*_MEANINGS),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                FORM: {"schema": _form_schema(), "encoding": {FILES: {"contentType": "image/*"}}},
                JSON: {
                    "schema": {"$ref": "#/components/schemas/DetectBody"},
                    "examples": {
                        "one image": {"value": {"images": [{"data": PIXEL, "name": "pixel.png"}], "score": 0.5}},
                        "records of COCO": {
                            "value": {"images": [{"data": PIXEL}], "format": "coco", "image_ids": [42], "max_dets": 100}
                        },
                    },
                },
            },
        }
    },
}
MODEL: dict[str, Any] = {
    "summary": "Describe the model",
    "responses": {200: {"content": {JSON: {"schema": {"type": "object"}}}}, **_errors(401, 503)},
}
HEALTH: dict[str, Any] = {"summary": "Is the process alive?", "responses": {200: {"model": Status}, **_errors(503)}}
READY: dict[str, Any] = {"summary": "Are requests accepted?", "responses": {200: {"model": Status}, **_errors(503)}}
METRICS: dict[str, Any] = {
    "summary": "Counts and times for Prometheus",
    "responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_errors(401)},
}


def openapi(app: FastAPI, *, needs_key: bool) -> dict[str, Any]:
    """The description, made once.

    Args:
        app: its routes.
        needs_key: whether requests need an API key.
    """
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(
        title="codetr",
        version=__version__,
        summary="Object detection",
        description="Send images, get detections. All errors have the form `ErrorAnswer`.",
        routes=app.routes,
    )
    body = DetectBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {**body.pop("$defs", {}), "DetectBody": body}
    if needs_key:
        schema["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, operations in schema["paths"].items():
            if path.startswith("/v1/") or path == "/metrics":
                for operation in operations.values():
                    operation["security"] = [{"bearer": []}, {"header": []}]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this API does not use
        schemas.pop(name, None)
    app.openapi_schema = schema
    return schema
