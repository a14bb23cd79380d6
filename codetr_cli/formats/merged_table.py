"""The merged COCO table of several data sets.

Case, `_`, `-` and spaces do not distinguish class names. Classes and images keep the ids of the first data set that has
them; an id of a later one that is already used is replaced by the next free one, and every image records its data set
and its id there. Images of the data sets alternate in proportion to their numbers, so that the first images of the
whole include all data sets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from codetr_cli import files
from codetr_cli.annotations.annotation_json import ID, MAX_CATEGORIES
from codetr_cli.annotations.objects import Annotations
from codetr_cli.class_names import plain_class_name
from codetr_cli.errors import DatasetError, listed
from codetr_cli.formats.intermediate import SHOWN


@dataclass(frozen=True)
class Part:
    """One of the data sets: folder of the images and annotation file of each of its splits; how it was read."""

    folder: Path
    title: str
    splits: dict[str, tuple[Path, Path]]
    notes: tuple[str, ...] = ()


@dataclass
class MergedClasses:
    """The classes of all data sets, by label; names are those of the first data set that has the class.

    `label_maps` give for each data set the label of each of its classes, by normalized name; `frequencies` LVIS's
    frequency group by label, where known.
    """

    names: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    label_maps: list[dict[str, int]] = field(default_factory=list)
    frequencies: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PartSplit:
    """The images and objects that one data set, the one with that index, contributes to a split.

    `labels` (classes of the data set,) int64 is the merged label of each of its labels, `image_ids` (images,) int64
    are unique over all data sets.
    """

    index: int
    annotations: Annotations
    images_dir: Path
    labels: np.ndarray
    image_ids: np.ndarray

    def files(self) -> list[str]:
        """The image files, absolute."""
        folder = str(self.images_dir.absolute())
        return [os.path.join(folder, name) for name in self.annotations.file_names]  # noqa: PTH118 (fast)

    def counts(self, classes: int) -> np.ndarray:
        """Objects of each merged class, (classes,) int64, without crowds and ignored ones."""
        table = self.annotations
        counted = (table.iscrowd == 0) & ~table.ignore
        return np.bincount(self.labels[table.labels[counted]], minlength=classes)


def merge_classes(parts: Sequence[Part], annotations: dict[str, dict[int, Annotations]]) -> MergedClasses:
    """The classes of each data set's training images if it has any: classes of its other images could not be learned.

    Raises:
        DatasetError: two classes of a data set have one name, or its training images lack some.
    """
    classes = MergedClasses()
    labels: dict[str, int] = {}
    for index, part in enumerate(parts):
        tables = [annotations[split][index] for split in ("train", "val", "test") if index in annotations[split]]
        own: dict[str, int] = {}
        for name, category_id in zip(tables[0].class_names, tables[0].category_ids, strict=True):
            key = plain_class_name(name)
            if key in own:
                raise DatasetError(
                    f"{part.folder} has two categories named {name!r}, so that those of the other data sets cannot be "
                    "matched: rename one, or train on this data set alone"
                )
            if key not in labels:
                labels[key] = len(classes.names)
                classes.names.append(name)
                if index == 0:
                    classes.ids.append(category_id)
            own[key] = labels[key]
        classes.label_maps.append(own)
        for table in tables:
            unknown = [name for name in table.class_names if plain_class_name(name) not in own]
            if unknown:
                raise DatasetError(
                    f"{part.folder} has categories among its validation or test images that its training images do "
                    f"not have: {listed(unknown, SHOWN)}. List the same categories in all its annotation files"
                )
            for name, frequency in zip(table.class_names, table.frequencies, strict=False):
                classes.frequencies.setdefault(own[plain_class_name(name)], frequency)
    if len(classes.names) > MAX_CATEGORIES:
        counts = (f"{part.folder} ({len(own):,})" for part, own in zip(parts, classes.label_maps, strict=True))
        raise DatasetError(
            f"the data sets have {len(classes.names):,} categories together, at most {MAX_CATEGORIES:,} can be used: "
            f"{', '.join(counts)}. Train on fewer of them at once, or give the same categories the same names"
        )
    new = _free_ids(np.array(classes.ids, np.int64), len(classes.names) - len(classes.ids))
    classes.ids.extend(new.tolist())
    return classes


def part_splits(
    parts: Sequence[Part], split: str, tables: dict[int, Annotations], classes: MergedClasses
) -> list[PartSplit]:
    """What each data set contributes to a split, with unique image ids."""
    given = np.concatenate([np.zeros(0, np.int64), *(table.image_ids for table in tables.values())])
    known = np.unique(given)
    free = _free_ids(known, len(given) - len(known))
    taken = np.zeros(0, np.int64)
    found = []
    for index, table in tables.items():
        ids = table.image_ids.copy()
        clash = np.isin(ids, taken)
        ids[clash], free = free[: clash.sum()], free[clash.sum() :]
        taken = np.concatenate([taken, ids])
        own = classes.label_maps[index]
        labels = np.array([own[plain_class_name(name)] for name in table.class_names], np.int64)
        found.append(PartSplit(index, table, parts[index].splits[split][0], labels, ids))
    return found


def _free_ids(known: np.ndarray, count: int) -> np.ndarray:
    """As many new ids as `count`, (count,) int64: the next ones or, where those are too large, the smallest."""
    first = int(known.max(initial=0)) + 1
    if first + count - 1 <= ID.high:
        return np.arange(first, first + count)
    return np.setdiff1d(np.arange(1, len(known) + count + 1), known)[:count]


def write_table(path: Path, parts: Sequence[PartSplit], classes: MergedClasses) -> None:
    """Writes one COCO table atomically, an entry a line."""
    with files.replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        _write(parts, classes, file)


def _write(parts: Sequence[PartSplit], classes: MergedClasses, file: TextIO) -> None:
    lvis = all(part.annotations.is_lvis for part in parts)
    categories: list[dict[str, Any]] = [
        {"id": category_id, "name": name} for category_id, name in zip(classes.ids, classes.names, strict=True)
    ]
    if lvis:
        for label, category in enumerate(categories):
            category["frequency"] = classes.frequencies.get(label, "f")
    file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
    _write_images(parts, classes, file, lvis=lvis)
    file.write('\n],\n"annotations": [')
    written = 0
    for part in parts:
        written = _write_objects(part, classes, file, written)
    file.write("\n]}\n")


def _write_images(parts: Sequence[PartSplit], classes: MergedClasses, file: TextIO, *, lvis: bool) -> None:
    turns = [(np.arange(len(part.image_ids)) + 0.5) / max(len(part.image_ids), 1) for part in parts]
    place = np.concatenate([np.full(len(turn), number) for number, turn in enumerate(turns)])
    rows = np.concatenate([np.arange(len(turn)) for turn in turns])
    names = [part.files() for part in parts]
    ids = np.array(classes.ids, np.int64)
    for count, at in enumerate(np.lexsort((place, np.concatenate(turns)))):
        number, row = int(place[at]), int(rows[at])
        part, table = parts[number], parts[number].annotations
        height, width = table.sizes[row].tolist()
        record: dict[str, Any] = {
            "id": int(part.image_ids[row]),
            "file_name": names[number][row],
            "height": height,
            "width": width,
            "dataset": part.index,
            "original_id": int(table.image_ids[row]),
        }
        if lvis:
            new = dict(zip(table.category_ids, ids[part.labels].tolist(), strict=True))
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                record[key] = [new[category_id] for category_id in getattr(table, key)[row] if category_id in new]
        file.write(f"{',' if count else ''}\n{json.dumps(record)}")


def _write_objects(part: PartSplit, classes: MergedClasses, file: TextIO, written: int) -> int:
    """Appends the objects of one data set; takes and returns the number of objects written so far."""
    table, outlines = part.annotations, part.annotations.outlines
    category_ids = np.array(classes.ids, np.int64)[part.labels][table.labels].tolist()
    image_ids = part.image_ids[table.image_rows].tolist()
    boxes, areas, crowds = table.boxes_xywh.tolist(), table.area.tolist(), table.iscrowd.tolist()
    spans = [] if outlines is None else outlines.spans.tolist()
    for row, ignore in enumerate(table.ignore.tolist()):
        record: dict[str, Any] = {
            "id": written + 1,
            "image_id": image_ids[row],
            "category_id": category_ids[row],
            "bbox": boxes[row],
            "area": areas[row],
            "iscrowd": crowds[row],
        }
        if ignore:
            record["ignore"] = 1
        text = json.dumps(record)
        if outlines is not None and spans[row][1] > spans[row][0]:
            outline = outlines.text[spans[row][0] : spans[row][1]].decode()
            text = f'{text[:-1]}, "segmentation": {outline}}}'
        file.write(f"{',' if written else ''}\n{text}")
        written += 1
    return written
