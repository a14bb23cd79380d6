"""Results of image files: one an image, plain values that JSON can hold, and their packed form in part files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

from codetr_cli.reading import parse_json

NOTHING = type(None)
RESULT_TYPES = {"number": (int,), "file": (str,), "image": (dict, NOTHING), "records": (list,), "error": (str, NOTHING)}
IMAGE_TYPES = {
    **{"file": (str,), "file_name": (str,), "image_id": (int,), "height": (int,), "width": (int,)},
    **{"objects": (dict,), "seconds": (int, float), "drawn": (str, NOTHING)},
}
RECORD_TYPES = {
    **{"image_id": (int,), "category_id": (int,), "bbox": (list,), "score": (int, float)},
    **{"file_name": (str,), "category_name": (str,)},
}


@dataclass(frozen=True)
class ImageResult:
    """The result of one image.

    Attributes:
        number: of the image among the inputs.
        file: its path.
        image: what `--json` says of it; None if the file cannot be read.
        records: its detections in COCO's format, with names.
        error: why the file cannot be read; None if it can.
    """

    number: int
    file: str
    image: dict[str, Any] | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


def pack_results(results: Sequence[ImageResult]) -> bytes:
    """Results as bytes; `unpack_results` reads them."""
    return json.dumps([asdict(result) for result in results]).encode()


def unpack_results(contents: Iterable[bytes]) -> list[ImageResult]:
    """The results that `pack_results` wrote, in the order of the inputs.

    An image in several of them counts once, with the first result that is no error.
    """
    results: dict[int, ImageResult] = {}
    for content in contents:
        for result in _unpacked(content):
            before = results.get(result.number)
            if before is None or (before.error is not None and result.error is None):
                results[result.number] = _with_shared_names(result)
    return [results[number] for number in sorted(results)]


def check_packed(content: bytes, numbers: Sequence[int]) -> None:
    """Ensures that results are those of some images.

    Raises:
        ValueError: they are of other images, or no results.
    """
    if [result.number for result in _unpacked(content)] != list(numbers):
        raise ValueError("it has results of other images")


def _unpacked(content: bytes) -> list[ImageResult]:
    tables = parse_json(content)
    if not (isinstance(tables, list) and all(map(_is_result, tables))):
        raise ValueError("it has something else than results of images")
    return [ImageResult(**table) for table in tables]


def _is_result(table: object) -> bool:
    """Whether a value of JSON is an `ImageResult`: either of an image, with its detections, or an error."""
    if not _has_types(table, RESULT_TYPES) or len(table) != len(RESULT_TYPES):
        return False
    image, records = table["image"], table["records"]
    if table["error"] is not None:
        return image is None and not records
    return (
        _has_types(image, IMAGE_TYPES)
        and all(type(count) is int for count in image["objects"].values())
        and all(_has_types(record, RECORD_TYPES) for record in records)
    )


def _has_types(value: Any, types: Mapping[str, tuple[type, ...]]) -> TypeGuard[dict[str, Any]]:
    return type(value) is dict and all(key in value and type(value[key]) in kinds for key, kinds in types.items())


def _with_shared_names(result: ImageResult) -> ImageResult:
    """The result with one string for each name: those of its records would fill most of the memory."""
    for record in result.records:
        for name in ("file_name", "category_name"):
            record[name] = sys.intern(record[name])
    return result
