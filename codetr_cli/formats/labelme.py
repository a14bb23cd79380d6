"""labelme's folders, also AnyLabeling's and X-AnyLabeling's: one JSON file an image, with its `shapes`.

The box of a rectangle (two corners in any order, or four), of a polygon and of a rotated rectangle is the smallest
around its points; that of a circle (its centre and a point on it) is around the circle; that of a mask is the one in
its `points`. Points and lines have none. Shapes of one class with the same `group_id` are parts of one object, as in
labelme's own export to COCO. The image is the one that `imagePath` names, else the one with the name of the JSON file;
pixels within the file (`imageData`) are not read. Classes are in alphabetical order, with ids from 1.
"""

from __future__ import annotations

import math
import posixpath
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from codetr_cli.annotations.encodings import decode_text
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.annotations.survey import Survey, folder_of, stem_of
from codetr_cli.errors import DatasetError, shown
from codetr_cli.formats.assembly import (
    AnnotatedImage,
    Content,
    NamedBox,
    assemble,
    check_corners,
    class_name,
    in_threads,
)
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import MAX_OBJECTS, MAX_POINTS, MAX_SIDE, ParsedDataset
from codetr_cli.formats.json_sample import first_keys
from codetr_cli.formats.linked_folders import files_and_images, with_links
from codetr_cli.images.image_header import Size
from codetr_cli.reading import parse_json, read_bytes

KEY = "labelme"
TITLE = "labelme"
MAX_BYTES = 128 << 20
"""Of a file with its image inside, as labelme writes by default."""
MAX_TEXT_BYTES = 16 << 20
"""Of a file without the pixels of its image."""
MAX_VALUES = 1_000_000
"""Lists and tables in a file."""
LARGE_BYTES = 1 << 20
"""Files from this size on are read one at a time, so that several threads do not need the memory of several."""
_HEAD = re.compile(r'"(?:imageData|imagePath|shape_type)"\s*:')
_PIXELS = re.compile(rb'"imageData"\s*+:\s*+"[A-Za-z0-9+/=\s\\]*+"')
_AREAS = ("rectangle", "polygon", "rotation", "quadrilateral")
_WITH_BOX = (*_AREAS, "circle", "mask")


def evidence(survey: Survey) -> str:
    """The file that shows the layout; empty if there is none."""
    names = [name for name in with_links(survey).with_suffix(".json") if not name.endswith(".coco.json")]
    first: dict[str, list[str]] = {}
    for name in names:
        place = first.setdefault(folder_of(name), [])
        if len(place) < 3:
            place.append(name)
    candidates = [name for place in list(first.values())[:20] for name in place]
    return survey.first_with_head(candidates, _is_labelme, tries=len(candidates)) or ""


def _is_labelme(head: str) -> bool:
    if not head.lstrip().startswith("{"):
        return False
    # The image may come first, and be longer than what is read, and so may the points of the first shape.
    if head.find('"imageData"') in range(400):
        return True
    return '"shapes"' in head and (
        _HEAD.search(head) is not None or {"label", "points"} <= first_keys(head).get("shapes", set())
    )


def files_read(survey: Survey, names: NameRule) -> Iterable[Path]:
    """The files that decide the result of `read`, except the content of images."""
    return files_and_images(survey, ".json")


def read(survey: Survey, names: NameRule, options: ReadOptions) -> ParsedDataset:
    """Reads all JSON files of the folder that have shapes.

    Args:
        survey: of the data set's folder.
        names: not needed: images are looked for in the folder only.
        options: how it is read.

    Raises:
        DatasetError: broken files or shapes, or images that are not there.
    """
    survey = with_links(survey)
    lock = threading.Lock()
    files = in_threads(lambda name: _read_file(survey.folder / name, lock), survey.with_suffix(".json"))
    paths = {
        name: file.image_path for name, file in zip(survey.with_suffix(".json"), files, strict=True) if file is not None
    }
    finder = _ImageFinder(survey.images, paths)
    content = Content(TITLE, survey, [], "the labelme files")
    content.absent_advice = (
        "Copy the images beside their JSON files (or export those that are only inside the files as imageData), or "
        "remove these files"
    )
    owners: dict[str, str] = {}
    grouped = Counter[str]()
    for name, file in zip(survey.with_suffix(".json"), files, strict=True):
        if file is None:
            content.findings.add("other_file", content.place, name)
            continue
        image = finder.find(file.image_path, name)
        for kind in file.unused:
            content.findings.add("object_without_box", content.place, f"{name} ({kind})", file.unused[kind])
        if image is None:
            content.absent.append(f"{name} ({shown(file.image_path)})")
        elif image in owners:
            content.findings.add("second_annotation", content.place, f"{name} ({image} has {owners[image]})")
        else:
            owners[image] = name
            grouped.update(file.grouped)
            content.images.append(AnnotatedImage(image, name, file.boxes, file.size))
    if grouped:
        content.notes.append(
            f"{grouped['shapes']:,} shapes with the same group_id and class are parts of {grouped['objects']:,} objects"
        )
    return assemble(content, options)


@dataclass
class _File:
    """The content of one JSON file.

    Args:
        unused: number of shapes without a box, by their type.
        grouped: number of shapes that are parts of an object, and of such objects.
    """

    image_path: str
    size: Size
    boxes: list[NamedBox] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    grouped: Counter[str] = field(default_factory=Counter)


def _read_file(path: Path, lock: threading.Lock) -> _File | None:
    """One JSON file; None if it is none of labelme's."""
    try:
        large = path.stat().st_size >= LARGE_BYTES
        if large:
            lock.acquire()
        try:
            return _parse(read_bytes(path, MAX_BYTES), path)
        finally:
            if large:
                lock.release()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}. Replace or remove it") from error
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}. Save it again, or remove it") from error


def _parse(content: bytes, path: Path) -> _File | None:
    content = _PIXELS.sub(b'"imageData":null', content) if b"\0" not in content[:4] else content
    if len(content) > MAX_TEXT_BYTES or content.count(b"[") + content.count(b"{") > MAX_VALUES:
        raise DatasetError(
            f"{path} has more than {MAX_TEXT_BYTES >> 20} MB or {MAX_VALUES:,} lists besides its image, the limit for "
            "the annotations of one image. Simplify or remove it"
        )
    table = parse_json(decode_text(content))
    if not isinstance(table, dict) or not isinstance(table.get("shapes"), list):
        return None
    shapes = table["shapes"]
    if len(shapes) > MAX_OBJECTS:
        raise DatasetError(f"{path} has {len(shapes):,} shapes, {MAX_OBJECTS:,} are possible. Remove some")
    image_path = table.get("imagePath")
    file = _File(image_path if isinstance(image_path, str) else "", _size(table))
    groups: dict[tuple[str, str], list[NamedBox]] = {}
    for number, shape in enumerate(shapes, 1):
        where = f"{path}: shape {number}"
        box = _box(shape, where, file.unused)
        if box is None:
            continue
        group = shape.get("group_id")
        key = f"{number}" if group is None else f"group {shown(group)}"
        groups.setdefault((box.name, key), []).append(box)
    file.boxes = [_joined(parts) for parts in groups.values()]
    several = [len(parts) for parts in groups.values() if len(parts) > 1]
    if several:
        file.grouped.update(shapes=sum(several), objects=len(several))
    return file


def _size(table: dict[str, Any]) -> Size:
    """The size that the file states; (0, 0) if it states none that is possible."""
    sides = (table.get("imageHeight"), table.get("imageWidth"))
    height, width = (side if isinstance(side, int | float) and 1 <= side <= MAX_SIDE else 0 for side in sides)
    return (int(height), int(width)) if height and width else (0, 0)


def _box(shape: Any, where: str, unused: Counter[str]) -> NamedBox | None:
    """The object of a shape; None for one without a box, which is counted in `unused`."""
    if not isinstance(shape, dict):
        raise DatasetError(f"{where} is {shown(shape)} instead of a table. Remove it")
    kind = shape.get("shape_type") or "polygon"  # the first versions had only these
    if kind not in _WITH_BOX:
        unused[shown(kind)] += 1
        return None
    points = _points(shape.get("points"), where)
    least = 3 if kind == "polygon" else 2
    if len(points) < least:
        unused[f"{kind} of {len(points)} point{'s' * (len(points) != 1)}"] += 1
        return None
    name = class_name(shape.get("label"), where)
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        radius = math.dist((x, y), edge)
        corners = (x - radius, y - radius, x + radius, y + radius)
    else:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        corners = (min(xs), min(ys), max(xs), max(ys))
    check_corners(corners, f"{where} ({name:.80})")
    has_outline = kind in _AREAS and len(points) > 2 and kind != "rectangle"
    outline = tuple(value for point in points for value in point) if has_outline else ()
    return NamedBox(name, corners, shape.get("difficult") is True, outline)


def _points(value: Any, where: str) -> list[tuple[float, float]]:
    if not isinstance(value, list) or len(value) > MAX_POINTS:
        raise DatasetError(f"{where} has points = {shown(value)} instead of a list of [x, y]. Redraw or remove it")
    points = []
    for point in value:
        if not isinstance(point, list) or len(point) != 2 or not all(type(each) in (int, float) for each in point):
            raise DatasetError(f"{where} has the point {shown(point)} instead of [x, y]. Redraw or remove it")
        check_corners(point, where)
        points.append((float(point[0]), float(point[1])))
    return points


def _joined(parts: Sequence[NamedBox]) -> NamedBox:
    """One object of several shapes, with the box around all; the outline of several is not kept."""
    if len(parts) == 1:
        return parts[0]
    x1, y1, x2, y2 = zip(*(part.corners for part in parts), strict=True)
    corners = (min(x1), min(y1), max(x2), max(y2))
    return NamedBox(parts[0].name, corners, any(part.is_crowd for part in parts))


class _ImageFinder:
    """Finds the image of a JSON file.

    Args:
        images: names of all.
        paths: `imagePath` of each JSON file, by the name of that file.
    """

    def __init__(self, images: list[str], paths: Mapping[str, str]) -> None:
        self._names = set(images)
        self._beside: dict[str, list[str]] = {}
        for image in images:
            self._beside.setdefault(stem_of(image), []).append(image)
        self._by_file: dict[str, list[str]] = {}
        for image in images:
            self._by_file.setdefault(stem_of(image).rpartition("/")[2], []).append(image)
        exact = ((name, self._exactly(path, name)) for name, path in paths.items())
        self._exact = {name: image for name, image in exact if image is not None}
        stated = [(path.replace("\\", "/"), folder_of(name)) for name, path in paths.items() if name not in self._exact]
        self._anywhere = ImageNames(images, partial(list, [*stated, *((image, "") for image in self._exact.values())]))

    def find(self, image_path: str, json_name: str) -> str | None:
        """The image of a JSON file.

        That is the one that `imagePath` names, seen from the JSON file; else the one of the same name beside it; else
        the only one of these names in a folder whose path differs in one part; else the only one in any folder.
        """
        if json_name in self._exact:
            return self._exact[json_name]
        folder, own = folder_of(json_name), stem_of(json_name)
        file = stem_of(image_path.replace("\\", "/").rpartition("/")[2])
        for stem in dict.fromkeys((file, own.rpartition("/")[2])):
            parallel = [name for name in self._by_file.get(stem, ()) if _is_parallel(folder_of(name), folder)]
            if len(parallel) == 1:
                return parallel[0] if self._anywhere.may_be(parallel[0], folder) else None
        found = self._anywhere.find(image_path, folder) if image_path else None
        return found or self._anywhere.find_stem(own, folder)

    def _exactly(self, image_path: str, json_name: str) -> str | None:
        """The image that `imagePath` names, seen from the JSON file, else the one of the same name beside it."""
        folder, own = folder_of(json_name), stem_of(json_name)
        stated = posixpath.normpath(posixpath.join(folder, image_path.replace("\\", "/"))) if image_path else ""
        if stated in self._names:
            return stated
        beside = self._beside.get(own, [])
        return beside[0] if len(beside) == 1 else None


def _is_parallel(folder: str, other: str) -> bool:
    """Whether two folders differ in one part only: labels/train and images/train, or train/labels and train."""
    left, right = folder.split("/") if folder else [], other.split("/") if other else []
    if abs(len(left) - len(right)) > 1:
        return False
    if len(left) == len(right):
        return sum(a != b for a, b in zip(left, right, strict=True)) == 1
    short, long = sorted((left, right), key=len)
    return any(long[:index] + long[index + 1 :] == short for index in range(len(long)))
