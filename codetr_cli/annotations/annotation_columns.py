"""The entries of an annotation file as arrays, with every problem that they have: the one reader of all verbs.

`read_annotations` raises the first error; `codetr prepare` collects all of them, and what is no error too. What an
entry may have, and what counts as absent, is decided here alone. Null is absent, text of a number is that number.
Shape letters: K categories, I images, N objects whose entries have ids and a box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.annotation_json import (
    AREA,
    FLAG,
    FREQUENCIES,
    ID,
    LVIS_LISTS,
    MAX_BOX,
    SIDE,
    AnnotationTables,
    ValueRange,
    as_floats,
    box_of,
    class_name_of,
    class_name_problem,
    file_name_problem,
    frequency_problem,
    is_lvis,
    json_type,
    lvis_ids,
)
from codetr_cli.annotations.layouts import image_name
from codetr_cli.errors import shown

UNIT_KEY, PIXELS = "codetr_box_unit", "pixels"
"""A key of converted files, and its value where the user has stated that boxes are in pixels, however small."""


class Problem(NamedTuple):
    """One problem: in short beside others of its kind, and as a sentence without its stop."""

    name: str
    sentence: str


class Problems(Protocol):
    """What becomes of the problems of a file: an exception at the first error, or findings."""

    def add(self, kind: str, problems: Sequence[Any], describe: Callable[[Any], Problem]) -> None:
        """Takes problems of one kind, a key of `finding_kinds.KINDS`, in order; describing one takes time."""


@dataclass(frozen=True)
class CategoryColumns:
    """Categories with an id: `ids` (K,) int64, `names` (None where unusable), `frequencies` (LVIS's, else empty).

    Attributes:
        unusable: number of entries without an id.
    """

    ids: NDArray[np.int64]
    names: list[str | None]
    frequencies: list[str]
    unusable: int = 0


@dataclass(frozen=True)
class ImageColumns:
    """Images with an id: `ids` (I,) int64, `names` (None where unusable), `sizes` (I, 2) (height, width), 0 if unknown.

    Attributes:
        neg_category_ids: LVIS only, see `Annotations`.
        not_exhaustive_category_ids: LVIS only.
        unusable: number of entries without an id.
    """

    ids: NDArray[np.int64]
    names: list[str | None]
    sizes: NDArray[np.int64]
    neg_category_ids: list[list[int]] = field(default_factory=list)
    not_exhaustive_category_ids: list[list[int]] = field(default_factory=list)
    unusable: int = 0


@dataclass(frozen=True)
class ObjectColumns:
    """Objects with ids and a box.

    Attributes:
        entries: (N,) int64, index in the file's list of annotations.
        image_ids: (N,) int64.
        category_ids: (N,) int64.
        boxes_xywh: (N, 4) float64, in pixels.
        area: (N,) float64; width times height where the file has none.
        iscrowd: (N,) int64 as in the file.
        ignore: (N,) int64 as in the file.
        image_rows: (N,) int64, row of the image; meaningless where it is not listed.
        is_listed: (N,) bool, whether the file lists the image.
        labels: (N,) int64, row of the category; meaningless where it is not listed.
        is_sound: (N,) bool, whether category, box, area and flags have no problem.
    """

    entries: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    area: NDArray[np.float64]
    iscrowd: NDArray[np.int64]
    ignore: NDArray[np.int64]
    image_rows: NDArray[np.int64]
    is_listed: NDArray[np.bool_]
    labels: NDArray[np.int64]
    is_sound: NDArray[np.bool_]


def read_columns(tables: AnnotationTables, problems: Problems) -> tuple[CategoryColumns, ImageColumns, ObjectColumns]:
    """The entries of an annotation file; their problems are reported, and those without an id are in no column."""
    for name in ("images", "categories"):
        if not getattr(tables, name):
            problems.add(f"no_{name}", [name], lambda name: Problem("", f"{name!r} is empty"))
    lvis = is_lvis(tables.images)
    categories = _categories(_Table("categories", tables.categories, problems), lvis=lvis)
    images = _images(_Table("images", tables.images, problems), lvis=lvis)
    table = _Table("annotations", tables.annotations, problems)
    in_pixels = tables.others.get(UNIT_KEY) == PIXELS
    return categories, images, _objects(table, categories, images, in_pixels=in_pixels)


class _Table:
    """The entries of one table that are usable so far, and the report of their problems.

    Args:
        name: of the table.
        entries: all of them.
        problems: where problems are reported.
    """

    def __init__(self, name: str, entries: list[Any], problems: Problems) -> None:
        self.name, self.problems = name, problems
        self.count = len(entries)
        self.entries: list[dict[str, Any]] = entries
        self.indices: NDArray[np.int64] | None = None
        """Index in the file of each entry; None: all are usable."""
        if not set(map(type, entries)) <= {dict}:
            wrong = [row for row, entry in enumerate(entries) if type(entry) is not dict]
            problems.add("wrong_schema", wrong, lambda row: _alike(
                f"{name}[{row}] is {json_type(entries[row])}, an object is needed"))  # fmt: skip
            self.drop(wrong)

    def drop(self, rows: Sequence[int]) -> None:
        """Removes some entries."""
        if rows:
            keep = np.ones(len(self.entries), bool)
            keep[rows] = False
            self.indices = self.file_indices()[keep]
            self.entries = [self.entries[row] for row in np.flatnonzero(keep).tolist()]

    def file_indices(self) -> NDArray[np.int64]:
        """Index in the file of each entry."""
        return np.arange(len(self.entries)) if self.indices is None else self.indices

    def entry(self, row: int) -> str:
        """An entry in messages: annotations[3] (id 7)."""
        record = self.entries[row]
        index = row if self.indices is None else int(self.indices[row])
        known = [f"id {shown(record['id'])}"] if record.get("id") is not None else []
        if self.name == "images" and isinstance(name := image_name(record), str):
            known.append(name)
        return f"{self.name}[{index}]" + (f" ({', '.join(known)})" if known else "")

    def report(
        self, kind: str, rows: Sequence[int], detail: Callable[[int], str], short: Callable[[int], str] | None = None
    ) -> None:
        """Reports problems of some entries; `detail` follows "has", `short` the name of an annotation."""

        def describe(row: int) -> Problem:
            sentence = f"{self.entry(row)} has {detail(row)}"
            if short is None:
                return _alike(sentence)
            return Problem(f"annotation {shown(self.entries[row].get('id'))}{short(row)}", sentence)

        if len(rows):
            self.problems.add(kind, rows, describe)

    def report_values(self, kind: str, rows: Sequence[int], key: str, words: str) -> None:
        """Reports that the values of a key are not what `words` says."""

        def detail(row: int) -> str:
            value = self.entries[row].get(key)
            return f"no {key!r}" if value is None else f"{key} = {shown(value)} instead of {words}"

        def short(row: int) -> str:
            return f" ({key} {shown(self.entries[row].get(key))})"

        self.report(kind, rows, detail, None if kind == "wrong_schema" else short)

    def numbers(
        self, key: str, kind: ValueRange, default: NDArray[Any] | None = None, problem: str = "wrong_schema"
    ) -> tuple[NDArray[Any], list[int]]:
        """One column (N,), and the rows where the value is unusable, which are 0, or the default, and reported.

        Null and absent values are the default (N,); without one they are unusable.
        """
        values = [entry.get(key) for entry in self.entries]
        types = set(map(type, values))
        if default is not None and type(None) in types:
            if types == {type(None)}:
                return default, []
            values = [other if value is None else value for value, other in zip(values, default.tolist(), strict=True)]
        column = kind.column(values)
        if str in types:
            self._report_text(key, values)
        if column is not None:
            return column, []
        wrong = [row for row, value in enumerate(values) if not kind.holds(value)]
        self.report_values(problem, wrong, key, kind.words)
        for row in wrong:
            values[row] = 0 if default is None else default[row].item()
        column = kind.column(values)
        assert column is not None  # substitutes are in range
        return column, wrong

    def _report_text(self, key: str, values: list[Any]) -> None:
        rows = [row for row, value in enumerate(values) if type(value) is str]
        self.report("number_as_text", rows, lambda row: f"{key} = {shown(values[row])}")

    def checked(self, values: list[Any], problem_of: Callable[[Any], str | None]) -> tuple[list[Any], list[int]]:
        """The values with None where there is a problem, and the rows of these, which are reported."""
        wrong = [row for row, value in enumerate(values) if problem_of(value)]
        self.report("wrong_schema", wrong, lambda row: problem_of(values[row]) or "")
        if not wrong:
            return values, []
        usable = list(values)
        for row in wrong:
            usable[row] = None
        return usable, wrong

    def unique_ids(self, ids: NDArray[np.int64], kind: str, names: Sequence[object]) -> None:
        """Reports ids that occur again, with the names of the entries that have them."""
        order = np.argsort(ids, kind="stable")
        again = order[1:][ids[order[1:]] == ids[order[:-1]]]
        if len(again):
            twice = np.unique(ids[again]).tolist()
            self.problems.add(kind, twice, lambda each: Problem(
                f"{each} ({_names_of(ids, names, each)})",
                f"id {each} ({_names_of(ids, names, each)}) occurs more than once in {self.name!r}"))  # fmt: skip


def _categories(table: _Table, *, lvis: bool) -> CategoryColumns:
    ids, wrong = table.numbers("id", ID)
    table.drop(wrong)
    ids = np.delete(ids, wrong)
    given = [entry.get("name") for entry in table.entries]
    names = list(map(class_name_of, given))
    table.report(
        "name_is_number",
        [row for row, name in enumerate(given) if name is not names[row]],
        lambda row: f"name = {shown(given[row])}",
    )
    names, _ = table.checked(names, class_name_problem)
    frequencies: list[str] = []
    if lvis:
        groups = [entry.get("frequency") for entry in table.entries]
        frequencies, _ = table.checked(["f" if group is None else group for group in groups], frequency_problem)
    elif any("frequency" in entry for entry in table.entries):
        frequencies = [group if (group := entry.get("frequency")) in FREQUENCIES else "" for entry in table.entries]
    table.unique_ids(ids, "duplicate_category_id", names)
    return CategoryColumns(ids, names, frequencies, table.count - len(ids))  # type: ignore[arg-type]


def _alike(sentence: str) -> Problem:
    return Problem(sentence, sentence)


def _names_of(ids: NDArray[np.int64], names: Sequence[object], wanted: int) -> str:
    return ", ".join(str(names[row]) for row in np.flatnonzero(ids == wanted)[:5].tolist())


def _images(table: _Table, *, lvis: bool) -> ImageColumns:
    ids, wrong = table.numbers("id", ID)
    table.drop(wrong)
    ids = np.delete(ids, wrong)
    names, _ = table.checked([image_name(entry) for entry in table.entries], file_name_problem)
    sizes = _sizes(table)
    lists: dict[str, list[list[int]]] = {}
    for key in LVIS_LISTS if lvis else ():
        lists[key] = [[] for _ in table.entries]
        wrong = []
        for row, entry in enumerate(table.entries):
            found = lvis_ids(entry, key)
            if found is None:
                wrong.append(row)
            else:
                lists[key][row] = found
        table.report_values("wrong_schema", wrong, key, "a list of ids")
    table.unique_ids(ids, "duplicate_image_id", names)
    return ImageColumns(ids, names, sizes, **lists, unusable=table.count - len(ids))


def _sizes(table: _Table) -> NDArray[np.int64]:
    """(height, width) (I, 2) int64 of images; 0, 0 where one of both is unusable, which is one problem."""
    keys = ("height", "width")
    columns = [[entry.get(key) for entry in table.entries] for key in keys]
    absent = sorted({row for values in columns if None in values for row, value in enumerate(values) if value is None})

    def lacks(row: int) -> str:
        return " and ".join(f"no {key!r}" for key in ("width", "height") if table.entries[row].get(key) is None)

    table.report("no_image_size", absent, lacks)
    skipped = set(absent)
    sizes = np.zeros((len(table.entries), 2), np.int64)
    unusable = np.zeros(len(table.entries), bool)
    unusable[absent] = True
    for place, (key, values) in enumerate(zip(keys, columns, strict=True)):
        column = SIDE.column(values)
        if str in set(map(type, values)):
            table._report_text(key, values)
        if column is None:
            wrong = [row for row, value in enumerate(values) if not SIDE.holds(value)]
            named = [row for row in wrong if row not in skipped]
            table.report_values("wrong_schema", named, key, SIDE.words)
            skipped.update(named)
            unusable[wrong] = True
            for row in wrong:
                values[row] = 1
            column = SIDE.column(values)
            assert column is not None
        sizes[:, place] = column
    sizes[unusable] = 0
    return sizes


def _objects(table: _Table, categories: CategoryColumns, images: ImageColumns, *, in_pixels: bool) -> ObjectColumns:
    image_ids, no_image = table.numbers("image_id", ID)
    category_ids, no_category = table.numbers("category_id", ID)
    boxes, no_box = _boxes(table)
    unusable = sorted({*no_image, *no_category, *no_box})
    table.drop(unusable)
    image_ids, category_ids = np.delete(image_ids, unusable), np.delete(category_ids, unusable)
    boxes = np.delete(boxes, unusable, axis=0)
    is_listed, image_rows = lookup(images.ids, image_ids)
    has_category, labels = lookup(categories.ids, category_ids)
    is_sound = has_category.copy()
    if not categories.unusable and len(categories.ids):  # their problem is reported already
        unknown = np.flatnonzero(~has_category).tolist()
        table.report(
            "unknown_category_id", unknown, lambda row: f"category_id {category_ids[row]}, which `categories` does not "
            "list", lambda row: f" (category_id {category_ids[row]})"
        )  # fmt: skip
    is_sound &= _check_boxes(
        table, boxes, images.sizes[image_rows] if len(images.ids) and not in_pixels else None, is_listed
    )
    sides = np.where(abs(boxes[:, 2:]) <= MAX_BOX, boxes[:, 2:], 0.0)
    default = sides[:, 0] * sides[:, 1]
    area, bad_area = table.numbers("area", AREA, default, "bad_area")
    zeros = np.zeros(len(table.entries), np.int64)
    iscrowd, bad_crowd = table.numbers("iscrowd", FLAG, zeros, "crowd_value")
    ignore, bad_ignore = table.numbers("ignore", FLAG, zeros, "ignore_value")
    is_sound[[*bad_area, *bad_crowd, *bad_ignore]] = False
    return ObjectColumns(
        table.file_indices(), image_ids, category_ids, boxes, area.astype(np.float64), iscrowd, ignore, image_rows,
        is_listed, labels, is_sound,
    )  # fmt: skip


def _boxes(table: _Table) -> tuple[NDArray[np.float64], list[int]]:
    """The boxes (N, 4) float64 xywh, and the rows of those that are none, which are reported."""
    boxes: list[Any] = [entry.get("bbox") for entry in table.entries]
    if set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4}:
        numbers = list(chain.from_iterable(boxes))
        if set(map(type, numbers)) <= {int, float}:
            return _as_boxes(numbers, boxes), []
    numbers_of = [box_of(box) for box in boxes]
    wrong = [row for row, box in enumerate(numbers_of) if box is None]
    table.report(
        "wrong_schema", wrong, lambda row: f"bbox = {shown(boxes[row])} instead of [x, y, width, height]"
        if boxes[row] is not None else "no 'bbox'"
    )  # fmt: skip
    text = [row for row, box in enumerate(numbers_of) if box is not None and str in set(map(type, boxes[row]))]
    table.report("number_as_text", text, lambda row: f"bbox = {shown(boxes[row])}")
    return as_floats((box or (0, 0, 0, 0) for box in numbers_of), 4), wrong


def _as_boxes(numbers: list[float], boxes: Iterable[Iterable[float]]) -> NDArray[np.float64]:
    try:
        return np.array(numbers, np.float64).reshape(-1, 4)
    except OverflowError:
        return as_floats(boxes, 4)


def _check_boxes(
    table: _Table, boxes: NDArray[np.float64], sizes: NDArray[np.int64] | None, is_listed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether each box (N,) can be a box in pixels; the others are reported.

    Args:
        table: of the boxes.
        boxes: (N, 4) x, y, width, height.
        sizes: (N, 2) of their images; None if the boxes are not compared with these.
        is_listed: (N,) whether their images are known.
    """
    finite = np.asarray((abs(boxes) <= MAX_BOX).all(axis=1))

    def named(row: int) -> str:
        return f"bbox = {shown(table.entries[row]['bbox'])}"

    def short(row: int) -> str:
        return f": {shown(table.entries[row]['bbox'])}"

    table.report(
        "box_not_finite",
        np.flatnonzero(~finite).tolist(),
        lambda row: f"{named(row)}, numbers that are not finite or far too large",
        short,
    )
    positive = np.asarray((boxes[:, 2:] >= 0).all(axis=1))
    table.report(
        "box_negative",
        np.flatnonzero(finite & ~positive).tolist(),
        lambda row: f"{named(row)}, a negative width or height",
        short,
    )
    sound = finite & positive
    checked = sound & is_listed & np.asarray((boxes != 0).any(axis=1))  # all zero is no sign of relative boxes
    if sizes is None or not checked.any() or not (boxes[checked] <= 1.0).all() or not (sizes[checked] > 2).all():
        return sound
    first = int(np.argmax(checked))
    detail = f"{named(first)}, like all boxes within 0..1: COCO counts pixels"
    table.report("box_normalised", [first], lambda row: detail, short)
    return sound & ~checked


def lookup(ids: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which of `wanted` (N,) occur in `ids`, bool (N,), and at which row (N,), the first one."""
    if not len(ids):
        return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.int64)
    order = np.argsort(ids, kind="stable")
    rows = order[np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)]
    return ids[rows] == wanted, rows
