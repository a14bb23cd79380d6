"""Reads annotation files of COCO's kind into arrays, and selects objects by the published rules.

LVIS and Objects365 store an image's name in other keys, and LVIS has more data on images and classes.
Behaviour of the selection: mmdet's CocoDataset with filter_empty_gt=False. Sizes are (height, width) in pixels.
Shape letters: I images of a file, N its objects, M selected images.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.config.schema import DatasetName
from codetr_cli.data.formats.cache import source_of
from codetr_cli.data.formats.layouts import image_name
from codetr_cli.data.outlines import Outlines
from codetr_cli.errors import DatasetError


@dataclass(frozen=True)
class Objects:
    """Objects grouped by image: those of image i are rows offsets[i] to offsets[i + 1].

    `boxes` (N, 4) float32 xyxy, `labels` and `iscrowd` (N,) int64, `area` (N,) float32, `offsets` (images + 1,) int64,
    `rows` (N,) int64 of the objects in their `Annotations`.
    """

    boxes: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Annotations:
    """An annotation file as arrays (a file of 860,000 objects would be gigabytes as Python objects).

    Images and objects are in the order of the file. `image_ids` (I,) int64, `sizes` (I, 2) int64 (height, width);
    `image_rows` (N,) int64 row of each object's image, `labels` (N,) int64 index into `category_ids`, which ascend,
    `boxes_xywh` (N, 4) and `area` (N,) float64, `iscrowd` (N,) int64, `ignore` (N,) bool.

    Attributes:
        outlines: of the objects, if they were requested.
        frequencies: LVIS only: "r", "c" or "f" (rare, common, frequent) for each class.
        neg_category_ids: LVIS only: for each image, categories that are verified to be absent.
        not_exhaustive_category_ids: LVIS only: for each image, categories of which not every object is annotated.
    """

    class_names: list[str]
    category_ids: list[int]
    image_ids: np.ndarray
    file_names: list[str]
    sizes: np.ndarray
    image_rows: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    ignore: np.ndarray
    outlines: Outlines | None = None
    frequencies: list[str] = field(default_factory=list)
    neg_category_ids: list[list[int]] = field(default_factory=list)
    not_exhaustive_category_ids: list[list[int]] = field(default_factory=list)

    @property
    def is_lvis(self) -> bool:
        """Whether the file has data that only LVIS has: the categories verified to be absent from each image."""
        return bool(self.neg_category_ids)

    def annotated_images(self) -> np.ndarray:
        """Which images have any annotation, including crowds and ignored ones, (I,) bool."""
        return np.bincount(self.image_rows, minlength=len(self.image_ids)) > 0

    def usable_objects(self, rows: np.ndarray, *, with_crowd: bool) -> Objects:
        """Objects of images `rows` (M,), ascending, that are trained on or evaluated, by the published rules.

        Excluded: marked `ignore`, area not positive, a side under one pixel, no overlap with the image.
        """
        x, y, w, h = self.boxes_xywh.T
        heights, widths = self.sizes[self.image_rows].T
        overlaps = (np.minimum(x + w, widths) > np.maximum(x, 0)) & (np.minimum(y + h, heights) > np.maximum(y, 0))
        keep = ~self.ignore & (self.area > 0) & (w >= 1) & (h >= 1) & overlaps
        if not with_crowd:
            keep &= self.iscrowd == 0
        index_of_row = np.full(len(self.image_ids), -1)
        index_of_row[rows] = np.arange(len(rows))
        keep &= index_of_row[self.image_rows] >= 0
        order = np.flatnonzero(keep)
        order = order[np.argsort(index_of_row[self.image_rows[order]], kind="stable")]
        counts = np.bincount(index_of_row[self.image_rows[order]], minlength=len(rows))
        return Objects(
            boxes=np.stack([x, y, x + w, y + h], axis=1)[order].astype(np.float32),
            labels=self.labels[order],
            iscrowd=self.iscrowd[order],
            area=self.area[order].astype(np.float32),
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            rows=order,
        )


def check_kind(annotations: Annotations, dataset: DatasetName, path: Path) -> None:
    """Raises a DatasetError for LVIS annotations with settings for another data set, or the reverse."""
    if annotations.is_lvis and dataset != "lvis":
        raise DatasetError(
            f"{source_of(path).name} is an LVIS annotation file, but the settings are for {dataset} "
            f"(data.dataset={dataset}). Use an LVIS preset and its checkpoint, e.g. co_dino_r50_lvis, or "
            "--set data.dataset=lvis"
        )
    if dataset == "lvis" and not annotations.is_lvis:
        raise DatasetError(
            f"{source_of(path).name} is not an LVIS annotation file (its images have no neg_category_ids), but the "
            "settings are for LVIS (data.dataset=lvis). Give lvis_v1_train.json or lvis_v1_val.json, or use a preset "
            "that is not for LVIS, e.g. co_dino_r50, or --set data.dataset=coco"
        )


def read_annotations(path: Path, *, with_outlines: bool = False) -> Annotations:
    """Reads a JSON file of COCO's kind.

    `area` may be missing (width times height then), and `iscrowd` and `ignore` (0). Objects of images that the file
    does not list are skipped, as pycocotools does. Outlines are kept undecoded: RAM of about the size of the file.

    Raises:
        DatasetError: unreadable, not JSON, not COCO's schema, ids not unique or unknown, boxes with NaN or a negative
            side. The error names the entry.
    """
    content, outlines = _read_json(path, with_outlines=with_outlines)
    tables = {name: _table(content, name, path) for name in ("categories", "images", "annotations")}
    categories = sorted(
        zip(
            _numbers(tables["categories"], "id", path, "categories", integer=True).tolist(),
            _strings(tables["categories"], "name", path, "categories"),
            strict=True,
        )
    )
    category_ids = np.array([category_id for category_id, _ in categories], np.int64)
    image_ids = _numbers(tables["images"], "id", path, "images", integer=True)
    for name, ids in (("categories", category_ids), ("images", image_ids)):
        _check_unique(ids, name, path)
    sizes = np.stack(
        [_numbers(tables["images"], key, path, "images", integer=True) for key in ("height", "width")], axis=1
    )
    if (sizes < 1).any():
        raise _entry_error(path, "images", int(np.flatnonzero((sizes < 1).any(axis=1))[0]), "a height or width below 1")

    objects = tables["annotations"]
    known, image_rows = _lookup(image_ids, _numbers(objects, "image_id", path, "annotations", integer=True))
    has_category, labels = _lookup(category_ids, _numbers(objects, "category_id", path, "annotations", integer=True))
    if not has_category.all():
        raise _entry_error(
            path, "annotations", int(np.argmin(has_category)), "a category_id that `categories` does not list"
        )
    boxes = _boxes(objects, path)
    area = _numbers(objects, "area", path, "annotations", default=boxes[:, 2] * boxes[:, 3])
    zeros = np.zeros(len(objects), np.int64)
    iscrowd = _numbers(objects, "iscrowd", path, "annotations", integer=True, default=zeros)
    ignore = _numbers(objects, "ignore", path, "annotations", integer=True, default=zeros)
    return Annotations(
        class_names=[name for _, name in categories],
        category_ids=category_ids.tolist(),
        image_ids=image_ids,
        file_names=_file_names(tables["images"], path),
        sizes=sizes,
        image_rows=image_rows[known],
        labels=labels[known],
        boxes_xywh=boxes[known],
        area=area[known],
        iscrowd=iscrowd[known],
        ignore=ignore[known] != 0,
        outlines=_outlines(objects, known, outlines) if outlines is not None else None,
        **_lvis_columns(tables, [category_id for category_id, _ in categories], path),
    )


def _lvis_columns(tables: dict[str, list[dict[str, Any]]], category_ids: list[int], path: Path) -> dict[str, Any]:
    """The columns that only LVIS has; empty for other files."""
    images = tables["images"]
    if not images or not all("neg_category_ids" in image for image in images):
        return {}
    frequency = {entry["id"]: entry.get("frequency", "f") for entry in tables["categories"]}
    columns: dict[str, Any] = {"frequencies": [str(frequency[category_id]) for category_id in category_ids]}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        column = [image.get(key, []) for image in images]
        for index, ids in enumerate(column):
            if not isinstance(ids, list) or not all(isinstance(category_id, int) for category_id in ids):
                raise _entry_error(path, "images", index, f"{key} = {ids!r:.80} instead of a list of ids")
        columns[key] = column
    return columns


_SEGMENTATION = re.compile(rb'"segmentation":\s*(\[[\[\]\d\s.,eE+-]*\]|\{[^{}]*\})')
Spans = tuple[bytes, list[tuple[int, int]]]
"""A text, and start and end of each outline in it."""


def _outlines(objects: list[dict[str, Any]], known: np.ndarray, located: Spans) -> Outlines:
    """The outlines of the objects that are kept."""
    text, spans = located
    column: list[tuple[int, int]] = []
    appended: list[bytes] = []
    end = len(text)
    for entry in objects:
        outline = entry.get("segmentation")
        if not outline or not isinstance(outline, (list, dict)):
            column.append((0, 0))
        elif spans and isinstance(outline, list) and len(outline) == 1 and isinstance(outline[0], int):
            first, last = spans[outline[0]]
            column.append((first, last) if last - first > 2 else (0, 0))  # else [] or {}
        else:  # `_SEGMENTATION` did not match it
            appended.append(json.dumps(outline).encode())
            column.append((end, end + len(appended[-1])))
            end += len(appended[-1])
    return Outlines(
        text=text + b"".join(appended) if appended else text,
        spans=np.array(column, np.int64).reshape(-1, 2)[known],
        entries=np.flatnonzero(known),
    )


def _read_json(path: Path, *, with_outlines: bool) -> tuple[Any, Spans | None]:
    """Parses an annotation file without its outlines, which are most of the text: COCO needs 4 s instead of 20.

    Returns:
        the content, in which an outline is replaced by the list of one number that is its index in the second value.
    """
    spans: list[tuple[int, int]] = []

    def mark(match: re.Match[bytes]) -> bytes:
        spans.append(match.span(1))
        return b'"segmentation":[%d]' % (len(spans) - 1)

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read annotations {path}: {error.strerror}") from error
    try:
        if not with_outlines:
            return json.loads(_SEGMENTATION.sub(b'"segmentation":0', content)), None
        return json.loads(_SEGMENTATION.sub(mark, content)), (content, spans)
    except (ValueError, RecursionError):
        pass
    try:
        # Parsing the whole text gives the right position of the error.
        table = json.loads(content)
    except json.JSONDecodeError as error:
        truncated = error.pos >= len(error.doc.rstrip()) - 1 or "Unterminated" in error.msg
        raise DatasetError(
            f"{path} ({len(content)} bytes) is {'truncated' if truncated else 'not valid JSON'}: {error.msg} at line "
            f"{error.lineno}, column {error.colno}. Copy or download it again"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON text: copy or download it again") from error
    return table, (b"", []) if with_outlines else None


def _table(content: Any, name: str, path: Path) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        raise DatasetError(
            f"{path} is not a COCO annotation file: it has no list {name!r} (needed: images, annotations, categories)"
        )
    for index, entry in enumerate(content[name]):
        if not isinstance(entry, dict):
            raise _entry_error(path, name, index, f"{entry!r:.80} instead of an object")
    table: list[dict[str, Any]] = content[name]
    return table


def _numbers(
    table: list[dict[str, Any]],
    key: str,
    path: Path,
    name: str,
    *,
    integer: bool = False,
    default: np.ndarray | None = None,
) -> np.ndarray:
    """One column (N,) as float64 or int64; missing values come from `default` (N,), if given."""
    if default is None:
        values = [entry.get(key) for entry in table]
    else:
        values = [entry.get(key, missing) for entry, missing in zip(table, default.tolist(), strict=True)]
    try:
        column = np.array(values, np.float64)
        if set(map(type, values)) <= {int, float, bool} and np.isfinite(column).all():
            if not integer:
                return column
            if (column % 1 == 0).all() and (abs(column) < 2**53).all():
                return column.astype(np.int64)
    except (TypeError, ValueError, OverflowError):
        pass
    index = next(i for i, value in enumerate(values) if not _is_number(value, integer))
    kind = "an integer" if integer else "a number"
    raise _entry_error(path, name, index, f"{key} = {values[index]!r:.80} instead of {kind}")


def _is_number(value: object, integer: bool) -> bool:
    """Whether a JSON value is finite and, if asked, integer and exact as a float."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return not integer or (value == int(value) and abs(value) < 2**53)


def _strings(table: list[dict[str, Any]], key: str, path: Path, name: str) -> list[str]:
    for index, entry in enumerate(table):
        if not isinstance(entry.get(key), str):
            raise _entry_error(path, name, index, f"{key} = {entry.get(key)!r:.80} instead of a string")
    return [entry[key] for entry in table]


def _file_names(table: list[dict[str, Any]], path: Path) -> list[str]:
    names = [image_name(entry) for entry in table]
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise _entry_error(path, "images", index, f"file_name = {name!r:.80} instead of a string")
    return names


def _boxes(table: list[dict[str, Any]], path: Path) -> np.ndarray:
    """The boxes (N, 4) float64 xywh."""
    boxes = [entry.get("bbox") for entry in table]
    for index, box in enumerate(boxes):
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)):
            raise _entry_error(path, "annotations", index, f"bbox = {box!r:.80} instead of [x, y, width, height]")
    array = np.array(boxes, np.float64).reshape(-1, 4)
    wrong = ~np.isfinite(array).all(axis=1) | (array[:, 2:] < 0).any(axis=1)
    if wrong.any():
        index = int(np.argmax(wrong))
        problem = "a negative width or height" if np.isfinite(array[index]).all() else "numbers that are not finite"
        raise _entry_error(path, "annotations", index, f"bbox = {boxes[index]}, {problem}", table[index].get("id"))
    return array


def _lookup(ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `wanted` (N,) occur in `ids`, bool (N,), and at which row (N,)."""
    if not len(ids):
        return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.int64)
    order = np.argsort(ids)
    rows = order[np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)]
    return ids[rows] == wanted, rows


def _check_unique(ids: np.ndarray, name: str, path: Path) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DatasetError(f"{path}: id {values[counts > 1][0]} occurs more than once in {name!r}; ids must be unique")


def _entry_error(path: Path, name: str, index: int, problem: str, entry_id: object = None) -> DatasetError:
    entry = f"{name}[{index}]" + (f" (id {entry_id})" if entry_id is not None else "")
    source = source_of(path)
    return DatasetError(
        f"{source.name}: {entry} has {problem}. Correct or remove it; {source.check} lists every such entry"
    )
