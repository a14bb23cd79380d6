"""Checks an annotation file of COCO's kind: that it is whole, follows the schema, and that its content makes sense."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.data.checks.findings import SHOWN, Findings
from codetr_cli.data.formats.detect import image_name
from codetr_cli.data.masks import OutlineError, check_polygons, run_lengths

QUERIES = 900
EDGE_SLACK_PX = 2.0
"""COCO's own boxes reach over the edge by rounding: less than this is not worth a word."""


@dataclass
class AnnotationFacts:
    """Counts of one annotation file.

    Args:
        images: (file name, height, width) of each valid image record.
        category_names: id -> name.
        annotations: number of annotations, crowds included.
        crowd: number of crowd annotations.
        without_objects: number of images without any annotation.
        max_objects: most annotations in one image.
        per_category: annotations of each category id.
        usable: annotations that training uses: no crowds, at least a pixel wide and high, within their image.
        outlines: annotations with a mask that can be drawn.
        frequencies: LVIS's "r", "c" and "f" -> number of classes in few, some and many images.
    """

    images: list[tuple[str, int, int]] = field(default_factory=list)
    category_names: dict[int, str] = field(default_factory=dict)
    annotations: int = 0
    crowd: int = 0
    without_objects: int = 0
    max_objects: int = 0
    per_category: dict[int, int] = field(default_factory=dict)
    usable: int = 0
    outlines: int = 0
    frequencies: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Counts under the names of `--json`."""
        return {
            "images": len(self.images),
            "annotations": self.annotations,
            "crowd": self.crowd,
            "usable": self.usable,
            "categories": len(self.category_names),
            "used_categories": sum(count > 0 for count in self.per_category.values()),
            "images_without_objects": self.without_objects,
            "most_objects_in_an_image": self.max_objects,
            "masks": self.outlines,
            **({"class_frequencies": self.frequencies} if self.frequencies else {}),
        }


def check_annotations(path: Path, findings: Findings, where: str, *, training: bool) -> AnnotationFacts | None:
    """Checks one annotation file.

    Args:
        path: the file, existing.
        findings: takes what is wrong.
        where: how findings call the file.
        training: whether the file is trained on: then every class wants an annotation.

    Returns:
        its counts, or None when it cannot be understood at all.
    """
    try:
        images, annotations, categories = _top_level(_read_json(path))
    except _UnusableError as error:
        findings.add(error.kind, where, error.detail)
        return None
    for kind, items in (("no_images", images), ("no_categories", categories)):
        if not items:
            findings.add(kind, where)
    facts = AnnotationFacts()
    sizes = _check_images(images, facts, findings, where)
    _check_categories(categories, facts, findings, where)
    valid = _valid_annotations(annotations, findings, where)
    facts.annotations = len(annotations)
    _check_annotation_ids(valid, findings, where)
    _check_references(valid, sizes, facts, findings, where)
    usable = _check_boxes(valid, sizes, findings, where)
    _check_extras(valid, usable, facts, findings, where)
    _check_outlines(valid, sizes, facts, findings, where)
    facts.usable = int(usable.sum())
    if training:
        _check_trainable(facts, findings, where)
    return facts


def note_category_ids(facts: AnnotationFacts, findings: Findings, where: str) -> None:
    """Mentions holes between the category ids and a category 0, which trip other tools."""
    ids = sorted(facts.category_names)
    for before, after in pairwise(ids):
        if after - before > 1:
            span = f"{before + 1}" if after - before == 2 else f"{before + 1}-{after - 1}"
            findings.add("category_id_holes", where, span)
    if 0 in facts.category_names:
        findings.add("category_id_zero", where, facts.category_names[0])


def compare_categories(train: AnnotationFacts, val: AnnotationFacts, findings: Findings, where: str) -> None:
    """Reports classes of which the two files have another idea."""
    for identity in sorted(train.category_names.keys() | val.category_names.keys()):
        ours, theirs = train.category_names.get(identity), val.category_names.get(identity)
        if ours != theirs:
            quoted = (
                f"{ours!r} in train" if ours is not None else "absent in train",
                f"{theirs!r} in val" if theirs is not None else "absent in val",
            )
            findings.add("categories_differ", where, f"id {identity} is {quoted[0]}, {quoted[1]}")


# --------------------------------------------------------------------------------------------------------- file, schema


class _UnusableError(Exception):
    """The file as a whole cannot be understood: the kind of finding and what exactly was found."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


_JSON_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _UnusableError("unreadable_json", error.strerror or str(error)) from error
    size = len(data)
    try:
        text = data.decode("utf-8")
        del data  # half a gigabyte for COCO
    except UnicodeDecodeError as error:
        kind = "truncated_json" if error.reason == "unexpected end of data" else "not_json"
        raise _UnusableError(kind, f"no UTF-8 text at byte {error.start:,} of {size:,}") from error
    if not text.strip():
        raise _UnusableError("truncated_json", "it holds only white space" if size else "it has zero bytes")
    try:
        return json.loads(text, object_hook=_drop_outline)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        rest = text[error.pos :].strip()
        # A string, an escape or a word that the end of the file cuts in two fails before the end.
        cut = error.msg.startswith("Unterminated string") or any(word.startswith(rest) for word in _JSON_WORDS)
        if cut or (len(rest) < 8 and "escape" in error.msg):
            detail = f"it ends at byte {size:,} while the JSON is still open since byte {byte:,}"
            raise _UnusableError("truncated_json", detail) from error
        detail = f"{error.msg} at byte {byte:,} (line {error.lineno}, column {error.colno})"
        raise _UnusableError("not_json", detail) from error
    except (ValueError, RecursionError) as error:
        raise _UnusableError("not_json", str(error)) from error


_DRAWABLE = True


def _drop_outline(record: dict[str, Any]) -> dict[str, Any]:
    """Puts what became of their check in the place of an annotation's polygons: a COCO's are gigabytes as lists."""
    polygons = record.get("segmentation")
    if type(polygons) is list:
        try:
            if polygons:
                check_polygons(polygons)
            record["segmentation"] = _DRAWABLE if polygons else None
        except OutlineError as error:
            record["segmentation"] = str(error)
    return record


def _top_level(table: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """The lists of images, annotations and categories."""
    if not isinstance(table, dict):
        hint = ": this looks like a file of detections" if _looks_like_results(table) else ""
        raise _UnusableError("wrong_schema", f"the top level is {_type(table)}, an object is needed{hint}")
    keys = ("images", "annotations", "categories")
    wrong = [
        f"key {key!r} {f'is {_type(table[key])}, a list is needed' if key in table else 'is missing'}"
        for key in keys
        if not isinstance(table.get(key), list)
    ]
    if wrong:
        raise _UnusableError("wrong_schema", ", ".join(wrong))
    return table["images"], table["annotations"], table["categories"]


def _looks_like_results(table: Any) -> bool:
    return isinstance(table, list) and bool(table) and isinstance(table[0], dict) and "score" in table[0]


def _check_images(
    images: list[Any], facts: AnnotationFacts, findings: Findings, where: str
) -> dict[int, tuple[int, int]]:
    """Image id -> (height, width)."""
    sizes: dict[int, tuple[int, int]] = {}
    names: Counter[str] = Counter()
    for index, record in enumerate(images):
        wrong = _wrong_image(record)
        if wrong:
            findings.add("wrong_schema", where, f"images[{index}] {wrong}")
            continue
        identity, name, size = int(record["id"]), image_name(record), (int(record["height"]), int(record["width"]))
        if identity in sizes:
            findings.add("duplicate_image_id", where, f"{identity} ({name})")
        sizes[identity] = size
        names[name] += 1
        facts.images.append((name, *size))
    for name, count in names.items():
        if count > 1:
            findings.add("duplicate_file_name", where, name)
    return sizes


def _wrong_image(record: Any) -> str | None:
    if not isinstance(record, dict):
        return f"is {_type(record)}, an object is needed"
    wrong = _wrong_id(record, "id")
    if wrong:
        return wrong
    name = image_name(record)
    if not isinstance(name, str) or not name or "\0" in name:
        return f"(id {record['id']}) has no 'file_name'" if name is None else f"has the 'file_name' {name!r}"
    for key in ("width", "height"):
        value: Any = record.get(key)
        if not _is_whole(value) or value <= 0:
            found = f"has no {key!r}" if value is None else f"has the {key} {value!r}, a positive integer is needed"
            return f"(id {record['id']}, {name}) {found}"
    return None


def _check_categories(categories: list[Any], facts: AnnotationFacts, findings: Findings, where: str) -> None:
    for index, record in enumerate(categories):
        if not isinstance(record, dict):
            findings.add("wrong_schema", where, f"categories[{index}] is {_type(record)}, an object is needed")
            continue
        wrong = _wrong_id(record, "id")
        name = record.get("name")
        if wrong or not isinstance(name, str):
            findings.add("wrong_schema", where, f"categories[{index}] {wrong or 'has no name'}")
        elif record["id"] in facts.category_names:
            findings.add(
                "duplicate_category_id", where, f"{record['id']} ({facts.category_names[record['id']]}, {name})"
            )
        else:
            facts.category_names[record["id"]] = name
    known = [record["frequency"] for record in categories if isinstance(record, dict) and "frequency" in record]
    facts.frequencies = {letter: known.count(letter) for letter in ("r", "c", "f")} if known else {}
    for name, count in Counter(facts.category_names.values()).items():
        if count > 1:
            findings.add("duplicate_category_name", where, name)


def _valid_annotations(annotations: list[Any], findings: Findings, where: str) -> list[dict[str, Any]]:
    """The records that follow the schema; the others are reported."""
    valid = []
    for index, record in enumerate(annotations):
        # The common case in one expression: a COCO has 860,001 of these.
        if (
            type(record) is dict
            and type(box := record.get("bbox")) is list
            and len(box) == 4
            and _NUMBERS.issuperset(map(type, box))
            and type(record.get("image_id")) is type(record.get("category_id")) is int
        ) or not (wrong := _wrong_annotation(record)):
            valid.append(record)
        else:
            findings.add("wrong_schema", where, f"annotations[{index}] {wrong}")
    return valid


_NUMBERS = frozenset((int, float))


def _wrong_annotation(record: Any) -> str | None:
    if not isinstance(record, dict):
        return f"is {_type(record)}, an object is needed"
    for key in ("image_id", "category_id"):
        wrong = _wrong_id(record, key)
        if wrong:
            return wrong
    box = record.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box):
        return None
    found = f"has the bbox {str(box)[:60]}, four numbers are needed" if "bbox" in record else "has no 'bbox'"
    return f"(id {record.get('id')}) {found}"


def _wrong_id(record: dict[str, Any], key: str) -> str | None:
    if key not in record:
        named = f"(id {record['id']}) " if key != "id" and "id" in record else ""
        return f"{named}has no {key!r}"
    value = record[key]
    return None if _is_whole(value) else f"has the {key} {value!r}, an integer is needed"


def _is_whole(value: Any) -> bool:
    """Whether a JSON value counts as an integer: some exporters write 640.0."""
    return (type(value) is int or (type(value) is float and value.is_integer())) and abs(value) < 2**63


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")


# --------------------------------------------------------------------------------------------------- ids, boxes, crowds


def _check_annotation_ids(records: list[dict[str, Any]], findings: Findings, where: str) -> None:
    ids = Counter(str(record.get("id")) for record in records)
    if len(ids) < len(records):
        for identity, count in ids.items():
            if count > 1 and identity != "None":
                findings.add("duplicate_annotation_id", where, identity)
    if ids["None"]:
        findings.add("no_annotation_id", where, count=ids["None"])
    if ids["0"]:
        findings.add("zero_annotation_id", where)


def _check_references(
    records: list[dict[str, Any]],
    sizes: dict[int, tuple[int, int]],
    facts: AnnotationFacts,
    findings: Findings,
    where: str,
) -> None:
    per_image = Counter(record["image_id"] for record in records)
    per_category = Counter(record["category_id"] for record in records)
    strangers = (per_image.keys() - sizes.keys(), per_category.keys() - facts.category_names.keys())
    for kind, key, unknown in zip(
        ("unknown_image_id", "unknown_category_id"), ("image_id", "category_id"), strangers, strict=True
    ):
        if unknown:
            for record in records:
                if record[key] in unknown:
                    findings.add(kind, where, f"annotation {record.get('id')} ({key} {record[key]})")
    facts.per_category = {identity: per_category[identity] for identity in facts.category_names}
    facts.without_objects = len(sizes.keys() - per_image.keys())
    facts.max_objects = max(per_image.values(), default=0)
    if facts.without_objects:
        findings.add("no_objects_image", where, count=facts.without_objects)
    for identity, count in per_image.items():
        if count > QUERIES:
            findings.add("many_objects", where, f"image {identity}: {count:,}")


def _check_boxes(
    records: list[dict[str, Any]], sizes: dict[int, tuple[int, int]], findings: Findings, where: str
) -> NDArray[np.bool_]:
    """Compares every box with its image; returns which ones (N,) can be trained on."""
    if not records:
        return np.zeros(0, bool)
    boxes = _as_floats(record["bbox"] for record in records)  # (N, 4) x, y, width, height in pixels
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(boxes).all(axis=1))
    boxes_safe = np.where(finite[:, None], boxes, 0.0)
    known: NDArray[np.bool_] = np.array([record["image_id"] in sizes for record in records])
    image = _as_floats(sizes.get(record["image_id"], (1, 1)) for record in records)  # (N, 2) height, width
    left, top, width, height = boxes_safe.T
    right, bottom = left + width, top + height
    image_height, image_width = image.T

    def report(kind: str, mask: NDArray[np.bool_]) -> None:
        for index in np.flatnonzero(mask)[:SHOWN]:
            record = records[index]
            name = f"annotation {record.get('id')}: {record['bbox']}"
            if kind.startswith(("box_outside", "box_beyond", "box_corners")):
                name += f" in {int(image_width[index])} x {int(image_height[index])}"
            findings.add(kind, where, name)
        rest = int(mask.sum()) - SHOWN
        if rest > 0:
            findings.add(kind, where, count=rest)

    report("box_not_finite", ~finite)
    negative = finite & ((width < 0) | (height < 0))
    report("box_negative", negative)
    sound = finite & ~negative & known
    if sound.any() and (boxes_safe[sound] <= 1.0).all() and (image[sound] > 2).all():
        findings.add("box_normalised", where, f"e.g. annotation {records[0].get('id')}: {records[0]['bbox']}")
        return sound & False
    thin: NDArray[np.bool_] = sound & ((width < 1) | (height < 1))
    report("box_degenerate", thin)
    outside = sound & ~thin & ((right <= 0) | (bottom <= 0) | (left >= image_width) | (top >= image_height))
    report("box_outside", outside)
    over = np.maximum.reduce([-left, -top, right - image_width, bottom - image_height])
    beyond = sound & ~thin & ~outside & (over > EDGE_SLACK_PX)
    fits_as_corners = (width <= image_width) & (height <= image_height) & (width > left) & (height > top)
    far = beyond & (over > 0.05 * np.maximum(image_height, image_width))
    if far.any() and far.sum() >= 0.2 * sound.sum() and fits_as_corners[sound].mean() > 0.95:
        report("box_corners", far)
    else:
        report("box_beyond_edge", beyond)
    return np.asarray(sound & ~thin & ~outside)


def _as_floats(rows: Iterable[Iterable[float]]) -> NDArray[np.float64]:
    """A float64 matrix; integers beyond its range become infinite."""
    rows = list(rows)
    try:
        return np.array(rows, dtype=np.float64)
    except OverflowError:
        return np.array([[float(v) if abs(v) < 1e300 or v != v else np.inf for v in row] for row in rows])


def _check_extras(
    records: list[dict[str, Any]],
    usable: NDArray[np.bool_],
    facts: AnnotationFacts,
    findings: Findings,
    where: str,
) -> None:
    """Looks at the keys that may be missing (iscrowd, area, ignore) and takes back from `usable` what they exclude."""
    for index, record in enumerate(records):
        area = record.get("area", 1)
        if not isinstance(area, int | float) or not math.isfinite(area):
            findings.add("bad_area", where, f"annotation {record.get('id')} (area {area!r})")
        elif area <= 0 < min(record["bbox"][2:]):
            findings.add("area_not_positive", where, f"annotation {record.get('id')} (area {area})")
            usable[index] = False
        if record.get("ignore"):
            findings.add("ignored", where)
            usable[index] = False
        crowd = record.get("iscrowd", 0)
        if crowd == 0:
            continue
        if crowd != 1:
            findings.add("crowd_value", where, f"annotation {record.get('id')} (iscrowd {crowd!r})")
            continue
        facts.crowd += 1
        usable[index] = False
        mask = record.get("segmentation")
        if not (isinstance(mask, dict) and "counts" in mask):
            findings.add("crowd_without_rle", where, f"annotation {record.get('id')}")


def _check_outlines(
    records: list[dict[str, Any]],
    sizes: dict[int, tuple[int, int]],
    facts: AnnotationFacts,
    findings: Findings,
    where: str,
) -> None:
    """Counts the masks and reports those that nobody can draw."""
    missing = 0
    for record in records:
        outline, size = record.get("segmentation"), sizes.get(record["image_id"])
        if isinstance(outline, dict) and outline and size is not None:
            try:
                outline = len(run_lengths({"counts": None, **outline}, size)) > 0
            except OutlineError as error:
                outline = str(error)
        if not outline:
            missing += not record.get("iscrowd")
        elif outline is _DRAWABLE:
            facts.outlines += 1
        elif size is not None:
            findings.add("broken_outline", where, f"annotation {record.get('id')} has {str(outline)[:100]}")
    if missing and facts.outlines:
        findings.add("some_outlines_missing", where, count=missing)


def _check_trainable(facts: AnnotationFacts, findings: Findings, where: str) -> None:
    for identity, count in facts.per_category.items():
        if not count:
            findings.add("unused_category", where, f"{facts.category_names[identity]} (id {identity})")
    if facts.images and not facts.usable:
        findings.add("no_objects", where)
