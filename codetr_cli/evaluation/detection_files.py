"""Reads files of detections as tools write them, into records with the keys of COCO's result format.

Read are COCO's list of records, also as pycocotools' `loadRes` completes it; a table with such a list, alone or beside
`images` and `categories`; lists with one entry an image; and each of these as JSON Lines. Other names of the keys are
those of Detectron2, MMDetection, Ultralytics, torchvision, transformers and supervision. A box is read by the names of
its numbers, never by their values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli import reading
from codetr_cli.annotations.annotation_json import (
    MAX_BOX,
    UnusableFileError,
    is_box,
    json_type,
    read_json_file,
    without_collector,
)
from codetr_cli.annotations.encodings import decode_text
from codetr_cli.errors import DatasetError, listed, shown

LISTS = ("annotations", "predictions", "detections", "results", "instances", "objects")
"""Keys of a list of records, in a file or in an entry of one image."""
COLUMNS = (
    ("boxes", "scores", "labels"),
    ("bboxes", "scores", "labels"),
    ("pred_boxes", "scores", "pred_classes"),
)
"""Keys of an entry of one image with a list of each: of torchvision and transformers, MMDetection, Detectron2."""
IMAGE_KEYS = ("image_id", "file_name", "filename", "image", "image_name", "image_path", "img_path", "path", "file")
STANDARD = ("image_id", "category_id", "bbox", "score")
_OTHER_KEYS = ("bbox_mode", "class_name", *IMAGE_KEYS[2:])
CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
_CORNER_MODES = ("0", "XYXY_ABS", "XYXY")
_SIZE_MODES = ("1", "XYWH_ABS", "XYWH")
_MODES = {"2": "XYXY_REL", "3": "XYWH_REL", "4": "XYWHA_ABS"}
"""Of Detectron2's BoxMode; relative and rotated boxes are refused."""
MAX_BOX_TEXT = 200
_CENTRE = ("x", "y", "width", "height")  # of Roboflow, whose records have a confidence
_BINARY = {
    b"\x80": "a Python pickle, which can run any program when it is read: let MMDetection write JSON "
    "(test_evaluator.outfile_prefix=results)",
    b"PK\x03\x04": "a zip archive: unpack it, and give the JSON file with the detections",
    b"\x1f\x8b": "compressed: unpack it with gunzip",
    b"\x93NUMPY": "an array of NumPy: write its rows as JSON",
}
_NUMBER = re.compile(r"[+-]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][+-]?\d{1,3})?")


@dataclass(frozen=True)
class DetectionFile:
    """The content of a file of detections.

    Attributes:
        path: of the file.
        records: unchecked JSON values; the keys of those that are objects are COCO's, with `file_name` and
            `category_name` if there are any.
        notes: on how it was read, phrases.
        keys: that any record has.
    """

    path: Path
    records: list[Any]
    notes: list[str] = field(default_factory=list)
    keys: frozenset[str] = frozenset()


def read_detection_file(path: Path) -> DetectionFile:
    """The records of a file.

    Raises:
        DatasetError: missing, neither JSON nor JSON Lines, or without a list of records.
    """
    content = _parsed(path)
    if isinstance(content, dict):
        records, images, categories = _list_of_table(content, path), content.get("images"), content.get("categories")
    elif isinstance(content, list):
        records, images, categories = content, None, None
    else:
        raise DatasetError(f"{path} is not a list of COCO detections: its top level is {json_type(content)}")
    with without_collector():
        records, of_images = _flat(records)
        notes = [f"{of_images:,} entries with the detections of an image each"] if of_images else []
        present, common = _keys(records)
        is_standard = common.issuperset(STANDARD) and not present.intersection(_OTHER_KEYS)
        if images or categories or not is_standard or _has_other_values(records):
            _check_modes(records, path)
            records = _standardized(records, _names(images, "file_name"), _names(categories, "name"), notes)
            present, _ = _keys(records)
        return DetectionFile(path, records, notes, present)


# ---------------------------------------------------------------------------------------------------------- the file


def _parsed(path: Path) -> Any:
    """The JSON value of a file, or the list of those of its lines."""
    if path.is_dir():
        inside = sorted(each.name for each in path.glob("*.json"))
        hint = f": give a file in it, e.g. {path / inside[0]}" if inside else ", without a JSON file in it"
        raise DatasetError(f"{path} is a folder{hint}")
    try:
        return read_json_file(path)
    except UnusableFileError as error:
        if error.kind == "unreadable_json":
            raise DatasetError(f"cannot read detections {path}: {error.detail}") from error
        start = _start(path)
        is_pickle = path.suffix.lower() in (".pkl", ".pickle")
        for mark, what in _BINARY.items():
            if start.startswith(mark) or (is_pickle and mark == b"\x80"):
                raise DatasetError(f"{path} is {what}") from error
        lines = _parsed_lines(path) if error.detail.startswith("Extra data") else None
        if lines is not None:
            return lines
        end = ": is the file complete?" if error.kind == "truncated_json" else ". Give COCO's result format"
        raise DatasetError(f"{path} is not valid JSON ({error.detail}){end}") from error


def _start(path: Path) -> bytes:
    try:
        with reading.open_file(path) as file:
            return file.read(64)
    except OSError:
        return b""


def _parsed_lines(path: Path) -> list[Any] | None:
    """The values of JSON Lines, with lists as their items; None if the first line is neither an object nor a list."""
    try:
        lines = decode_text(reading.read_bytes(path)).split("\n")
    except OSError as error:
        raise DatasetError(f"cannot read detections {path}: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not next((line for line in lines if line.strip()), "").lstrip().startswith(("{", "[")):
        return None
    values: list[Any] = []
    with without_collector():
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = reading.parse_json(line)
            except ValueError as error:
                raise DatasetError(
                    f"{path} is neither one JSON value nor one a line: line {number:,} is not valid JSON ({error})"
                ) from error
            if isinstance(value, list):
                values.extend(value)
            else:
                values.append(value)
    return values


def _list_of_table(table: dict[str, Any], path: Path) -> list[Any]:
    """The records of a table: the list under one of some keys, that with scores where there are several."""
    if _columns_of(table) or ("score" in table and "bbox" in table):
        return [table]
    lists = [key for key in LISTS if isinstance(table.get(key), list)]
    if len(lists) > 1:
        lists = [key for key in lists if table[key] and _has_score(table[key][0])] or [
            key for key in lists if table[key]
        ][:1] or lists[:1]  # fmt: skip
    if len(lists) == 1:
        entry = {key: table[key] for key in IMAGE_KEYS if key in table}
        return [{**entry, lists[0]: table[lists[0]]}] if entry else list(table[lists[0]])
    if lists:
        raise DatasetError(f"{path} has several lists of detections ({', '.join(lists)}): keep one of them")
    if any(table.values()) and all(_are_detections(value) for value in table.values()):
        return [
            {"image_id": key, **(value if isinstance(value, dict) else {LISTS[0]: value})}
            for key, value in table.items()
        ]
    keys = listed([shown(key, 40) for key in table], 5)
    raise DatasetError(
        f"{path} is not a list of COCO detections: its top level is an object without a list under "
        f"{', '.join(LISTS[:-1])} or {LISTS[-1]} (its keys: {keys or 'none'})"
    )


def _are_detections(value: object) -> bool:
    """Whether the value of an image's name is its detections: a list of records, or lists of their values."""
    if isinstance(value, list):
        return all(isinstance(record, dict) for record in value)
    return isinstance(value, dict) and _columns_of(value) is not None


def _has_score(record: object) -> bool:
    return isinstance(record, dict) and ("score" in record or "confidence" in record)


def _names(entries: Any, key: str) -> dict[int | str, str]:
    """The names of images or categories that a file has beside its detections, by id."""
    if not isinstance(entries, list):
        return {}
    return {
        entry["id"]: entry[key]
        for entry in entries
        if isinstance(entry, dict) and type(entry.get("id")) in (int, str) and type(entry.get(key)) is str
    }


# -------------------------------------------------------------------------------------------------------- the records


def _keys(records: list[Any]) -> tuple[frozenset[str], frozenset[str]]:
    """The keys that any record has, and those that all have; records that are no objects do not count."""
    combinations = set(map(tuple, records if set(map(type, records)) <= {dict} else _objects(records)))
    return frozenset().union(*combinations), frozenset(STANDARD).intersection(*combinations)


def _has_other_values(records: list[Any]) -> bool:
    """Whether the first record has numbers as text or ids in lists: tools that write them so do it everywhere."""
    first = records[0] if records and type(records[0]) is dict else {}
    box = first.get("bbox")
    numbers = (*box, first.get("score")) if type(box) is list else (box,)
    return any(type(value) is str for value in numbers) or type(first.get("image_id")) is list


def _check_modes(records: list[Any], path: Path) -> None:
    """Refuses boxes that are neither corners nor corner and size in pixels, by their `bbox_mode`."""
    for number, record in enumerate(records):
        mode = _mode(record) if type(record) is dict and "bbox_mode" in record else ""
        if mode and mode not in (*_CORNER_MODES, *_SIZE_MODES):
            raise DatasetError(
                f"{path}: detection number {number} has bbox_mode {shown(_MODES.get(mode, record['bbox_mode']))}, not "
                "XYXY_ABS (0) or XYWH_ABS (1): convert the boxes to pixels (x, y, width, height), without rotation"
            )


def _mode(record: dict[str, Any]) -> str:
    """The `bbox_mode` of a record as text; empty if it is null."""
    mode = record.get("bbox_mode")
    return "" if mode is None else shown(mode).strip("'\"").upper().removeprefix("BOXMODE.")


def _objects(records: list[Any]) -> list[dict[str, Any]]:
    return [record for record in records if type(record) is dict]


def _flat(records: list[Any]) -> tuple[list[Any], int]:
    """The records without entries of images, and the number of these; a list without such entries is itself."""
    first = records[0] if records else None
    if type(first) is dict and "bbox" in first and "score" in first:
        return records, 0
    flat: list[Any] = []
    entries = 0
    for record in records:
        parts = _parts(record) if type(record) is dict else None
        if parts is None:
            flat.append(record)
        else:
            entries += 1
            flat.extend(parts)
    return (flat, entries) if entries else (records, 0)


def _parts(entry: dict[str, Any]) -> list[Any] | None:
    """The records of an entry of one image; None if it is a record itself."""
    image = {key: entry[key] for key in IMAGE_KEYS if key in entry}
    columns = _columns_of(entry)
    if columns:
        boxes, scores, labels = (entry[key] for key in columns)
        return [
            {**image, "bbox": _from_corners(box), "score": score, "label": label}
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]
    if "bbox" in entry or "score" in entry:
        return None
    lists = [key for key in LISTS if isinstance(entry.get(key), list)]
    if len(lists) != 1:
        return None
    return [{**image, **part} if type(part) is dict else part for part in entry[lists[0]]]


def _columns_of(entry: dict[str, Any]) -> tuple[str, ...] | None:
    """The keys of an entry that has boxes, scores and labels as lists of one length."""
    for keys in COLUMNS:
        lists = [entry.get(key) for key in keys]
        if (
            all(isinstance(each, list) for each in lists)
            and len({len(each) for each in lists if each is not None}) == 1
        ):
            return keys
    return None


def _standardized(
    records: list[Any], file_names: dict[int | str, str], class_names: dict[int | str, str], notes: list[str]
) -> list[Any]:
    """The records with COCO's keys, and with the names that the file has for their images and categories."""
    standard = [
        _standard(record) if type(record) is dict and not _KNOWN_KEYS.isdisjoint(record) else record
        for record in records
    ]
    known = (("image_id", "file_name", file_names), ("category_id", "category_name", class_names))
    are_centres = False
    for record in _objects(standard):
        are_centres |= record.pop("is_centre", False)
        for id_key, name_key, names in known:
            number = record.get(id_key)
            if names and name_key not in record and type(number) in (int, str) and number in names:
                record[name_key] = names[number]
    if are_centres:
        notes.append("boxes given by x, y of their centre, width and height, as Roboflow writes them")
    return standard


def _standard(record: dict[str, Any]) -> dict[str, Any]:
    """A record with COCO's keys; a missing value stays missing."""
    image_name = _first_text(record, IMAGE_KEYS[1:])
    image = record.get("image")
    image_id = record.get("image_id", image if type(image) in (int, float) else None)
    if type(image) is dict:
        image_id = image.get("id", image_id)
        image_name = image_name or _first_text(image, IMAGE_KEYS[1:])
    if type(image_id) is list and len(image_id) == 1:  # of a tensor with one element
        image_id = image_id[0]
    category = next((record[key] for key in _CATEGORY if _is_given(record.get(key))), None)
    class_name = _first_text(
        record, ("category_name", "class_name", "label_name", *_CATEGORY[2:], *_name_beside_class(record))
    )
    if category is None and type(record.get("category")) is dict:
        category, class_name = record["category"].get("id"), class_name or _first_text(record["category"], ("name",))
    standard = {
        "image_id": image_id,
        "file_name": image_name,
        "category_id": category,
        "category_name": class_name if class_name != category else None,
        "score": _number(next((record[key] for key in ("score", "confidence", "conf") if key in record), None)),
        **_standard_box(record),
    }
    standard |= {key: record[key] for key in ("segmentation", "mask_score") if record.get(key) is not None}
    return {key: value for key, value in standard.items() if value is not None}


_KNOWN_KEYS = frozenset(
    (*IMAGE_KEYS, "category_id", "category_name", "class_id", "class_name", "class", "label", "category", "label_name")
).union(("score", "confidence", "conf", "bbox", "box"))
_CATEGORY = ("category_id", "class_id", "class", "label", "category")


def _name_beside_class(record: dict[str, Any]) -> Iterable[str]:
    return ("name",) if "class" in record or "class_id" in record else ()


def _is_given(value: object) -> bool:
    return value is not None and value != "" and type(value) not in (list, dict)


def _first_text(record: dict[str, Any], keys: Iterable[str]) -> str | None:
    return next((record[key] for key in keys if type(record.get(key)) is str and record[key]), None)


def _standard_box(record: dict[str, Any]) -> dict[str, Any]:
    """The box of a record as x, y, width, height; a table of the keys `bbox` and `is_centre`."""
    box = record.get("bbox")
    if type(box) is str and len(box) <= MAX_BOX_TEXT and box.lstrip().startswith("["):
        with suppress(ValueError):
            box = reading.parse_json(box)
    if type(box) is list:
        numbers = [_number(value) for value in box]
        return {"bbox": _from_corners(numbers) if _mode(record) in _CORNER_MODES else numbers}
    for holder in (box, record.get("box"), record):
        if type(holder) is not dict:
            continue
        for keys in CORNERS:
            if all(key in holder for key in keys):
                return {"bbox": _from_corners([_number(holder[key]) for key in keys])}
    if all(key in record for key in _CENTRE) and "confidence" in record:
        x, y, width, height = numbers = [_number(record[key]) for key in _CENTRE]
        if is_box(numbers) and all(abs(value) <= MAX_BOX for value in numbers):
            return {"bbox": [x - width / 2, y - height / 2, width, height], "is_centre": True}
    return {} if box is None else {"bbox": box}


def _from_corners(box: Any) -> Any:
    """A box (x, y, width, height) of corners; anything else as it is."""
    if not is_box(box) or not all(abs(value) <= MAX_BOX for value in box):
        return box
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _number(value: Any) -> Any:
    """The number that a text is, as tools write that turn all values into text; any other value as it is."""
    return float(value) if type(value) is str and _NUMBER.fullmatch(value.strip()) else value
