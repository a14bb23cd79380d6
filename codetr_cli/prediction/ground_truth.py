"""The annotated objects of the images that are predicted, from a data set in any layout.

Images and classes are matched by their names, by the rule of `codetr eval --detections`.
Shape letters: G annotated objects of an image, K classes of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.annotations.row_finders import NONE, class_finder, image_finder, unique_rows
from codetr_cli.errors import DatasetError, listed
from codetr_cli.files import real_path
from codetr_cli.formats.detect import why_unknown
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset

LISTED = 5


@dataclass(frozen=True, eq=False)
class ImageTruth:
    """The annotated objects of one image.

    Attributes:
        boxes: (G, 4) float64 xyxy in pixels.
        labels: (G,) int64 labels of the network; `NONE`: a class that the network does not know.
        class_names: G names, as annotated.
        iscrowd: (G,) bool, regions of several objects that are not annotated one by one.
        judged: (K,) bool, classes whose detections are compared: others are not annotated.
        exhaustive: (K,) bool, classes of which all objects are annotated; of others no detection is a false alarm.
        size: (height, width) in pixels of the annotated image.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    class_names: list[str]
    iscrowd: NDArray[np.bool_]
    judged: NDArray[np.bool_]
    exhaustive: NDArray[np.bool_]
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Part:
    """The annotations of one split, and the network's labels of its classes; `folder` is that of the images."""

    annotations: Annotations
    folder: Path
    labels: NDArray[np.int64]

    @cached_property
    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The objects image by image, and where those of each image start."""
        rows = self.annotations.image_rows
        counts = np.bincount(rows, minlength=len(self.annotations.image_ids))
        return np.argsort(rows, kind="stable"), np.concatenate([[0], np.cumsum(counts)])

    def truth(self, row: int, classes: int) -> ImageTruth:
        """The objects of an image, for a network of some classes."""
        found, (order, offsets) = self.annotations, self._order
        objects = order[offsets[row] : offsets[row + 1]]
        x, y, w, h = found.boxes_xywh[objects].T
        height, width = found.sizes[row].tolist()
        judged, exhaustive = self._classes(row, objects, classes)
        return ImageTruth(
            boxes=np.stack([x, y, x + w, y + h], axis=1),
            labels=self.labels[found.labels[objects]],
            class_names=[found.class_names[label] for label in found.labels[objects].tolist()],
            iscrowd=(found.iscrowd[objects] != 0) & (not found.is_lvis),  # LVIS has no crowds
            judged=judged,
            exhaustive=exhaustive,
            size=(height, width),
        )

    def _classes(self, row: int, objects: NDArray[np.int64], classes: int) -> tuple[NDArray[np.bool_], ...]:
        """Which classes are annotated in an image, and which of them completely."""
        found = self.annotations
        annotated = np.zeros(classes, bool)
        if not found.is_lvis:
            annotated[self.labels[self.labels != NONE]] = True
            return annotated, annotated
        ids = np.array(found.category_ids)
        absent = np.isin(ids, found.neg_category_ids[row])
        absent[found.labels[objects]] = True
        chosen = self.labels[absent]
        annotated[chosen[chosen != NONE]] = True
        partly = self.labels[np.isin(ids, found.not_exhaustive_category_ids[row])]
        exhaustive = annotated.copy()
        exhaustive[partly[partly != NONE]] = False
        return annotated, exhaustive


class GroundTruth:
    """Annotations that predictions are compared with.

    Args:
        path: an annotation file, or the folder of a data set in any layout, all parts of which are used.
        class_names: of the network, by label.

    Raises:
        DatasetError: there are no annotations, they are broken, or have no class of the network.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self._path, self._classes = path, len(class_names)
        find = class_finder(unique_rows(class_names))
        self._parts = [
            _Part(annotations, folder, np.array([find(name) for name in annotations.class_names], np.int64))
            for annotations, folder in _read(path)
        ]
        self._check_classes(class_names)

    def _check_classes(self, class_names: Sequence[str]) -> None:
        annotated = list(dict.fromkeys(name for part in self._parts for name in part.annotations.class_names))
        if all((part.labels == NONE).all() for part in self._parts):
            raise DatasetError(
                f"{self._path} and the network have no class in common: the annotations have "
                f"{listed(annotated, LISTED)}, the network has {listed(class_names, LISTED)}. Give annotations with "
                "the names of the network's classes"
            )

    def notes(self, class_names: Sequence[str]) -> list[str]:
        """Sentences on classes that only the annotations or only the network have."""
        pairs = [
            (name, label)
            for part in self._parts
            for name, label in zip(part.annotations.class_names, part.labels.tolist(), strict=True)
        ]
        unknown = list(dict.fromkeys(name for name, label in pairs if label == NONE))
        known = {label for _, label in pairs}
        absent = [name for label, name in enumerate(class_names) if label not in known]
        notes = []
        if unknown:
            notes.append(
                f"{self._path} has classes that the network does not know ({listed(unknown, LISTED)}): their objects "
                "count as misses."
            )
        if absent:
            notes.append(
                f"{self._path} lacks classes of the network ({listed(absent, LISTED)}): their detections are not "
                "counted."
            )
        return notes

    def find(self, name: str, path: Path | None) -> ImageTruth | None:
        """The objects of an image; None if no image of the annotations, or more than one, can be meant.

        Args:
            name: of the image, as results have it.
            path: its file, which distinguishes images of the same name; None: it is not a file of its own.
        """
        if path is not None:
            same = (place for place in self._by_last_name.get(path.name, ()) if _is_same(*place, path))
            if (place := next(same, None)) is not None:  # in several parts it is the same image
                return place[0].truth(place[1], self._classes)
        for text in (name, *([] if path is None else [str(path.absolute())])):
            index = self._finder(text)
            if index != NONE:
                part, row = self._rows[index]
                return part.truth(row, self._classes)
        return None

    @cached_property
    def _rows(self) -> list[tuple[_Part, int]]:
        return [(part, row) for part in self._parts for row in range(len(part.annotations.file_names))]

    @cached_property
    def _by_last_name(self) -> dict[str, list[tuple[_Part, int]]]:
        found: dict[str, list[tuple[_Part, int]]] = {}
        for part, row in self._rows:
            found.setdefault(part.annotations.file_names[row].rpartition("/")[2], []).append((part, row))
        return found

    @cached_property
    def _finder(self) -> Callable[[str], int]:
        return image_finder(unique_rows([part.annotations.file_names[row] for part, row in self._rows]))


def _is_same(part: _Part, row: int, path: Path) -> bool:
    try:
        return real_path(part.folder / part.annotations.file_names[row]) == real_path(path)
    except (OSError, ValueError):  # a name that no file can have
        return False


def _read(path: Path) -> list[tuple[Annotations, Path]]:
    """The annotations of all parts of a data set, with the folders of their images."""
    options = ReadOptions(val_fraction=0.0)
    try:
        found = open_dataset(path, options)
    except DatasetError as error:
        if not path.is_file():
            raise
        try:  # its images may be on another computer
            return [(read_annotations(path), path.absolute().parent)]
        except DatasetError:
            raise error from None
    if found is None:
        if path.is_dir():
            raise DatasetError(why_unknown(path))
        raise DatasetError(f"{path} is no file or folder: --against is an annotation file or the folder of a data set")
    files = {split.annotations_path: split.images_dir for split in found.splits.values()}
    return [(read_annotations(file), folder) for file, folder in files.items() if file.is_file()]
