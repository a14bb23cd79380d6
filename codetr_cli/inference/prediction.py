"""Detections of image files as `codetr predict` reports them: one result an image, plain values that JSON can hold."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard

from codetr_cli.files import ResultRecord, folded, real_path, write_result
from codetr_cli.images.decoder import BrokenImageError, read_image
from codetr_cli.inference.detector import Detector, Nms
from codetr_cli.inference.inputs import InputImage, numbered_name
from codetr_cli.reading import parse_json

DRAWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
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


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predicts image files one by one.

    Attributes:
        detector: runs on each image.
        folder: of the drawn images.
        score: the lowest to keep.
        max_dets: most detections per image; None: the settings'.
        nms: another NMS than the settings'.
        drawn_names: see `drawn_names`, by the number of the image; None: nothing is drawn.
        scratch: a folder for drawn images that are not complete yet, on the same disk.
        request: name of the request.
        force: drawings of other requests are replaced.
    """

    detector: Detector
    folder: Path
    score: float
    max_dets: int | None = None
    nms: Nms | None = None
    drawn_names: Sequence[Path] | None = None
    scratch: Path
    request: str
    force: bool = False

    @cached_property
    def record(self) -> ResultRecord:
        """Of the folder of the drawn images."""
        return ResultRecord(self.folder)

    def predict(self, number: int, image: InputImage) -> ImageResult:
        """The detections of one image; a file that cannot be read gives a result with an error."""
        started = time.perf_counter()
        try:
            pixels = read_image(image.path, max_pixels=self.detector.loaded.settings.data.max_pixels)
        except BrokenImageError as error:
            return ImageResult(number, str(image.path), error=error.advise("--set data.max_pixels={}"))
        prediction = self.detector.predict(pixels, score=self.score, max_dets=self.max_dets, nms=self.nms)
        seconds = time.perf_counter() - started
        drawn = None if self.drawn_names is None else self.folder / self.drawn_names[number]
        if drawn is not None:
            drawn.parent.mkdir(parents=True, exist_ok=True)
            # Not synced, which would take longer than the drawing; a power failure leaves empty files, drawn again.
            of = drawing_request(self.request, number)
            with write_result(
                drawn,
                by="predict",
                force=self.force,
                request=of,
                record=self.record,
                scratch=self.scratch,
                sync=False,
            ) as temporary:
                prediction.draw(pixels).save(temporary, format=_format(drawn), quality=92)
        names = dict(zip(prediction.category_ids.tolist(), prediction.class_names, strict=True))
        records = [
            {**record, "file_name": image.name, "category_name": names[record["category_id"]]}
            for record in prediction.to_coco(image.image_id)
        ]
        height, width = prediction.image_size
        return ImageResult(
            number,
            str(image.path),
            image={
                "file": str(image.path),
                "file_name": image.name,
                "image_id": image.image_id,
                "height": height,
                "width": width,
                "objects": dict(Counter(prediction.class_names).most_common()),
                "seconds": round(seconds, 4),
                "drawn": None if drawn is None else str(drawn),
            },
            records=records,
        )


def drawing_request(request: str, number: int) -> str:
    """The request of a drawing in the record of its folder: of one image, so that no other one replaces it."""
    return f"{request[:16]}/{number}"


def drawn_names(
    images: Sequence[InputImage], reserved: Sequence[str], folder: Path, *, request: str, force: bool
) -> list[Path]:
    """Names of the drawn images in the output folder: that of the image, or of a PNG file if its format is not written.

    No two of them are one file, nor one of them the folder of another, also where a file system does not distinguish
    small and capital letters or composed and decomposed ones: then the later one gets a number. So do names of files
    that may not be replaced, see `files.ResultRecord`. Names of images that can be kept come first.

    Args:
        images: their names are relative to the folder.
        reserved: other files and folders in the output folder.
        folder: the output folder.
        request: name of the request, whose earlier drawings keep their names.
        force: own drawings of other requests are replaced, unless they are inputs.
    """
    record, inputs = ResultRecord(folder), _InputFiles(images)

    def is_free(number: int, name: str) -> bool:
        path = folder / name
        if not os.path.lexists(path):
            return True
        return path not in inputs and record.may_write(path, force=force, request=drawing_request(request, number))

    found = _Names(reserved, folder)
    names = [image.name for image in images]
    kept = [number for number, name in enumerate(names) if _is_writable(name)]
    others = [number for number, name in enumerate(names) if not _is_writable(name)]
    drawn = {number: found.add(names[number], partial(is_free, number)) for number in kept}
    drawn |= {number: found.add(names[number], partial(is_free, number), ".png") for number in others}
    return [Path(drawn[number]) for number in range(len(images))]


class _InputFiles:
    """The files of the inputs, found by any path that leads to them."""

    def __init__(self, images: Sequence[InputImage]) -> None:
        self._images = images

    def __contains__(self, path: Path) -> bool:
        return real_path(path) in self._paths

    @cached_property
    def _paths(self) -> set[Path]:
        return {real_path(image.path) for image in self._images}


class _Names:
    """Names in a folder that any file system can have side by side."""

    def __init__(self, reserved: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self._files = {folded(name) for name in reserved}
        self._folders: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._renamed: dict[str, str] = {}  # folders that would have the name of a file

    def add(self, name: str, is_free: Callable[[str], bool], suffix: str | None = None) -> str:
        """The name, with another suffix if one is given, changed if it must be."""
        folder, slash, last = name.rpartition("/")
        wanted = self._parent(folder) + slash + last
        found = wanted if suffix is None else numbered_name(wanted, 1, suffix)
        first = key = folded(found)
        number = self._numbers.get(first, 1)
        while key in self._files or key in self._folders or not is_free(found):
            number += 1
            found = numbered_name(wanted, number, suffix)
            key = folded(found)
        self._numbers[first] = number
        self._files.add(key)
        return found

    def _parent(self, folder: str) -> str:
        """The folder, whose name is changed where it is that of a file."""
        if folder and folder not in self._renamed:
            upper, slash, last = folder.rpartition("/")
            found = wanted = self._parent(upper) + slash + last
            number = 1
            while folded(found) in self._files or self._is_file(found):
                number += 1
                found = numbered_name(wanted, number)
            self._folders.add(folded(found))
            self._renamed[folder] = found
        return self._renamed.get(folder, folder)

    def _is_file(self, name: str) -> bool:
        return os.path.lexists(self._folder / name) and not (self._folder / name).is_dir()


def misplaced(folder: Path, drawn: Sequence[Path]) -> str | None:
    """Why results must not be written into a folder, and what to do instead, a sentence; None if they may.

    Args:
        folder: of the results.
        drawn: names of the drawn images in it.
    """
    place = real_path(folder)
    for parent in {name.parent for name in drawn}:
        if not real_path(folder / parent).is_relative_to(place):
            return (
                f"drawing into {folder / parent} would follow a symbolic link out of {folder}: use --no-draw or "
                "another --out"
            )
    return None


def _is_writable(name: str) -> bool:
    return name.lower().endswith(DRAWN_SUFFIXES)


def _format(drawn: Path) -> str:
    return {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[drawn.suffix.lower()]


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
