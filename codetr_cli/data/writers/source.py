"""The data set that is converted: the tables of each split as training reads them, with COCO's records where needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from codetr_cli.annotations.annotation_json import LVIS_LISTS, AnnotationTables, UnusableFileError, read_tables
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.layouts import SplitFiles
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.annotations.run_length_codes import OutlineError
from codetr_cli.data.writers.content import WrittenClasses, WrittenObject
from codetr_cli.errors import DatasetError
from codetr_cli.formats.found import FoundDataset

OutlineForm = Literal["values", "text", "presence"]
PRESENT = "present"
"""Stands for an outline that is only counted."""
NO_TABLES = AnnotationTables([], [], [], None)


@dataclass
class SourceSplit:
    """One split.

    Args:
        files: where it is.
        annotations: its images and objects, with outlines.
        tables: COCO's records without outlines, where they are written.
        rows: rows of the images that are chosen, ascending.
        labels: (K,) index of each of its classes among all that are written, -1 for others.
    """

    files: SplitFiles
    annotations: Annotations
    tables: AnnotationTables
    rows: np.ndarray
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def name(self) -> str:
        """train, val or test."""
        return self.files.name

    def record(self, row: int) -> dict[str, Any]:
        """COCO's record of an image, with the name of its file, and LVIS's lists of the chosen classes."""
        name = self.annotations.file_names[row]
        record = self.tables.images[row] if self.tables.images else {}
        lists = {key: [each for each in record[key] if each in self._kept_ids] for key in LVIS_LISTS if record.get(key)}
        return {**record, "file_name": name, **lists}

    def objects(self, row: int, outlines: OutlineForm) -> Iterator[WrittenObject]:
        """The objects of an image that are of the chosen classes.

        Args:
            row: of the image.
            outlines: as values, as their JSON text (bytes), or only as `PRESENT`.

        Raises:
            DatasetError: an outline that is not JSON.
        """
        found = self.annotations
        start, end = self._offsets[row], self._offsets[row + 1]
        for index in self._order[start:end].tolist():
            label = int(self.labels[found.labels[index]])
            if label < 0:
                continue
            x, y, w, h = found.boxes_xywh[index].tolist()
            yield WrittenObject(
                label,
                (x, y, x + w, y + h),
                bool(found.iscrowd[index] or found.ignore[index]),
                self._outline(index, outlines),
                self.tables.annotations[self._entry(index)] if self.tables.annotations else {},
            )

    def classes_of_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Image rows and labels of all objects of the chosen classes that are no crowds, (N,) each."""
        found = self.annotations
        labels = self.labels[found.labels] if len(found.labels) else found.labels
        keep = (labels >= 0) & (found.iscrowd == 0) & ~found.ignore
        return found.image_rows[keep], labels[keep]

    def other_objects(self) -> int:
        """The number of objects of other classes."""
        found = self.annotations
        return int((self.labels[found.labels] < 0).sum()) if len(found.labels) else 0

    def _entry(self, index: int) -> int:
        outlines = self.annotations.outlines
        return index if outlines is None else int(outlines.entries[index])

    def _outline(self, index: int, form: OutlineForm) -> Any:
        outlines = self.annotations.outlines
        if outlines is None:
            return None
        start, end = outlines.spans[index].tolist()
        if form != "values":
            return None if end <= start else outlines.text[start:end] if form == "text" else PRESENT
        try:
            return outlines.parse(index)
        except OutlineError as error:
            raise DatasetError(
                f"{self.files.where}: annotations[{self._entry(index)}] has {error}. Correct or remove it"
            ) from error

    @cached_property
    def _kept_ids(self) -> set[int]:
        ids = zip(self.annotations.category_ids, self.labels.tolist(), strict=True)
        return {category_id for category_id, label in ids if label >= 0}

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.annotations.image_rows, kind="stable")

    @cached_property
    def _offsets(self) -> np.ndarray:
        counts = np.bincount(self.annotations.image_rows, minlength=len(self.annotations.image_ids))
        return np.concatenate([[0], np.cumsum(counts)])


def read_split(
    found: FoundDataset, name: str, names: NameRule, counts: Counter[str], *, with_records: bool
) -> tuple[SourceSplit, str]:
    """Reads one split, and a note on names that lead outside, empty if there are none.

    Args:
        found: the data set.
        name: of the split.
        names: what names of images may lead to.
        counts: of `content.NOTES`.
        with_records: read COCO's records, too.

    Raises:
        DatasetError: the annotation file cannot be used, or names lead out of the data set's folder.
    """
    files = found.splits[name]
    annotations = read_annotations(files.annotations_path, with_outlines=True)
    note = names.check(annotations.file_names, files.images_dir, files.where)
    counts["unlisted"] += annotations.unlisted
    tables = NO_TABLES
    if with_records:
        try:
            tables = read_tables(files.annotations_path, with_outlines=False)
        except UnusableFileError as error:
            raise DatasetError(f"{files.annotations_path}: {error.detail}") from error
    return SourceSplit(files, annotations, tables, np.arange(len(annotations.image_ids))), note


def all_classes(splits: list[SourceSplit]) -> WrittenClasses:
    """The classes of all splits, by their ids.

    Raises:
        DatasetError: an id has several names.
    """
    names: dict[int, str] = {}
    for split in splits:
        for category_id, name in zip(split.annotations.category_ids, split.annotations.class_names, strict=True):
            if names.setdefault(category_id, name) != name:
                raise DatasetError(
                    f"category {category_id} is {names[category_id]!r} in {splits[0].files.where} and {name!r} in "
                    f"{split.files.where}: give each class the same id in all files"
                )
    ids = sorted(names)
    records = {split.name: split.tables.categories for split in splits}
    return WrittenClasses([names[category_id] for category_id in ids], ids, records)
