"""Reads annotation files of COCO's kind into arrays, and selects objects by the published rules.

LVIS and Objects365 store an image's name in other keys, and LVIS has more data on images and classes.
Behaviour of the selection: mmdet's CocoDataset with filter_empty_gt=False. Sizes are (height, width) in pixels.
Shape letters: I images of a file, N its objects, M selected images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.annotations.annotation_columns import (
    CategoryColumns,
    ImageColumns,
    ObjectColumns,
    Problem,
    read_columns,
)
from codetr_cli.annotations.annotation_json import read_tables
from codetr_cli.annotations.cache import Source, source_of
from codetr_cli.annotations.finding_kinds import KINDS
from codetr_cli.annotations.json_text import UnusableFileError
from codetr_cli.annotations.outlines import Outlines
from codetr_cli.class_names import storable_class_name
from codetr_cli.config.data_settings import DatasetName
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
        unlisted: number of annotations of images that the file does not list; they are skipped.
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
    unlisted: int = 0
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


def dataset_of(is_lvis: bool, dataset: DatasetName) -> DatasetName:
    """The data set whose rules apply to annotations: LVIS's by their content, where the settings are COCO's."""
    return "lvis" if is_lvis and dataset == "coco" else dataset


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
            side: all that `codetr prepare` reports as errors of such a file. Names the entry.
    """
    try:
        tables = read_tables(path, with_outlines=with_outlines)
    except UnusableFileError as error:
        raise _file_error(path, error) from error
    columns = read_columns(tables, _FirstError(source_of(path)))
    outlines = tables.outlines
    del tables  # gigabytes
    return assemble(*columns, outlines)


class _FirstError:
    """Raises the first problem that is an error; see `annotation_columns.Problems`."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def add(self, kind: str, problems: Sequence[Any], describe: Callable[[Any], Problem]) -> None:
        """Raises a DatasetError, unless problems of this kind are none for training."""
        if KINDS[kind].severity == "error":
            problem = describe(problems[0]).sentence
            raise DatasetError(
                f"{self.source.name}: {problem}. {KINDS[kind].fix} {self.source.check} lists every such entry"
            )


def assemble(
    categories: CategoryColumns, images: ImageColumns, objects: ObjectColumns, outlines: Outlines | None
) -> Annotations:
    """The annotations of the entries that can be used.

    Args:
        categories: with unique ids.
        images: with unique ids; those without name or size are in the result, too.
        objects: those of unlisted images, and those with a problem, are skipped.
        outlines: of all entries of the file, if they were requested.
    """
    order = np.argsort(categories.ids, kind="stable")
    label_of_row = np.empty(len(order), np.int64)
    label_of_row[order] = np.arange(len(order))
    keep = objects.is_listed & objects.is_sound
    everything = bool(keep.all())

    def kept(column: np.ndarray) -> np.ndarray:
        return column if everything else column[keep]

    labels = kept(objects.labels)
    if outlines is not None and (not everything or len(objects.entries) < len(outlines.spans)):
        outlines = outlines.select(objects.entries[keep])
    is_lvis = bool(images.neg_category_ids)
    return Annotations(
        class_names=[categories.names[row] or "" for row in order.tolist()],
        category_ids=categories.ids[order].tolist(),
        image_ids=images.ids,
        file_names=[name or "" for name in images.names],
        sizes=images.sizes,
        image_rows=kept(objects.image_rows),
        labels=label_of_row[labels] if len(order) else labels,
        boxes_xywh=kept(objects.boxes_xywh),
        area=kept(objects.area),
        iscrowd=(kept(objects.iscrowd) != 0).astype(np.int64),
        ignore=kept(objects.ignore) != 0,
        unlisted=int((~objects.is_listed).sum()),
        outlines=outlines,
        frequencies=[categories.frequencies[row] or "f" for row in order.tolist()] if is_lvis else [],
        neg_category_ids=images.neg_category_ids,
        not_exhaustive_category_ids=images.not_exhaustive_category_ids,
    )


def unmatched_classes(
    train: tuple[Sequence[str], Sequence[int]], val: tuple[Sequence[str], Sequence[int]]
) -> tuple[list[str], list[str]]:
    """Classes by which the validation images differ from the training images, and the reverse; empty if none does.

    Each pair has the names and ids of the classes. They are the same if names and ids agree, or if the names do and
    each is given once: ids and order may differ then.
    """
    names, val_names = ([storable_class_name(name) for name in side[0]] for side in (train, val))
    if names == val_names and list(train[1]) == list(val[1]):
        return [], []
    known, val_known = set(names), set(val_names)
    extra = [name for name in val_names if name not in known]
    lacking = [name for name in names if name not in val_known]
    if not extra and not lacking:  # the same names with other ids: one that is given twice could be either class
        extra = [name for name in val_known if val_names.count(name) > 1 or names.count(name) > 1]
    return extra, lacking


def _file_error(path: Path, error: UnusableFileError) -> DatasetError:
    problem = {
        "unreadable_json": f"cannot read annotations {path}: {error.detail}",
        "truncated_json": f"{path} is truncated: {error.detail}. Copy or download it again",
        "not_json": f"{path} is not valid JSON: {error.detail}. Copy or export it again",
        "wrong_schema": f"{path} is not a COCO annotation file: {error.detail}",
    }
    return DatasetError(problem[error.kind])
