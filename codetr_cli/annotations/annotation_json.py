"""Parses JSON files of annotations and detections, and defines the values that they may have.

The outlines of objects are most of an annotation file; they are cut out and kept as text. `codetr prepare` and the
readers of training and evaluation use the same functions, so that they accept the same files.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.annotations.json_text import UnusableFileError as UnusableFileError
from codetr_cli.annotations.json_text import as_utf8, parse, parse_or_explain, read_utf8
from codetr_cli.annotations.json_text import without_collector as without_collector
from codetr_cli.annotations.outlines import Outlines
from codetr_cli.class_names import MAX_NAME
from codetr_cli.errors import shown

TABLES = ("images", "annotations", "categories")


# -------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class ValueRange:
    """The numbers that a key may have; text of a number ("12") is that number.

    Args:
        words: what they are, a phrase that follows "instead of".
        low: the smallest.
        high: the largest.
        whole: integers only; some exporters write 640.0. Integers are exact; a float counts only below 2**53, where it
            is.
        flag: true and false as well.
    """

    words: str
    low: float
    high: float
    whole: bool = True
    flag: bool = False

    def holds(self, value: object) -> bool:
        """Whether a JSON value is one of them."""
        if type(value) is bool:
            return self.flag
        number = number_of(value)
        if number is None or not self.low <= number <= self.high:  # False for NaN
            return False
        return not self.whole or type(number) is int or (abs(number) < _EXACT and number == int(number))

    def column(self, values: list[Any]) -> np.ndarray | None:
        """Values (N,) as int64, or float64 if they need not be whole; None if any is out of range."""
        types = set(map(type, values))
        if str in types:
            values = [number_of(value) if type(value) is str else value for value in values]
            types = set(map(type, values))
        if not types <= (_PLAIN_NUMBERS | {bool} if self.flag else _PLAIN_NUMBERS):
            return None
        is_exact = self.whole and float not in types
        try:
            column = np.array(values, np.int64 if is_exact else np.float64)
        except OverflowError:
            return None
        if not ((column >= self.low) & (column <= self.high)).all():
            return None
        if is_exact or not self.whole:
            return column
        if (abs(column) < _EXACT).all():
            return column.astype(np.int64) if (column % 1 == 0).all() else None
        return np.array([int(value) for value in values], np.int64) if all(map(self.holds, values)) else None


_PLAIN_NUMBERS = frozenset((int, float))
_EXACT = 2.0**53
_NUMBER_TEXT = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?")


def number_of(value: object) -> int | float | None:
    """The number of a JSON number or of its text, as CSV files and some exporters give it; None for other values."""
    if type(value) is int or type(value) is float:
        return value
    if type(value) is not str or len(value) > 100 or not _NUMBER_TEXT.fullmatch(value):
        return None
    return int(value) if value.lstrip("-").isdigit() else float(value)


ID = ValueRange("an integer of at most 64 bits", -(2**63), 2**63 - 1)
"""Of an image or a category."""
SIDE = ValueRange("an integer from 1 to 1,000,000", 1, 1_000_000)
FLAG = ValueRange("0 or 1", 1 - 2**53, 2**53 - 1, flag=True)
"""Other integers count as 1, as for pycocotools."""
AREA = ValueRange("a number", -1e18, 1e18, whole=False)
SCORE = ValueRange("a finite number", -1e30, 1e30, whole=False)
MAX_BOX = 1e9
"""Largest absolute value in a box; the square is far within float32."""
MAX_FILE_NAME = 4_096
MAX_CATEGORIES = 20_000
"""The tables of an evaluation need 160 KB each."""
FREQUENCIES = ("r", "c", "f")
"""LVIS's groups of classes by the number of training images that have them: rare, common, frequent."""
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def class_name_of(name: object) -> object:
    """The name of a category as text: 5 is "5"; other values as they are."""
    if type(name) is int and abs(name) < 10**100:
        return str(name)
    if type(name) is float and math.isfinite(name):
        return str(int(name)) if name == int(name) and abs(name) < _EXACT else repr(name)
    return name


def class_name_problem(name: object) -> str | None:
    """What is wrong with the name of a category, a phrase that follows "has"; None if it can be used."""
    if name is None:
        return "no name"
    if not isinstance(name, str):
        return f"name = {shown(name)} instead of a string"
    if len(name) > MAX_NAME:
        return f"a name of {len(name):,} characters; at most {MAX_NAME:,} are supported"
    if not _is_encodable(name):
        return f"the name {shown(name)}, which is not Unicode text"
    return None


def file_name_problem(name: object) -> str | None:
    """What is wrong with the file name of an image, a phrase that follows "has"; None if it can be used."""
    if name is None:
        return "no 'file_name'"
    if not isinstance(name, str) or not name:
        return f"file_name = {shown(name)} instead of a string"
    if len(name) > MAX_FILE_NAME:
        return f"a file_name of {len(name):,} characters; at most {MAX_FILE_NAME:,} are supported"
    if "\0" in name or not _is_encodable(name, "surrogateescape"):
        return f"the file_name {shown(name)}, which no file can have"
    return None


def _is_encodable(text: str, errors: str = "strict") -> bool:
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def id_number(value: Any) -> int | None:
    """The number that an id means, which may be written as text or as a float; None for any other."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def part_of_table(table: Mapping[str, Any], image_ids: Collection[int], *, keep: bool) -> dict[str, Any]:
    """The tables of some images of a file, with the annotations of these and all other keys.

    Args:
        table: of the file, which `read_json_file` has read and a reader has accepted.
        image_ids: of these images.
        keep: whether these are kept, or all others.
    """
    part = dict(table)
    for rows, key in (("images", "id"), ("annotations", "image_id")):
        part[rows] = [entry for entry in table[rows] if (id_number(entry[key]) in image_ids) == keep]
    return part


def is_box(box: object) -> bool:
    """Whether a JSON value is a list of four numbers, of any size and perhaps not finite."""
    return type(box) is list and len(box) == 4 and _PLAIN_NUMBERS.issuperset(map(type, box))


def box_of(box: object) -> list[float] | None:
    """The four numbers of a box, some perhaps as text; None for other values."""
    if type(box) is not list or len(box) != 4:
        return None
    numbers = [number_of(value) for value in box]
    return None if None in numbers else numbers  # type: ignore[return-value]


def as_floats(rows: Iterable[Iterable[float]], columns: int) -> np.ndarray:
    """Rows of numbers as (N, columns) float64; integers beyond its range become infinite."""
    rows = list(rows)
    try:
        return np.array(rows, np.float64).reshape(-1, columns)
    except OverflowError:
        values = [[value if abs(value) < 1e300 or value != value else math.inf for value in row] for row in rows]
        return np.array(values, np.float64)


def frequency_problem(frequency: object) -> str | None:
    """What is wrong with LVIS's frequency group of a category, a phrase that follows "has"; None if nothing is."""
    if frequency in FREQUENCIES:
        return None
    return f"frequency = {shown(frequency)} instead of 'r', 'c' or 'f'"


def is_lvis(images: list[Any]) -> bool:
    """Whether images have the lists of categories that only LVIS has."""
    return bool(images) and all(type(image) is dict and "neg_category_ids" in image for image in images)


def lvis_ids(image: Mapping[str, Any], key: str) -> list[int] | None:
    """One of the lists of categories of an LVIS image; None if it is none."""
    ids = image.get(key)
    if ids is None:
        return []
    column = ID.column(ids) if isinstance(ids, list) else None
    return None if column is None else column.tolist()


# --------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class AnnotationTables:
    """The tables of an annotation file; their entries are unchecked JSON values.

    Attributes:
        images: the entries of `images`.
        annotations: the entries of `annotations`; their `segmentation` is meaningless.
        categories: the entries of `categories`.
        outlines: one for each entry of `annotations`, if they were requested.
        others: the other keys of the file.
    """

    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    outlines: Outlines | None
    others: dict[str, Any] = field(default_factory=dict)


def read_json_file(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        UnusableFileError: it cannot be read or parsed.
    """
    content = read_utf8(path)
    try:
        return parse(content)
    except ValueError:
        return parse_or_explain(content)


def read_tables(path: Path, *, with_outlines: bool) -> AnnotationTables:
    """The tables of an annotation file.

    Raises:
        UnusableFileError: it cannot be read or parsed, or lacks a table.
    """
    content = read_utf8(path)
    cutter = _Cutter()
    cut = cutter.cut(content, with_outlines=with_outlines)
    if not with_outlines:
        content = b""  # most of the file
    try:
        text = cut.decode("utf-8", "surrogatepass")
        del cut
        table = parse(text)
    except ValueError:
        content, cutter = as_utf8(content or read_utf8(path)), _Cutter()
        text = content.decode("utf-8", "surrogatepass")
        table = parse_or_explain(content)  # the whole text gives the right position of the error
    _check_tables(table)
    if any(text.count(f'"{name}"') > 1 for name in TABLES):
        _refuse_second_tables(text)
    del text
    outlines = cutter.outlines(table["annotations"], content) if with_outlines else None
    others = {key: value for key, value in table.items() if key not in TABLES}
    return AnnotationTables(table["images"], table["annotations"], table["categories"], outlines, others)


def _check_tables(table: Any) -> None:
    """Raises an UnusableFileError for a JSON value that does not have the three tables."""
    if not isinstance(table, dict):
        results = isinstance(table, list) and table and isinstance(table[0], dict) and "score" in table[0]
        hint = ": this looks like a file of detections" if results else ""
        raise UnusableFileError("wrong_schema", f"the top level is {json_type(table)}, an object is needed{hint}")
    wrong = [
        f"key {key!r} {f'is {json_type(table[key])}, a list is needed' if key in table else 'is missing'}"
        for key in TABLES
        if not isinstance(table.get(key), list)
    ]
    if wrong:
        only = [key for key in TABLES if not isinstance(table.get(key), list)] == ["annotations"]
        hint = '; where no image has objects, "annotations": [] is right' if only else ""
        raise UnusableFileError("wrong_schema", ", ".join(wrong) + hint)
    if len(table["categories"]) > MAX_CATEGORIES:
        count = len(table["categories"])
        raise UnusableFileError("wrong_schema", f"it has {count:,} categories, at most {MAX_CATEGORIES:,} can be used")


def _refuse_second_tables(text: str) -> None:
    """Raises an UnusableFileError for a table that is given twice: a parser keeps the last one without a word."""

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = [name for name in TABLES if keys.count(name) > 1]
            if twice and not table.keys().isdisjoint(set(TABLES) - set(twice)):
                raise UnusableFileError("wrong_schema", f"key {twice[0]!r} is given twice: join both lists in one")
        return table

    with without_collector():
        json.loads(text, object_pairs_hook=as_dict)


def json_type(value: Any) -> str:
    """The type of a JSON value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")


# ------------------------------------------------------------------------------------------------------------ outlines

# Lists of numbers, and objects without an object inside: the outlines of all known writers, in ASCII. What is cut need
# not be valid JSON. The possessive quantifiers keep the time linear.
_SEGMENTATION = re.compile(
    rb'"segmentation":[ \t\r\n]*+'
    rb"(\[[\[\]0-9 \t\r\n.,eE+-]*\]"
    rb'|\{(?:[\w \t\r\n.,:+\[\]-]++|"(?:[ !#-\[\]-~]++|\\[ -~])*+")*+\})'
)


class _Cutter:
    """Cuts the outlines out of an annotation file: COCO needs 4 s instead of 20 to be parsed.

    Each is replaced by its number and a word that no file can contain, since it is drawn by lot.
    """

    def __init__(self) -> None:
        self._word = f"outline-{secrets.token_hex(8)}-"
        self._spans = array("q")

    def cut(self, content: bytes, *, with_outlines: bool) -> bytes:
        """The content without outlines; those that were requested can be found again."""
        if not with_outlines:
            return _SEGMENTATION.sub(b'"segmentation":null', content)
        replacement = f'"segmentation":"{self._word}%d"'.encode()
        spans = self._spans

        def mark(match: re.Match[bytes]) -> bytes:
            spans.extend(match.span(1))
            return replacement % (len(spans) // 2 - 1)

        return _SEGMENTATION.sub(mark, content)

    def outlines(self, annotations: list[Any], content: bytes) -> Outlines:
        """The outlines of the entries of `annotations`; those that were not cut are appended to the content."""
        word, spans = self._word, self._spans
        found = array("q")
        appended: list[bytes] = []
        end = len(content)
        for entry in annotations:
            outline = entry.get("segmentation") if type(entry) is dict else None
            if type(outline) is str and outline.startswith(word):
                index = 2 * int(outline[len(word) :])
                start, stop = spans[index], spans[index + 1]
                is_empty = stop - start < 8 and not content[start + 1 : stop - 1].strip()
                found.extend((0, 0) if is_empty else (start, stop))
            elif outline and isinstance(outline, list | dict):
                appended.append(_as_text(outline))
                found.extend((end, end + len(appended[-1])))
                end += len(appended[-1])
            else:
                found.extend((0, 0))
        return Outlines(
            text=content + b"".join(appended) if appended else content,
            spans=np.array(found, np.int64).reshape(-1, 2),
            entries=np.arange(len(annotations)),
        )


def _as_text(outline: Any) -> bytes:
    try:
        return json.dumps(outline).encode()
    except RecursionError:
        return b"nested too deeply"  # no JSON: a broken outline
