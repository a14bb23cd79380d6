"""Parses an annotation file of COCO's kind and checks that its records follow the schema."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.data.checks.findings import Findings
from codetr_cli.data.formats.layouts import image_name
from codetr_cli.data.outlines import OutlineError, check_polygons
from codetr_cli.data.targets import Size


@dataclass
class AnnotationSummary:
    """Counts of one annotation file.

    Args:
        images: (file name, height, width) of each valid image record.
        without_objects: number of images without any annotation.
        max_objects: most annotations in one image.
        usable: annotations that training uses: no crowds, at least a pixel wide and high, inside their image.
        outlines: annotations with a mask that can be drawn.
        frequencies: LVIS's "r", "c" and "f" -> number of rare, common and frequent classes.
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
        """The counts, under the keys of `--json`."""
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


class UnusableFileError(Exception):
    """The file as a whole cannot be parsed: the kind of finding, and what exactly was found."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


_JSON_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnusableFileError("unreadable_json", error.strerror or str(error)) from error
    size = len(data)
    try:
        text = data.decode("utf-8")
        del data  # half a gigabyte for COCO
    except UnicodeDecodeError as error:
        kind = "truncated_json" if error.reason == "unexpected end of data" else "not_json"
        raise UnusableFileError(kind, f"no UTF-8 text at byte {error.start:,} of {size:,}") from error
    if not text.strip():
        raise UnusableFileError("truncated_json", "it contains only white space" if size else "it has zero bytes")
    try:
        return json.loads(text, object_hook=_checked_outline)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        rest = text[error.pos :].strip()
        # A string, an escape or a word that is cut by the end of the file fails before the end.
        cut = error.msg.startswith("Unterminated string") or any(word.startswith(rest) for word in _JSON_WORDS)
        if cut or (len(rest) < 8 and "escape" in error.msg):
            detail = f"it ends at byte {size:,} while the JSON is still open since byte {byte:,}"
            raise UnusableFileError("truncated_json", detail) from error
        detail = f"{error.msg} at byte {byte:,} (line {error.lineno}, column {error.colno})"
        raise UnusableFileError("not_json", detail) from error
    except (ValueError, RecursionError) as error:
        raise UnusableFileError("not_json", str(error)) from error


DRAWABLE = True
"""Replaces polygons that can be drawn."""


def _checked_outline(record: dict[str, Any]) -> dict[str, Any]:
    """Replaces an annotation's polygons by the result of their check: as lists, those of COCO are gigabytes."""
    polygons = record.get("segmentation")
    if type(polygons) is list:
        try:
            if polygons:
                check_polygons(polygons)
            record["segmentation"] = DRAWABLE if polygons else None
        except OutlineError as error:
            record["segmentation"] = str(error)
    return record


def read_tables(path: Path) -> tuple[list[Any], list[Any], list[Any]]:
    """The lists of images, annotations and categories of a file.

    An annotation's polygons are replaced by `DRAWABLE`, by None where there are none, or by the problem with them.

    Raises:
        UnusableFileError: it cannot be read or is not COCO's JSON.
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        results = isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]
        hint = ": this looks like a file of detections" if results else ""
        raise UnusableFileError("wrong_schema", f"the top level is {_type(content)}, an object is needed{hint}")
    keys = ("images", "annotations", "categories")
    wrong = [
        f"key {key!r} {f'is {_type(content[key])}, a list is needed' if key in content else 'is missing'}"
        for key in keys
        if not isinstance(content.get(key), list)
    ]
    if wrong:
        raise UnusableFileError("wrong_schema", ", ".join(wrong))
    return content["images"], content["annotations"], content["categories"]


def check_images(images: list[Any], summary: AnnotationSummary, findings: Findings, where: str) -> dict[int, Size]:
    """Checks the records of images; returns (height, width) by id."""
    sizes: dict[int, Size] = {}
    names: Counter[str] = Counter()
    for index, record in enumerate(images):
        wrong = _wrong_image(record)
        if wrong:
            findings.add("wrong_schema", where, f"images[{index}] {wrong}")
            continue
        image_id, name, size = int(record["id"]), image_name(record), (int(record["height"]), int(record["width"]))
        if image_id in sizes:
            findings.add("duplicate_image_id", where, f"{image_id} ({name})")
        sizes[image_id] = size
        names[name] += 1
        summary.images.append((name, *size))
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


def check_categories(categories: list[Any], summary: AnnotationSummary, findings: Findings, where: str) -> None:
    """Checks the records of categories and adds their names to the summary."""
    for index, record in enumerate(categories):
        if not isinstance(record, dict):
            findings.add("wrong_schema", where, f"categories[{index}] is {_type(record)}, an object is needed")
            continue
        wrong = _wrong_id(record, "id")
        name = record.get("name")
        if wrong or not isinstance(name, str):
            findings.add("wrong_schema", where, f"categories[{index}] {wrong or 'has no name'}")
        elif record["id"] in summary.category_names:
            findings.add(
                "duplicate_category_id", where, f"{record['id']} ({summary.category_names[record['id']]}, {name})"
            )
        else:
            summary.category_names[record["id"]] = name
    known = [record["frequency"] for record in categories if isinstance(record, dict) and "frequency" in record]
    summary.frequencies = {letter: known.count(letter) for letter in ("r", "c", "f")} if known else {}
    for name, count in Counter(summary.category_names.values()).items():
        if count > 1:
            findings.add("duplicate_category_name", where, name)


def valid_annotations(annotations: list[Any], findings: Findings, where: str) -> list[dict[str, Any]]:
    """The annotations that follow the schema; the others become findings."""
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
    """Whether a JSON value is an integer; some exporters write 640.0."""
    return (type(value) is int or (type(value) is float and value.is_integer())) and abs(value) < 2**63


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")
