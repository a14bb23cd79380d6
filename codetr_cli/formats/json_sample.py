"""What a JSON file is, from parts of it: whether it has COCO's tables, of what kind, and names of its images.

An annotation file may have gigabytes, and its tables come in any order. Its start shows what it is; blocks of it, at
equal distances, show the names of images and the keys of annotations.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codetr_cli.annotations.annotation_json import TABLES
from codetr_cli.reading import open_file

WHOLE_BYTES = 4 << 20
"""Files up to this size are read as a whole."""
START_BYTES = 1 << 20
BLOCK_BYTES = 1 << 15
BLOCKS = 64
SCAN_BYTES = 1 << 24
"""Of a file without names of images in any block, all is read in steps of this size."""
MAX_NAMES = 400

Kind = Literal["boxes", "keypoints", "captions", "panoptic", "labels", "images"]
"""What the annotations of a file are; "images": it has none."""

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|$)|[{}\[\]]', re.DOTALL)
_NAME = re.compile(r'"(file_name|coco_url)"[ \t\r\n]*+:[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")')
_RECORDS = {
    "images": ("file_name", "coco_url"),
    "annotations": ("image_id",),
    "categories": ("name",),
}
"""A key that only the records of this table have, besides `id`."""


@dataclass(frozen=True)
class JsonSample:
    """Parts of an annotation file.

    Attributes:
        kind: of its annotations.
        names: of some of its images, from all parts of the file, as they are written.
        categories: the records of its categories; empty if they are not within the parts that were read.
    """

    kind: Kind
    names: list[str]
    categories: list[Any]


def has_tables(start: str) -> bool:
    """Whether the start of a JSON text is that of an object with COCO's tables."""
    if not start.lstrip().startswith("{") or not any(f'"{table}"' in start for table in TABLES):
        return False
    tables = first_keys(start)
    known = [name for name, keys in _RECORDS.items() if "id" in tables.get(name, ()) and _has_any(tables[name], keys)]
    if "annotations" in tables and _has_any(tables["annotations"], ("image_id",)):
        known.append("annotations")
    if "images" in known or "annotations" in known:
        return True
    return len([name for name in TABLES if name in tables]) > 1 and all(
        name in known or not tables[name] for name in TABLES if name in tables
    )


def may_continue(start: str) -> bool:
    """Whether more of a text may show tables: what comes before them, or the first one, can be long."""
    tables = first_keys(start)
    return start.lstrip().startswith("{") and all(
        name in (*TABLES, "licenses", "license", "tags") or not keys for name, keys in tables.items()
    )


def first_keys(start: str) -> dict[str, set[str]]:
    """The lists of the top level of a JSON object, by key, with the keys of their first record."""
    tables: dict[str, set[str]] = {}
    open_brackets: list[str] = []
    key, last = "", ""
    recording: str | None = None
    for match in _TOKEN.finditer(start):
        token = match[0]
        depth = len(open_brackets)
        if token in ("{", "["):
            if depth == 1:
                key = last
                if token == "[":
                    tables.setdefault(key, set())
            elif depth == 2 and token == "{" and open_brackets[1] == "[" and not tables[key]:
                recording = key
            open_brackets.append(token)
        elif token in ("}", "]"):
            if not open_brackets:
                break
            open_brackets.pop()
            if len(open_brackets) == 2:
                if recording in ("images", "annotations"):
                    break  # the rest is of no use: an annotation file has one of these
                recording = None
        elif depth == 1:
            last = token[1:-1]
        elif depth == 3 and recording is not None and _is_key(start, match.end()):
            tables[recording].add(token[1:-1])
    return tables


def _is_key(text: str, end: int) -> bool:
    return text[end : end + 20].lstrip().startswith(":")


def _has_any(keys: set[str], wanted: tuple[str, ...]) -> bool:
    return not keys.isdisjoint(wanted)


def read_start(path: Path, size: int = START_BYTES) -> str:
    """The first bytes of a file as text; empty if it cannot be read."""
    try:
        with open_file(path) as file:
            content = file.read(size)
    except OSError:
        return ""
    return content.decode(_encoding(content), "replace").lstrip("\ufeff")


def sample_json(path: Path) -> JsonSample:
    """Parts of an annotation file.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(WHOLE_BYTES if size <= WHOLE_BYTES else START_BYTES)
        encoding = _encoding(start)
        texts = [start.decode(encoding, "replace")]
        if size > WHOLE_BYTES:
            step = (size - START_BYTES) // BLOCKS // 4 * 4  # a multiple of the bytes of a letter of UTF-16
            for index in range(BLOCKS):
                file.seek(START_BYTES + index * step)
                texts.append(file.read(BLOCK_BYTES).decode(encoding, "replace"))
            file.seek((size - START_BYTES) // 4 * 4)
            texts.append(file.read().decode(encoding, "replace"))
        names = _names(texts)
        if not names and size > WHOLE_BYTES:
            file.seek(0)
            while not names and (content := file.read(SCAN_BYTES)):
                names = _names([content.decode(encoding, "replace")])
    categories = next((found for text in (texts[0], texts[-1]) if (found := _categories(text))), [])
    return JsonSample(_kind(texts), names, categories)


def _encoding(start: bytes) -> str:
    """The encoding of a JSON text, from its start: a form of Unicode, else the Chinese one."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16-le" if start[0] == 0xFF else "utf-16-be"
    if len(start) > 3 and (start[0] == 0) != (start[1] == 0):
        return "utf-16-be" if start[0] == 0 else "utf-16-le"
    for cut in range(4):  # the last letter may be cut in the middle
        try:
            start[: len(start) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return "utf-8"
    return "gb18030"


def _names(texts: list[str]) -> list[str]:
    """Some file names of images in each text; where there are none, the ends of the images' addresses."""
    found: dict[str, list[str]] = {"file_name": [], "coco_url": []}
    share = max(MAX_NAMES // len(texts), 4)
    for text in texts:
        count = 0
        for match in _NAME.finditer(text):
            try:
                name = json.loads(match[2])
            except ValueError:
                continue
            found[match[1]].append(name if match[1] == "file_name" else "/".join(name.split("/")[-2:]))
            count += 1
            if count >= share:
                break
    return list(dict.fromkeys(name for name in found["file_name"] or found["coco_url"] if name))


def _categories(text: str) -> list[Any]:
    """The list of categories in a text, if it is there as a whole."""
    at = re.search(r'"categories"[ \t\r\n]*+:[ \t\r\n]*+(?=\[)', text)
    if at is None:
        return []
    try:
        value, _ = json.JSONDecoder().raw_decode(text, at.end())
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def _kind(texts: list[str]) -> Kind:
    """What the annotations are, from the keys that only their records have."""

    def occurs(key: str) -> bool:
        pattern = re.compile(rf'"{key}"[ \t\r\n]*+:')
        return any(pattern.search(text) for text in texts)

    if occurs("segments_info"):
        return "panoptic"
    if occurs("num_keypoints"):
        return "keypoints"
    if occurs("bbox"):
        return "boxes"
    if occurs("caption"):
        return "captions"
    return "labels" if occurs("image_id") else "images"
