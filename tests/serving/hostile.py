"""Requests that a server must refuse with a clear answer, each as the bytes of a connection."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from tests.serving.client import FORM_TYPE, chunked, form, part, post, request

JSON_TYPE = "application/json"


class Case(NamedTuple):
    """A request, the status that answers it, and the code of the error."""

    name: str
    sent: bytes
    status: int
    code: str


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG that declares a size, with any compressed data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def photo(width: int = 64, height: int = 48, kind: str = ".png") -> bytes:
    """An image that a server can read."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(kind, pixels)[1].tobytes()


def of_images(max_pixels: int) -> Iterator[Case]:
    """Files that are no images, damaged or too large."""
    side = int(max_pixels**0.5) + 100
    jpeg = photo(kind=".jpg")
    exif = (
        b"Exif\0\0MM\0*\0\0\0\x08"
        + struct.pack(">H", 4000)
        + b"".join(struct.pack(">HHII", 0x9286, 2, 60_000, 8) for _ in range(4000))
    )
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    files = {
        "a bomb": (png(side, side, zlib.compress(b"\0" * 1000)), 413, "image_too_large"),
        "a bomb of 4 gigapixels": (png(65_535, 65_535), 413, "image_too_large"),
        "a truncated PNG": (photo()[:-30], 422, "unreadable_image"),
        "a truncated JPEG": (jpeg[: len(jpeg) // 2], 422, "unreadable_image"),
        "a PNG without pixels": (png(64, 48), 422, "unreadable_image"),
        "text": (b"no image" * 100, 422, "unreadable_image"),
        "zeros": (b"\0" * 10_000, 422, "unreadable_image"),
        "nothing": (b"", 422, "unreadable_image"),
        "tags of a JPEG without end": (jpeg[:2] + segment + jpeg[2:100], 422, "unreadable_image"),
        "a chunk that declares gigabytes": (
            png(64, 48, b"", struct.pack(">I", 2**31 - 1) + b"tEXt"), 422, "unreadable_image"),
        "SVG": (b"<svg><image href='file:///etc/x'/></svg>", 422, "unreadable_image"),
    }  # fmt: skip
    for name, (content, status, code) in files.items():
        yield Case(name, post(form(content)), status, code)
        if content:
            encoded = json.dumps({"images": [{"data": base64.b64encode(content).decode()}]})
            yield Case(f"{name}, in JSON", post(encoded, JSON_TYPE), status, code)


def of_forms(max_images: int) -> Iterator[Case]:
    """Forms that are broken or too large."""
    image = photo()
    end = form()
    yield Case("no image", post(form(score="0.5")), 422, "no_images")
    yield Case("an unknown field", post(form(image, scroe="0.5")), 422, "unknown_parameter")
    yield Case("a score that is no number", post(form(image, score="high")), 422, "invalid_parameter")
    yield Case("a score of nan", post(form(image, score="nan")), 422, "invalid_parameter")
    yield Case("a score twice", post(part("score", "0.1") + form(image, score="0.2")), 422, "invalid_parameter")
    yield Case("an unknown NMS", post(form(image, nms="fast")), 422, "invalid_parameter")
    yield Case("an unknown form", post(form(image, format="xml")), 422, "invalid_parameter")
    yield Case("no detections", post(form(image, max_dets="0")), 422, "invalid_parameter")
    yield Case("detections without end", post(form(image, max_dets="99999999999")), 422, "invalid_parameter")
    yield Case("an unknown class", post(form(image, class_scores='{"nothing": 0.5}')), 422, "invalid_parameter")
    yield Case("a table that is none", post(form(image, class_scores="person=0.5")), 422, "invalid_parameter")
    yield Case("a deep table", post(form(image, class_scores="[" * 50_000)), 422, "invalid_parameter")
    yield Case("tiles of no size", post(form(image, tiles="big")), 422, "invalid_parameter")
    yield Case("tiles of a pixel", post(form(image, tiles="1x1")), 422, "invalid_parameter")
    yield Case("overlap without tiles", post(form(image, overlap="0.1")), 422, "invalid_parameter")
    yield Case(
        "thousands of tiles", post(form(photo(640, 480), tiles="32x32", overlap="0.9")), 422, "invalid_parameter"
    )
    yield Case("too many ids", post(form(image, image_ids="1,2")), 422, "invalid_parameter")
    yield Case("a huge id", post(form(image, image_ids="9" * 5000)), 422, "invalid_parameter")
    yield Case("an image as text", post(part("images", "text") + end), 422, "invalid_form")
    yield Case("a file of another name", post(part("file", image, "a.png") + end), 422, "invalid_form")
    yield Case("too many images", post(form(*[image] * (max_images + 1))), 413, "too_many_images")
    yield Case("thousands of images", post(form(*[b"x"] * 5000)), 413, "too_many_images")
    yield Case("thousands of fields", post(b"".join(part(f"f{n}", "") for n in range(5000)) + end), 400, "invalid_form")
    yield Case("a long field", post(form(image, class_scores="x" * 500_000)), 400, "invalid_form")
    yield Case("no boundary", post(form(image), "multipart/form-data"), 400, "invalid_form")
    yield Case("another boundary", post(form(image), "multipart/form-data; boundary=other"), 400, "invalid_form")
    yield Case("a part without a name", post(part("x", "y").replace(b'name="x"', b"") + end), 400, "invalid_form")
    yield Case("parameters in the address", post(form(image), path="/v1/detect?score=0.5"), 422, "unknown_parameter")
    yield Case("compressed", post(form(image), Content_Encoding="gzip"), 415, "unsupported_media_type")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "image/png", "", "multipart/mixed; boundary=x"):
        yield Case(f"content type {kind!r}", post(image, kind), 415, "unsupported_media_type")
    yield Case("no content type", post(image, None), 415, "unsupported_media_type")


def of_json(max_images: int) -> Iterator[Case]:
    """JSON that is broken, deep or of wrong types."""
    data = base64.b64encode(photo()).decode()
    texts: dict[str, tuple[str, int, str]] = {
        "no JSON": ("{", 400, "invalid_json"),
        "an empty body": ("", 400, "invalid_json"),
        "deep lists": ("[" * 100_000, 400, "invalid_json"),
        "deep objects": ('{"a":' * 100_000, 400, "invalid_json"),
        "a number of thousands of digits": ('{"images": [], "max_dets": ' + "9" * 5_000 + "}", 400, "invalid_json"),
        "a list": ("[]", 422, "invalid_parameter"),
        "no images": ("{}", 422, "invalid_parameter"),
        "an empty list of images": ('{"images": []}', 422, "invalid_parameter"),
        "a text for images": ('{"images": "x"}', 422, "invalid_parameter"),
        "a text for a score": (json.dumps({"images": [{"data": data}], "score": "0.5"}), 422, "invalid_parameter"),
        "not base64": ('{"images": [{"data": "!!!!"}]}', 422, "invalid_base64"),
        "half of base64": ('{"images": [{"data": "AAAAA"}]}', 422, "invalid_base64"),
        "letters of other alphabets": ('{"images": [{"data": "äöü="}]}', 422, "invalid_base64"),
        "an address": ('{"images": [{"data": "http://169.254.169.254/latest/meta-data/"}]}', 422, "invalid_base64"),
        "an address of a file": ('{"images": [{"data": "file:///etc/passwd"}]}', 422, "invalid_base64"),
        "half of a character": ('{"images": [{"data": "AAAA", "name": "\\ud800"}]}', 400, "invalid_json"),
        "a long name": (json.dumps({"images": [{"data": data, "name": "x" * 1000}]}), 422, "invalid_parameter"),
        "too many images": (json.dumps({"images": [{"data": data}] * (max_images + 1)}), 413, "too_many_images"),
        "a hundred thousand images": (json.dumps({"images": [{"data": "AAAA"}] * 100_000}), 413, "too_many_images"),
        "many unknown keys": (
            json.dumps({"images": [{"data": data}], **{f"k{n}": n for n in range(10_000)}}), 422, "unknown_parameter"),
        "ids that are texts": (json.dumps({"images": [{"data": data}], "image_ids": ["1"]}), 422, "invalid_parameter"),
    }  # fmt: skip
    for name, (text, status, code) in texts.items():
        yield Case(f"JSON: {name}", post(text, JSON_TYPE), status, code)
    yield Case("bytes that are no text", post(b'{"images": "\xff\xfe"}', JSON_TYPE), 400, "invalid_json")


def of_http(max_body: int) -> Iterator[Case]:
    """Requests that are not HTTP, too long, or for something else."""
    head = {"Content-Type": FORM_TYPE}
    big = {**head, "Content-Length": str(max_body + 1)}
    yield Case("a large body that is announced", request("POST", "/v1/detect", big), 413, "body_too_large")
    pieces = [form(photo())[:150], *[b"x" * 2**20] * (max_body // 2**20 + 2)]
    streamed = request("POST", "/v1/detect", {**head, "Transfer-Encoding": "chunked"}) + chunked(pieces)
    yield Case("a large body that is not announced", streamed, 413, "body_too_large")
    yield Case("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, 400, "invalid_http")
    yield Case(
        "a negative length", request("POST", "/v1/detect", {**head, "Content-Length": "-1"}), 400, "invalid_http"
    )
    yield Case("a long header", request("GET", "/healthz", {"X-Long": "x" * 100_000}), 431, "head_too_large")
    many = {f"X-{number}": "x" * 50 for number in range(5000)}
    yield Case("thousands of headers", request("GET", "/healthz", many), 400, "invalid_http")
    yield Case("a long address", request("GET", "/" + "x" * 100_000), 431, "head_too_large")
    yield Case("a head without end", b"GET / HTTP/1.1\r\nX: " + b"x" * 2_000_000, 400, "invalid_http")
    broken = request("POST", "/v1/detect", {**head, "Transfer-Encoding": "chunked"}) + b"zz\r\nxx"
    yield Case("broken chunks", broken, 400, "invalid_http")
    yield Case("another path", request("GET", "/v1/../../etc/passwd"), 404, "not_found")
    yield Case("a path with zeros", request("GET", "/%00%ff"), 404, "not_found")
    yield Case("another method", request("DELETE", "/v1/detect"), 405, "method_not_allowed")
    yield Case("a method of no kind", request("BREW", "/v1/detect"), 405, "method_not_allowed")
    yield Case("a slash too many", post(form(photo()), path="/v1/detect/"), 404, "not_found")
