"""Label Studio's exports, JSON and JSON-MIN, beside the images: percent of the image's width and height.

A rotated rectangle (about its upper left corner, clockwise) becomes the smallest box around its corners, which are kept
as its outline; so do polygons; an ellipse becomes the box around it. Brushes and key points have no box. A region of
several classes is an object of each.

Of several annotations of a task, the one that is marked as ground truth is used, else the first that was not cancelled.
A task that was annotated as empty is an image without objects; one that nobody annotated is not used. In a file where
no task is annotated, as it is written to be imported, the first prediction of each counts. The image is found by its
name: as it is, then without the eight digits that an upload puts before it. Classes are in alphabetical order, with ids
from 1.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from codetr_cli.annotations.annotation_json import MAX_FILE_NAME
from codetr_cli.annotations.encodings import decode_text
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.findings import Findings
from codetr_cli.annotations.image_names import ImageNames, Stated
from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError, listed, shown
from codetr_cli.formats.assembly import (
    AnnotatedImage,
    Content,
    NamedBox,
    assemble,
    check_corners,
    class_name,
)
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import MAX_OBJECTS, MAX_POINTS, MAX_SIDE, ParsedDataset
from codetr_cli.formats.linked_folders import files_and_images, with_links
from codetr_cli.formats.split_names import split_of
from codetr_cli.images.image_files import IMAGE_SUFFIXES
from codetr_cli.images.image_header import Size
from codetr_cli.reading import parse_json, read_bytes

KEY = "label-studio"
TITLE = "Label Studio"
MAX_FILES = 200
"""Files whose start is read to see whether they are exports."""
MAX_BYTES = 256 << 20
MAX_VALUES = 4_000_000
"""Lists and tables in a file."""
MAX_LABELS = 100
"""Classes of one region."""
UNCHECKED = "unchecked"
"""Key of a task whose annotation is a prediction."""
_TASK = re.compile(r'"(?:annotations|completions)"\s*:\s*\[')
_OF_TASKS = re.compile(r'"(?:data|result|was_cancelled|completed_by|file_upload|total_annotations)"\s*:')
_MIN = re.compile(r'"(?:rectangle|polygon|ellipse|brush|keypoint)labels"\s*:\s*\[|"original_width"\s*:')
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
_NO_SHAPES = frozenset(("choices", "textarea", "relation", "rating", "number", "datetime", "taxonomy", "pairwise"))
"""Results that are about the whole image or about others."""


def evidence(survey: Survey) -> str:
    """The file that shows the layout; empty if there is none."""
    return next(_exports(with_links(survey)), "")


def _exports(survey: Survey) -> Iterator[str]:
    return (name for name in survey.with_suffix(".json")[:MAX_FILES] if _is_export(survey.head(name)))


def _is_export(head: str) -> bool:
    if not head.lstrip().startswith("["):
        return False
    return (_TASK.search(head) is not None and _OF_TASKS.search(head) is not None) or _MIN.search(head) is not None


def files_read(survey: Survey, names: NameRule) -> Iterable[Path]:
    """The files that decide the result of `read`, except the content of images."""
    return files_and_images(survey, ".json")


def read(survey: Survey, names: NameRule, options: ReadOptions) -> ParsedDataset:
    """Reads all exports in the folder.

    Args:
        survey: of the data set's folder.
        names: not needed: images are looked for in the folder only.
        options: how it is read.

    Raises:
        DatasetError: broken files or regions, or images that are not there.
    """
    survey = with_links(survey)
    exports = list(_exports(survey))
    content = Content(TITLE, survey, [], exports[0] if len(exports) == 1 else "the exports")
    content.absent_advice = (
        "Copy the images of the tasks into the folder, with the names that the export has, or remove these tasks"
    )
    finder = _ImageFinder(survey.images, partial(_stated, survey, exports))
    found: dict[str, AnnotatedImage] = {}
    splits = {name: split_of(name) or "" for name in exports}
    if len(set(splits.values())) == 1:  # the name of a project says nothing about training and validation
        splits = dict.fromkeys(exports, "")
    for name in exports:
        split = splits[name]
        for where, task in _tasks(survey.folder / name, name):
            annotation = _annotation(task, where, content.findings, content.place)
            if annotation is None:
                continue
            address = _address(task, where)
            image = finder.find(address)
            if image is None:
                content.absent.append(f"{where} ({address:.200})")
            elif image in found:
                content.findings.add("second_annotation", content.place, f"{where} ({image})")
            else:
                boxes, size = _boxes(annotation, where, content)
                found[image] = AnnotatedImage(image, where, boxes, size, split, relative=True)
    content.images = list(found.values())
    for name in survey.with_suffix(".json"):
        if name not in exports:
            content.findings.add("other_file", content.place, name)
    return assemble(content, options)


def _stated(survey: Survey, exports: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The names in the addresses of all tasks that are used."""
    for name in exports:
        for where, task in _tasks(survey.folder / name, name):
            if _annotation(task, where, Findings(), "") is not None:
                yield _file_name(_address(task, where)), ""


# --------------------------------------------------------------------------------------------------------------- tasks


def _tasks(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tasks of an export, each with words that name it; those of JSON-MIN in the form of JSON's.

    Raises:
        DatasetError: it cannot be read, or is no list of tasks.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
        if content.count(b"[") + content.count(b"{") > MAX_VALUES:
            raise DatasetError(f"{path} has more than {MAX_VALUES:,} lists and tables, the limit. Export it in parts")
        tasks = parse_json(decode_text(content))
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}. Replace or remove it") from error
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}. Export it again") from error
    if not isinstance(tasks, list):
        raise DatasetError(f"{path} is no list of tasks. Export it again as JSON")
    is_unchecked = not any(isinstance(task, dict) and _annotations_of(task) for task in tasks)
    for number, task in enumerate(tasks, 1):
        where = f"{name}: task {number}"
        if not isinstance(task, dict):
            raise DatasetError(f"{path}: task {number} is {shown(task)} instead of a table. Export it again")
        if not isinstance(task.get("data"), dict):
            task = _of_min(task)
        elif is_unchecked and isinstance(suggested := task.get("predictions"), list) and suggested:
            task = {"data": task["data"], "annotations": suggested[:1], UNCHECKED: True}
        yield where, task


def _annotations_of(task: Mapping[str, Any]) -> Any:
    return task.get("annotations", task.get("completions")) or not isinstance(task.get("data"), dict)


def _of_min(task: Mapping[str, Any]) -> dict[str, Any]:
    """A record of JSON-MIN as a task with one annotation."""
    regions = []
    data = {}
    for key, value in task.items():
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            regions += [_region_of_min(each) for each in value]
        elif isinstance(value, str):
            data[key] = value
    return {"data": data, "annotations": [{"result": regions}]}


def _region_of_min(region: Mapping[str, Any]) -> dict[str, Any]:
    kind = next((key for key in region if key.endswith("labels") and isinstance(region[key], list)), "")
    sizes = {key: region.get(key) for key in ("original_width", "original_height")}
    return {"type": kind, "value": region, **sizes}


def _annotation(task: Mapping[str, Any], where: str, findings: Findings, place: str) -> dict[str, Any] | None:
    """The annotation of a task that counts; None if there is none. What is not used is counted."""
    annotations = task.get("annotations", task.get("completions"))
    if annotations is None:
        annotations = []
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        raise DatasetError(
            f"{where} has annotations = {shown(annotations)} instead of a list of tables. Export it again"
        )
    if UNCHECKED in task:
        findings.add("unchecked", place, where)
    predictions = task.get("predictions")
    if isinstance(predictions, list) and predictions:
        findings.add("predictions", place, where, len(predictions))
    kept = [each for each in annotations if not (each.get("was_cancelled") or each.get("skipped"))]
    if len(kept) < len(annotations):
        findings.add("cancelled", place, where, len(annotations) - len(kept))
    if not kept:
        findings.add("not_annotated", place, where)
        return None
    if len(kept) > 1:
        findings.add("second_annotation", place, f"{where} (of {len(kept)} annotations)", len(kept) - 1)
    return next((each for each in kept if each.get("ground_truth") is True), kept[0])


def _address(task: Mapping[str, Any], where: str) -> str:
    """Where the image of a task is, as the export has it.

    Raises:
        DatasetError: the task's data does not say.
    """
    texts = {key: value for key, value in task["data"].items() if isinstance(value, str)}
    if "image" in texts:
        return texts["image"]
    images = [
        key for key, value in texts.items() if f".{_file_name(value).rpartition('.')[2].lower()}" in IMAGE_SUFFIXES
    ]
    if len(images) != 1:
        problem = f"several images ({listed(images)})" if images else f"no image ({listed(list(task['data']))})"
        raise DatasetError(f"{where} has {problem} in its data; one under the name image is expected. Export it again")
    return texts[images[0]]


def _file_name(address: str) -> str:
    """The name of the file that an address means, with the folders that it states."""
    if len(address) > MAX_FILE_NAME or address.startswith("data:"):
        return ""
    try:
        parts = urlsplit(address)
        query = parse_qs(parts.query, max_num_fields=20)
    except ValueError:
        return address
    if "d" in query:  # of local storage
        return query["d"][0]
    if "fileuri" in query:  # of cloud storage
        try:
            inner = base64.b64decode(query["fileuri"][0], validate=True).decode()
        except (ValueError, binascii.Error):
            return address
        return urlsplit(inner).path.lstrip("/") if "://" in inner else inner
    if not parts.scheme or len(parts.scheme) == 1:  # a path; a question mark is part of its name
        return address
    return unquote(parts.path).lstrip("/")


class _ImageFinder:
    """Finds the images of tasks."""

    def __init__(self, images: list[str], stated: Stated) -> None:
        self._images = images
        self._names = ImageNames(images, stated)
        self._uploads: dict[str, str | None] | None = None

    def find(self, address: str) -> str | None:
        """The image with the name in an address, else with the name before it was uploaded."""
        name = _file_name(address)
        if not name:
            return None
        found = self._names.find(name)
        file = re.split(r"[/\\]", unquote(name))[-1]
        if found or not _UPLOAD.match(file):
            return found
        plain = _UPLOAD.sub("", file, count=1)
        found = self._names.find(plain)
        if found:
            return found
        if self._uploads is None:
            self._uploads = {}
            for image in self._images:
                key = _upload_name(image.rpartition("/")[2])
                self._uploads[key] = None if key in self._uploads else image
        found = self._uploads.get(plain)
        return found if found and self._names.may_be(found, "") else None


def _upload_name(name: str) -> str:
    """The name that the server gives to an uploaded file, without the digits before it."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


# ------------------------------------------------------------------------------------------------------------- regions


def _boxes(annotation: Mapping[str, Any], where: str, content: Content) -> tuple[list[NamedBox], Size]:
    """The objects of an annotation, relative to the image's size, and this size; (0, 0) if it is not stated."""
    results = annotation.get("result")
    if results is None:
        results = []
    if not isinstance(results, list) or len(results) > MAX_OBJECTS or not all(isinstance(r, dict) for r in results):
        raise DatasetError(f"{where} has result = {shown(results)} instead of a list of regions. Export it again")
    sizes = Counter(size for size in map(_size, results) if size)
    size = sizes.most_common(1)[0][0] if sizes else (0, 0)
    labelled = {region.get("id") for region in results if region.get("type") == "labels"} - {None}
    boxes: list[NamedBox] = []
    for number, region in enumerate(results, 1):
        kind = region.get("type")
        kind = kind if isinstance(kind, str) else ""
        if kind in _NO_SHAPES or (region.get("id") in labelled and kind != "labels" and not kind.endswith("labels")):
            continue
        place = f"{where}, region {number}"
        value = region.get("value")
        if not isinstance(value, dict):
            raise DatasetError(f"{place} has value = {shown(value)} instead of a table. Export it again")
        shape = _shape(kind, value, _size(region) or size, place)
        if shape is None:
            content.findings.add("object_without_box", content.place, f"{place} ({kind or 'no type'})")
            continue
        labels: list[Any] = next((value[key] for key in (kind, "labels") if isinstance(value.get(key), list)), [])
        if not labels:
            content.findings.add("object_without_class", content.place, place)
        boxes += [NamedBox(class_name(label, place), *shape) for label in labels[:MAX_LABELS]]
    return boxes, size


def _size(region: Mapping[str, Any]) -> Size | None:
    sides = (region.get("original_height"), region.get("original_width"))
    if all(isinstance(side, int | float) and 1 <= side <= MAX_SIDE for side in sides):
        return int(sides[0]), int(sides[1])  # type: ignore[arg-type]
    return None


Shape = tuple[tuple[float, float, float, float], bool, tuple[float, ...]]
"""Corners, whether it is a crowd, outline; relative to the image's size."""


def _shape(kind: str, value: Mapping[str, Any], size: Size, where: str) -> Shape | None:
    """The box and outline of a region; None if it has none."""
    if kind.startswith(("brush", "keypoint", "magicwand", "bitmask", "vector")) or "rle" in value:
        return None
    if isinstance(value.get("points"), list):
        points = value["points"]
        if len(points) > MAX_POINTS or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise DatasetError(f"{where} has points = {shown(points)} instead of a list of [x, y]. Export it again")
        outline = [_percent(each, "points", where) for point in points for each in point]
        return _around(outline, where) if len(points) > 2 else None
    if "radiusX" in value:
        return _ellipse(value, size, where)
    if "width" not in value or "height" not in value:
        return None
    x, y, width, height = (_percent(value.get(key), key, where) for key in ("x", "y", "width", "height"))
    if width < 0 or height < 0:
        raise DatasetError(f"{where} has width {width:g} and height {height:g}, which cannot be negative. Redraw it")
    turned = _rotation(value, where)
    if not turned:
        return (x, y, x + width, y + height), False, ()
    across, down = _aspect(size, where)
    cos, sin = math.cos(turned), math.sin(turned)
    outline = [x, y]
    for dx, dy in ((width * across, 0.0), (width * across, height * down), (0.0, height * down)):
        outline += [x + (dx * cos - dy * sin) / across, y + (dx * sin + dy * cos) / down]
    return _around(outline, where)


def _ellipse(value: Mapping[str, Any], size: Size, where: str) -> Shape:
    x, y, a, b = (_percent(value.get(key), key, where) for key in ("x", "y", "radiusX", "radiusY"))
    turned = _rotation(value, where)
    if turned:
        across, down = _aspect(size, where)
        cos, sin = math.cos(turned), math.sin(turned)
        a, b = (
            math.hypot(a * across * cos, b * down * sin) / across,
            math.hypot(a * across * sin, b * down * cos) / down,
        )
    return (x - abs(a), y - abs(b), x + abs(a), y + abs(b)), False, ()


def _around(outline: list[float], where: str) -> Shape:
    xs, ys = outline[::2], outline[1::2]
    check_corners(outline, where)
    return (min(xs), min(ys), max(xs), max(ys)), False, tuple(outline)


def _percent(value: Any, key: str, where: str) -> float:
    if type(value) not in (int, float):
        raise DatasetError(f"{where} has {key} = {shown(value)} instead of a number. Export it again")
    check_corners((value,), where)
    return float(value) / 100


def _rotation(value: Mapping[str, Any], where: str) -> float:
    """The angle in radians, clockwise."""
    degrees = value.get("rotation") or 0
    if type(degrees) not in (int, float):
        raise DatasetError(f"{where} has rotation = {shown(degrees)} instead of a number. Export it again")
    check_corners((degrees,), where)
    return math.radians(float(degrees) % 360)


def _aspect(size: Size, where: str) -> tuple[float, float]:
    if min(size) < 1:
        raise DatasetError(
            f"{where} is rotated, but has no original_width and original_height, without which its corners are not "
            "known. Export it again"
        )
    return size[1], size[0]
