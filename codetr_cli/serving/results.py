"""Detections as JSON, in three forms: objects, records of COCO, and the columns of `sv.Detections`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from codetr_cli.inference.prediction import Prediction
from codetr_cli.serving.requests import Format


class Mask(BaseModel):
    """A mask in COCO's compressed run-length encoding."""

    size: tuple[int, int] = Field(description="(height, width) of the image.")
    counts: str


class Detected(BaseModel):
    """One object."""

    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the image as sent.")
    score: float
    label: int = Field(description="Class index, from 0.")
    category_id: int = Field(description="Of the class in the annotations that the model was trained on.")
    class_name: str
    mask: Mask | None = Field(None, description="Only of models with masks.")
    mask_score: float | None = Field(None, description="Only where masks have scores of their own.")


class ImageObjects(BaseModel):
    """The objects of one image, best score first."""

    name: str = Field(description="As the client gave it, or empty.")
    width: int = Field(description="After the rotation that EXIF asks for.")
    height: int
    detections: list[Detected]


class ObjectsAnswer(BaseModel):
    """The form `objects`: images in the order of the request."""

    images: list[ImageObjects]


class CocoRecord(BaseModel):
    """A detection in COCO's result format."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height in pixels of the image as sent.")
    score: float
    segmentation: Mask | None = Field(None, description="Only of models with masks.")
    mask_score: float | None = Field(None, description="Only where masks have scores of their own.")


class Columns(BaseModel):
    """The detections of one image as arguments of `supervision.Detections`; lists are to become arrays."""

    model_config = ConfigDict(json_schema_extra={"description": "Columns of one image, for `sv.Detections`."})

    name: str
    width: int
    height: int
    xyxy: list[tuple[float, float, float, float]]
    confidence: list[float]
    class_id: list[int]
    data: dict[str, list[str] | list[int]] = Field(description="`class_name` and `category_id`.")
    mask: list[Mask] | None = Field(None, description="Run-length codes; only of models with masks.")


class SupervisionAnswer(BaseModel):
    """The form `supervision`: images in the order of the request."""

    images: list[Columns]


def image_json(prediction: Prediction, name: str, image_id: int, form: Format) -> bytes:
    """The part of an answer that one image makes, for `answer_json`."""
    make = {"objects": _objects, "coco": _records, "supervision": _columns}[form]
    return json.dumps(make(prediction, name, image_id), separators=(",", ":"), allow_nan=False).encode()


def answer_json(parts: Sequence[bytes], form: Format) -> bytes:
    """The whole answer of the parts of its images."""
    if form == "coco":
        return b"[" + b",".join(part[1:-1] for part in parts if part != b"[]") + b"]"
    return b'{"images":[' + b",".join(parts) + b"]}"


def _boxes(prediction: Prediction) -> list[list[float]]:
    """Rounded like COCO's results: 1e-4 pixels, far below what a network resolves."""
    boxes: list[list[float]] = prediction.boxes.astype(np.float64).round(4).tolist()
    return boxes


def _scores(scores: Any) -> list[float]:
    rounded: list[float] = scores.astype(np.float64).round(8).tolist()
    return rounded


def _about(prediction: Prediction, name: str) -> dict[str, Any]:
    height, width = prediction.image_size
    return {"name": name, "width": width, "height": height}


def _objects(prediction: Prediction, name: str, image_id: int) -> dict[str, Any]:
    columns: dict[str, Sequence[Any]] = {
        "box": _boxes(prediction),
        "score": _scores(prediction.scores),
        "label": prediction.labels.tolist(),
        "category_id": prediction.category_ids.tolist(),
        "class_name": prediction.class_names,
    }
    if prediction.masks is not None:
        columns["mask"] = prediction.masks
    if prediction.mask_scores is not None:
        columns["mask_score"] = _scores(prediction.mask_scores)
    rows = zip(*columns.values(), strict=True)
    return {**_about(prediction, name), "detections": [dict(zip(columns, row, strict=True)) for row in rows]}


def _records(prediction: Prediction, name: str, image_id: int) -> list[dict[str, Any]]:
    return prediction.to_coco(image_id)


def _columns(prediction: Prediction, name: str, image_id: int) -> dict[str, Any]:
    return {
        **_about(prediction, name),
        "xyxy": _boxes(prediction),
        "confidence": _scores(prediction.scores),
        "class_id": prediction.labels.tolist(),
        "data": {"class_name": prediction.class_names, "category_id": prediction.category_ids.tolist()},
        **({} if prediction.masks is None else {"mask": prediction.masks}),
    }
