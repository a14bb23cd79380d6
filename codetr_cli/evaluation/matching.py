"""Finds the image and the category of the annotations that each record of a file of detections means.

Both are given by number, by name or by both. Names decide where each of them means exactly one image (or category); the
numbers do where no name is known, or where no known name disagrees with them. Everything else is refused: scored by the
wrong one of two, detections would get an AP that means nothing.
Shape letters: N records, I images or categories of the annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.annotation_json import ID, MAX_FILE_NAME
from codetr_cli.annotations.objects import Annotations
from codetr_cli.annotations.row_finders import (
    DIGITS,
    NONE,
    OTHER_SUFFIXES,
    class_finder,
    image_finder,
    number_rows,
    unique_rows,
)
from codetr_cli.class_names import plain_class_name
from codetr_cli.errors import DatasetError, listed, shown
from codetr_cli.evaluation.detection_files import DetectionFile
from codetr_cli.images.image_files import IMAGE_SUFFIXES

MAX_MISSES = 1000
"""Unknown names after which names have to be spelled as in the annotations: other spellings take time."""


@dataclass(frozen=True)
class Matched:
    """What the records mean.

    Attributes:
        rows: (N,) int64, index of the image or category; `NONE` where there is none with that number.
        note: on how they were matched, a sentence; empty if by number.
        by_name: whether names decided.
    """

    rows: NDArray[np.int64]
    note: str = ""
    by_name: bool = False


@dataclass(frozen=True)
class _Side:
    """The images or the categories of the annotations.

    Args:
        many: what they are.
        id_key: key of the number in a record.
        name_key: key of the name.
        ids: (I,) int64.
        exact: the rows by name, `NONE` where several have it.
        find: the row of the only one with a name in any spelling, or `NONE`.
    """

    many: str
    id_key: str
    name_key: str
    ids: NDArray[np.int64]
    exact: dict[str, int]
    find: Callable[[str], int]

    def rows_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of numbers (N,), `NONE` where there is none."""
        if not len(self.ids):
            return np.full(len(numbers), NONE)
        order = np.argsort(self.ids, kind="stable")
        rows = order[np.searchsorted(self.ids, numbers, sorter=order).clip(max=len(self.ids) - 1)]
        return np.where(self.ids[rows] == numbers, rows, NONE)

    def named(self, names: Sequence[Any]) -> NDArray[np.int64]:
        """The rows of names (N,); values that are no text have none."""
        found: dict[str, int] = {}
        misses = 0
        for name in dict.fromkeys(name for name in names if type(name) is str):
            found[name] = self.exact.get(name, NONE) if misses > MAX_MISSES else self.find(name)
            misses += found[name] == NONE
        return np.array([found[name] if type(name) is str else NONE for name in names], np.int64)


def match_images(file: DetectionFile, ground_truth: Annotations, where: str) -> Matched:
    """The image (row of the annotations) of each record with `image_id`, `file_name` or both.

    Numbers that no image has as its id may be those of file names: 12 is 000012.jpg.

    Raises:
        DatasetError: a name means no or several images, or names and numbers contradict each other.
    """
    exact = unique_rows(ground_truth.file_names)
    side = _Side("images", "image_id", "file_name", ground_truth.image_ids, exact, image_finder(exact))
    return _matched(file, side, where, lambda: number_rows(ground_truth.file_names))


def match_categories(file: DetectionFile, ground_truth: Annotations, where: str) -> Matched:
    """The category (label of the annotations) of each record with `category_id`, `category_name` or both.

    Raises:
        DatasetError: as `match_images`.
    """
    ids = np.array(ground_truth.category_ids, np.int64)
    exact = unique_rows(ground_truth.class_names)
    side = _Side("categories", "category_id", "category_name", ids, exact, class_finder(exact))
    return _matched(file, side, where, dict)


# ----------------------------------------------------------------------------------------------------------- matching


def _matched(file: DetectionFile, side: _Side, where: str, numbered: Callable[[], dict[int, int]]) -> Matched:
    """The rows by names where each is known, else by numbers if no name contradicts them."""
    records = file.records
    numbers = [record.get(side.id_key) for record in records]
    if side.name_key not in file.keys:
        return _by_number(numbers, side, where, numbered)
    names = [record.get(side.name_key) for record in records]
    by_name = side.named(names)
    if (by_name != NONE).all():
        return Matched(by_name, _other_numbers(numbers, by_name, side, where, numbered), by_name=True)
    by_number = _by_number(numbers, side, where, numbered)
    rows = by_number.rows
    other = (by_name != NONE) & (by_name != rows)
    if (rows != NONE).all() and not other.any():
        if (by_name != NONE).any() or not any(names):
            return by_number
        return Matched(
            rows,
            f"no {side.name_key} of the detections is in {where} (the first is {shown(next(filter(None, names)))}): "
            f"they are matched by {side.id_key}",
        )
    unknown = [name for name, row in zip(names, by_name.tolist(), strict=True) if row == NONE]
    first = listed(list(dict.fromkeys("none" if name is None else shown(name) for name in unknown[:1000])), 5)
    raise DatasetError(
        f"{side.name_key} and {side.id_key} cannot be matched: {len(unknown):,} of {len(rows):,} detections have a "
        f"{side.name_key} that means none or several of the {side.many} of {where} ({first}), and {int(other.sum()):,} "
        f"have another {side.id_key} than that of their {side.name_key}. Score them against the annotations they were "
        f"made for, or correct these records"
    )


def _other_numbers(
    numbers: list[Any], by_name: NDArray[np.int64], side: _Side, where: str, numbered: Callable[[], dict[int, int]]
) -> str:
    """A note on numbers that mean others than the names, which decide; empty without any."""
    try:
        is_other = _by_number(numbers, side, where, numbered).rows != by_name
    except DatasetError:  # without a clear meaning
        return ""
    given = sum(number is not None for number, other in zip(numbers, is_other.tolist(), strict=True) if other)
    return (
        f"{given:,} of {len(numbers):,} detections have another {side.id_key} than {where} has for their "
        f"{side.name_key}: all are matched by {side.name_key}"
        if given
        else ""
    )


def _by_number(values: list[Any], side: _Side, where: str, numbered: Callable[[], dict[int, int]]) -> Matched:
    """The rows of numbers and of texts in their place, which may be names."""
    column = None if str in set(map(type, values)) else ID.column(values)
    if column is not None:
        rows = side.rows_of(column)
        if (rows == NONE).any():
            by_file = numbered()
            in_names = np.array([by_file.get(number, NONE) for number in column.tolist()], np.int64)
            if len(rows) and (in_names != NONE).all():
                return Matched(in_names, f"each {side.id_key} is the number in a file name: matched by file name")
        return Matched(rows)
    if any(value is not None and type(value) is not str and not ID.holds(value) for value in values):
        return Matched(np.full(len(values), NONE))  # reported with the record
    return _by_text(values, side, where, numbered)


def _by_text(values: list[Any], side: _Side, where: str, numbered: Callable[[], dict[int, int]]) -> Matched:
    """The rows of texts, perhaps among numbers: all are numbers, or all are names."""
    digits = {
        value: found[1]
        for value in dict.fromkeys(values)
        if type(value) is str and (found := DIGITS.fullmatch(value)) is not None
    }
    texts = {value: int(number) for value, number in digits.items()}
    numbers = [int(value) if isinstance(value, int | float) else texts.get(value) for value in values]
    rows = side.rows_of(np.array([number or 0 for number in numbers], np.int64))
    as_ids = np.where([number is not None for number in numbers], rows, NONE)
    as_names = side.named(values)
    has_names = any(type(value) is str and value not in texts for value in values)
    if has_names and (as_names == NONE).any():
        as_names = _with_numbers(as_names, as_ids, numbers, numbered(), side)
    is_padded = any(number != str(int(number)) for number in digits.values())  # no tool writes an id as 0012
    are_ids, are_names = bool((as_ids != NONE).all()), bool((as_names != NONE).all())
    if are_ids and are_names and not is_padded and (as_ids != as_names).any():
        row = int(np.argmax(as_ids != as_names))
        raise DatasetError(
            f"detection number {row} has {side.id_key} {shown(values[row])}, the number of one of the {side.many} of "
            f"{where} and the name of another. Write numbers instead of texts, or add {side.name_key}"
        )
    by_name = are_names or (has_names and not are_ids)
    return Matched(as_names if by_name else as_ids, by_name=by_name)


def _with_numbers(
    as_names: NDArray[np.int64],
    as_ids: NDArray[np.int64],
    numbers: list[int | None],
    by_file: dict[int, int],
    side: _Side,
) -> NDArray[np.int64]:
    """The rows of names, and of numbers among them: all are those of file names, as tools write them, or all are ids.

    Raises:
        DatasetError: they are partly the one and partly the other.
    """
    in_names = np.array([NONE if each is None else by_file.get(each, NONE) for each in numbers], np.int64)
    are_numbers = (as_names == NONE) & np.array([number is not None for number in numbers])
    is_in_name, is_id = (in_names != NONE)[are_numbers], (as_ids != NONE)[are_numbers]
    if is_in_name.all() or not is_id.any():
        return np.where(are_numbers, in_names, as_names)
    if is_id.all() and not is_in_name.any():
        return np.where(are_numbers, as_ids, as_names)
    row = int(np.flatnonzero(are_numbers)[np.argmax(~is_in_name)])
    raise DatasetError(
        f"{side.id_key} is a number in {int(are_numbers.sum()):,} of {len(numbers):,} detections and a name in others, "
        f"and these numbers are neither all ids nor all numbers of names (detection number {row} has {numbers[row]}). "
        f"Write names everywhere, or ids everywhere"
    )


def several(text: str, ground_truth: Annotations) -> bool:
    """Whether a name that means no single image may mean several of the annotations, by its last part."""
    last = text.replace("\\", "/").strip().rpartition("/")[2].casefold()
    stem, dot, suffix = last.rpartition(".")
    ends = {last, stem} if dot + suffix in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES) else {last}
    names = (name.rpartition("/")[2].casefold() for name in ground_truth.file_names)
    return sum(not ends.isdisjoint((name, name.rpartition(".")[0])) for name in names) > 1


def several_classes(text: str, ground_truth: Annotations) -> bool:
    """Whether the names of several categories are a name in other spellings."""
    plain = plain_class_name(text[:MAX_FILE_NAME])
    return sum(plain_class_name(name) == plain for name in ground_truth.class_names) > 1
