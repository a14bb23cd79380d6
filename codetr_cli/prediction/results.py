"""Results of image files: one an image, plain values that JSON can hold, and their packed form in part files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

from codetr_cli.distributed.part_frames import Part
from codetr_cli.prediction.sources.input_list import InputImage
from codetr_cli.reading import parse_json

NOTHING = type(None)
RESULT_TYPES = {"number": (int,), "file": (str,), "image": (dict, NOTHING), "records": (list,), "error": (str, NOTHING)}
IMAGE_TYPES = {
    **{"file": (str,), "file_name": (str,), "image_id": (int,), "height": (int,), "width": (int,)},
    **{"objects": (dict,), "seconds": (int, float), "drawn": (str, NOTHING)},
}
REVIEW_TYPES = {"count": (int,), "detections": (list,)}
REASON_TYPES = {"class": (str,), "score": (int, float), "bbox": (list,), "is_label": (bool,)}
COMPARISON_TYPES = {"hits": (int,), "misses": (int,), "false_alarms": (int,)}
RECORD_TYPES = {
    **{"image_id": (int,), "category_id": (int,), "bbox": (list,), "score": (int, float)},
    **{"file_name": (str,), "category_name": (str,)},
}
MASK_TYPES = {"size": (list,), "counts": (str,)}


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
    """Results as bytes; `merge_results` reads them."""
    return json.dumps([asdict(result) for result in results]).encode()


def merge_results(parts: Iterable[Part]) -> Iterator[ImageResult]:
    """The results that `pack_results` wrote, in the order of the inputs; in memory are those of a few parts at a time.

    An image in several parts counts once, with the first result that is no error.

    Args:
        parts: in the order of their first units, which are the numbers of their images.

    Raises:
        ValueError: the content of a part is not what was packed.
    """
    waiting: dict[int, ImageResult] = {}
    for part in parts:
        # No later part has an image before the first one of this part.
        for number in sorted(number for number in waiting if part.units and number < part.units[0]):
            yield waiting.pop(number)
        for result in _unpacked(part.content):
            before = waiting.get(result.number)
            if before is None or (before.error is not None and result.error is None):
                waiting[result.number] = result
    for number in sorted(waiting):
        yield waiting[number]


def check_packed(content: bytes, numbers: Sequence[int], images: Sequence[InputImage]) -> None:
    """Ensures that results are those of some images.

    Args:
        content: as `pack_results` made it.
        numbers: of the images.
        images: all inputs.

    Raises:
        ValueError: they are of other images, or no results.
    """
    results = _unpacked(content)
    if [result.number for result in results] != list(numbers):
        raise ValueError("it has results of other images")
    for result in results:
        image = images[result.number]
        facts = result.image or {"file": image.file, "file_name": image.name, "image_id": image.image_id}
        found = (result.file, facts["file"], facts["file_name"], facts["image_id"])
        if found != (image.file, image.file, image.name, image.image_id) or any(
            (record["file_name"], record["image_id"]) != (image.name, image.image_id) for record in result.records
        ):
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
        and ("review" not in image or _is_review(image["review"]))
        and all(type(count) is int for count in image["objects"].values())
        and (image.get("against") is None or _has_types(image["against"], COMPARISON_TYPES))
        and all(map(_is_record, records))
    )


def _is_record(value: object) -> bool:
    """Whether a value of JSON is a detection."""
    if not (_has_types(value, RECORD_TYPES) and math.isfinite(value["score"]) and len(value["bbox"]) == 4):
        return False
    mask = value.get("segmentation", {"size": [], "counts": ""})
    return (
        all(type(number) in (int, float) and math.isfinite(number) for number in value["bbox"])
        and _has_types(mask, MASK_TYPES)
        and all(type(number) is int for number in mask["size"])
        and type(value.get("mask_score", 0.0)) in (int, float)
    )


def _is_review(value: object) -> bool:
    """Whether a value of JSON says why an image is to be reviewed."""
    return _has_types(value, REVIEW_TYPES) and all(_has_types(each, REASON_TYPES) for each in value["detections"])


def _has_types(value: Any, types: Mapping[str, tuple[type, ...]]) -> TypeGuard[dict[str, Any]]:
    return type(value) is dict and all(key in value and type(value[key]) in kinds for key, kinds in types.items())
