"""Requests for detections: forms with files, or JSON with base64, read within limits into images and options."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from codetr_cli.annotations.annotation_json import ID
from codetr_cli.errors import ConfigError
from codetr_cli.inference.arguments import check_class_scores
from codetr_cli.inference.options import MAX_OVERLAP, NO_TILES, DetectOptions, TileOptions
from codetr_cli.reading import parse_json
from codetr_cli.serving.api_errors import ApiError
from codetr_cli.serving.options import MAX_DETS, MAX_FIELD_BYTES, MAX_FIELDS, ServeOptions

FILES = "images"
"""Field of a form or of JSON that holds the images."""
FORM, JSON = "multipart/form-data", "application/json"
NO_QUERY = "the address has parameters after a ?, which have no effect: send them as fields of the form or of the JSON"
MAX_NAME = 255
PIECE = 2**18
MOST_IMAGES = 10_000
"""Of a request to any server: more are not read."""

Score = Annotated[float, Field(ge=0, le=1)]
Format = Literal["objects", "coco", "supervision"]
_DATA_URL = re.compile(r"data:[\w.+-]{0,80}/[\w.+-]{0,80};base64,")


class DetectParameters(BaseModel):
    """How images are detected, and the form of the answer."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: Format = Field(
        "objects",
        description="Form of the answer: `objects` (one object a detection), `coco` (records of COCO's result format), "
        "`supervision` (columns of `sv.Detections`).",
    )
    score: Score = Field(0.3, description="Lowest score to keep.")
    class_scores: dict[str, Score] = Field(
        default_factory=dict,
        max_length=10_000,
        description="Lowest scores of some classes by name; others need `score`.",
    )
    max_dets: int | None = Field(
        None, ge=1, le=MAX_DETS, description="Most detections of an image. Default: as in the settings of the model."
    )
    nms: Literal["none", "hard", "soft"] | None = Field(
        None, description="Non-maximum suppression. Default: as in the settings of the model."
    )
    tiles: Annotated[str, StringConstraints(max_length=30)] | None = Field(
        None,
        description="Cut large images into tiles: `1024x1024` (width x height), `1024` or `auto`. "
        "Default: not cut, or as an exported file says; `none`: not cut.",
    )
    overlap: float | None = Field(
        None,
        ge=0,
        le=MAX_OVERLAP,
        description="Share of a tile that the next one repeats; only with `tiles`. Default: 0.2.",
    )
    image_ids: list[Annotated[int, Field(ge=ID.low, le=ID.high)]] | None = Field(
        None, description="Of the images, for the format `coco`. Default: 1, 2, ..."
    )


class EncodedImage(BaseModel):
    """An image file in JSON."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(
        min_length=1, description="The bytes of an image file as base64, or a data URL of them. Other URLs are refused."
    )
    name: Annotated[str, StringConstraints(max_length=MAX_NAME)] = Field("", description="Comes back in the answer.")


class DetectBody(DetectParameters):
    """A request in JSON."""

    images: list[EncodedImage] = Field(min_length=1, max_length=MOST_IMAGES, description="The images.")


@dataclass(frozen=True)
class GivenImage:
    """An image file of a request."""

    content: bytes
    name: str


@dataclass(frozen=True)
class DetectRequest:
    """What a request asks for.

    Attributes:
        images: at least one.
        image_ids: one for each.
        format: of the answer.
        options: how images are detected.
    """

    images: Sequence[GivenImage]
    image_ids: Sequence[int]
    format: Format
    options: DetectOptions


class _InMemory(MultiPartParser):
    """Starlette's parser of forms, which writes no files: the bytes of a request are limited before."""

    spool_max_size = 2**40


async def read_request(request: Request, options: ServeOptions, class_names: Sequence[str]) -> DetectRequest:
    """Reads the body of a request.

    Args:
        request: its body is not longer than allowed.
        options: limits.
        class_names: of the detector.

    Raises:
        ApiError: what is wrong with it.
    """
    if request.url.query:
        raise ApiError(422, "unknown_parameter", NO_QUERY)
    kind = check_content_type(request.headers.get("content-type"), request.headers.get("content-encoding"))
    content = await request.body()
    if kind == JSON:
        parameters, images = await asyncio.to_thread(_of_json, content, options.max_images)
    else:
        parameters, images = await _of_form(request.headers, content, options.max_images)
    return _checked(parameters, images, class_names)


def check_content_type(value: str | None, encoding: str | None = None) -> str:
    """The kind of a body, `FORM` or `JSON`.

    Raises:
        ApiError: it is another, or compressed.
    """
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise ApiError(415, "unsupported_media_type", "the body has a Content-Encoding: send it without one")
    kind = (value or "").partition(";")[0].strip().lower()
    if kind not in (FORM, JSON):
        found = f"the Content-Type is {kind[:100]!r}" if kind else "the request has no Content-Type"
        raise ApiError(
            415,
            "unsupported_media_type",
            f"{found}: send {FORM} with files, or {JSON} with base64",
            headers={"Accept": f"{FORM}, {JSON}"},
        )
    return kind


def _of_json(content: bytes, max_images: int) -> tuple[DetectParameters, list[GivenImage]]:
    try:
        body = DetectBody.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise _invalid(error) from None
    if len(body.images) > max_images:
        raise _too_many_images(max_images)
    images = [GivenImage(_decoded(image.data, index), image.name) for index, image in enumerate(body.images)]
    return body, images


def _decoded(data: str, index: int) -> bytes:
    """The bytes of an image in base64."""
    where = f"{FILES}.{index}.data"
    if re.match(r"[a-z][a-z0-9+.-]{0,20}://", data, re.IGNORECASE):
        raise ApiError(
            422,
            "invalid_base64",
            f"{where} is an address, and this server fetches nothing: send the image",
            field=where,
        )
    found = _DATA_URL.match(data)
    try:
        content = base64.b64decode(data[found.end() :] if found else data, validate=True)
    except (binascii.Error, ValueError) as error:
        text = str(error).rstrip(".").lower()
        raise ApiError(422, "invalid_base64", f"{where} is not base64 ({text})", field=where) from None
    if not content:
        raise ApiError(422, "unreadable_image", f"{where} is empty", field=where, image=index)
    return content


async def _of_form(headers: Headers, content: bytes, max_images: int) -> tuple[DetectParameters, list[GivenImage]]:
    parser = _InMemory(
        headers,
        _pieces(content),
        max_files=max_images,
        max_fields=MAX_FIELDS + max_images,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many_images(max_images) from None
        raise ApiError(400, "invalid_form", f"the form cannot be read: {error.message.rstrip('.')}") from None
    except (ValueError, LookupError, AssertionError) as error:  # of headers of its parts
        raise ApiError(400, "invalid_form", f"the form cannot be read: {str(error)[:200]}") from None
    try:
        images: list[GivenImage] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) != (name == FILES):
                kind = "a file" if isinstance(value, UploadFile) else "a text"
                raise ApiError(
                    422,
                    "invalid_form",
                    f"the field {name[:100]!r} is {kind}: images are files in the field {FILES!r}, as of "
                    f"`curl -F {FILES}=@photo.jpg`, and all others are texts",
                    field=name[:100],
                )
            if isinstance(value, UploadFile):
                content = await value.read()
                if not content:
                    raise ApiError(
                        422, "unreadable_image", f"image {len(images)} is empty", field=FILES, image=len(images)
                    )
                images.append(GivenImage(content, (value.filename or "")[:MAX_NAME]))
        parameters = _parameters(form)
    finally:
        await form.close()
    if not images:
        raise ApiError(422, "no_images", f"the form has no file in the field {FILES!r}", field=FILES)
    return parameters, images


async def _pieces(content: bytes) -> AsyncGenerator[bytes, None]:
    """The content in parts, between which other requests have their turn."""
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]
        await asyncio.sleep(0)


def _parameters(form: FormData) -> DetectParameters:
    """The fields of a form that are texts."""
    fields: dict[str, Any] = {}
    for name in form:
        if name == FILES:
            continue
        texts = [str(text) for text in form.getlist(name)]
        if name == "image_ids":
            fields[name] = [part for text in texts for part in text.split(",")]
        elif len(texts) > 1:
            raise ApiError(422, "invalid_parameter", f"{name[:100]} is given {len(texts)} times", field=name[:100])
        elif name == "class_scores":
            fields[name] = _table(texts[0])
        else:
            fields[name] = texts[0]
    try:
        return DetectParameters.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None


def _table(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        example = '{"person": 0.5}'
        raise ApiError(
            422,
            "invalid_parameter",
            f"class_scores is not JSON: give scores by class, e.g. {example}",
            field="class_scores",
        ) from None


def _invalid(error: ValidationError) -> ApiError:
    """The first thing that is wrong with the values of a request; never what they hold."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if first["type"] == "too_long" and first["loc"] == (FILES,):
        return _too_many_images(MOST_IMAGES)
    where = ".".join(str(part)[:100] for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(DetectBody.model_fields)
        return ApiError(422, "unknown_parameter", f"there is no parameter {where[:100]!r}; known: {known}", field=where)
    message = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(422, "invalid_parameter", f"{where or 'the body'}: {message}", field=where or None)


def _too_many_images(most: int) -> ApiError:
    return ApiError(
        413, "too_many_images", f"the request has more than {most:,} images: send them in several requests", field=FILES
    )


def _checked(parameters: DetectParameters, images: Sequence[GivenImage], class_names: Sequence[str]) -> DetectRequest:
    """The request, with the checks that depend on the detector and on several values."""
    ids = parameters.image_ids
    if ids is not None and len(ids) != len(images):
        raise ApiError(
            422, "invalid_parameter", f"image_ids has {len(ids)} numbers for {len(images)} images", field="image_ids"
        )
    if parameters.overlap is not None and parameters.tiles in (None, NO_TILES):
        raise ApiError(422, "invalid_parameter", "overlap is of tiles: give tiles, too, e.g. auto", field="overlap")
    try:
        class_scores = check_class_scores(parameters.class_scores, class_names)
    except ConfigError as error:
        raise ApiError(422, "invalid_parameter", str(error), field="class_scores") from None
    try:
        overlap = 0.2 if parameters.overlap is None else parameters.overlap
        tiles = None if parameters.tiles in (None, NO_TILES) else TileOptions.parse(parameters.tiles, overlap)
    except ConfigError as error:
        raise ApiError(422, "invalid_parameter", str(error), field="tiles") from None
    options = DetectOptions(
        score=parameters.score,
        class_scores=class_scores,
        max_dets=parameters.max_dets,
        nms=parameters.nms,
        tiles=tiles,
        whole_images=parameters.tiles == NO_TILES,
    )
    return DetectRequest(images, ids or range(1, len(images) + 1), parameters.format, options)
