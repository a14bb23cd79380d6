"""The annotated objects of the images that are predicted, from a data set in any layout.

Images and classes are matched by their names, by the rule of `codetr eval --detections`.
Shape letters: G annotated objects of an image, K classes of the network.
"""

from __future__ import annotations

import filecmp
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_cli.annotations.layouts import SplitFiles
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.annotations.row_finders import NONE, class_finder, image_finder, unique_rows
from codetr_cli.annotations.survey import stem_of
from codetr_cli.errors import DatasetError, listed
from codetr_cli.files import real_path
from codetr_cli.formats.detect import why_unknown
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import DESCRIPTIONS, open_dataset
from codetr_cli.prediction.sources.input_list import InputImage

LISTED = 5
_Place = tuple[int, int]
"""An annotated image: the numbers of its part and of its row there."""
_SAME_FILE, _SAME_NAME, _LIKE_NAME = range(3)
"""How surely an annotated image is the predicted one, most surely first."""


@dataclass(frozen=True)
class _Claim:
    """The surest rank with which predicted images mean an annotated one, and how many of them have it."""

    rank: int
    count: int


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
class AnnotatedImages:
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
        images: all that are predicted: no two of them may mean one annotated image by their names.

    Raises:
        DatasetError: there are no annotations, they are broken, or have no class of the network.
    """

    def __init__(self, path: Path, class_names: Sequence[str], images: Sequence[InputImage] = ()) -> None:
        self._path, self._classes, self._images = path, len(class_names), images
        find = class_finder(unique_rows(class_names))
        self._parts = [
            AnnotatedImages(annotations, folder, np.array([find(name) for name in annotations.class_names], np.int64))
            for annotations, folder in _read(path)
        ]
        self._check_classes(class_names)
        self._real_files: dict[str, dict[str, _Place | None]] = {}
        self._claims: dict[str, dict[_Place, _Claim]] = {}

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

    def find(self, image: InputImage) -> ImageTruth | None:
        """The objects of an image; None if no image of the annotations, or more than one, can be meant.

        That with the same file is meant, else that with its name; but by names, several predicted images mean none,
        unless only one of them has just this name.
        """
        found = self._match(image)
        if found is None:
            return None
        place, rank = found
        others = self._claims_like(image).get(place)
        if others is not None and (rank > others.rank or (rank == others.rank != _SAME_FILE and others.count > 1)):
            return None
        part, row = place
        return self._parts[part].truth(row, self._classes)

    def _match(self, image: InputImage) -> tuple[_Place, int] | None:
        """The annotated image that is meant by an image alone, and how surely: smaller numbers are surer."""
        if image.is_file and (place := self._by_file(image.path)) is not None:
            return place, _SAME_FILE
        path = str(image.path.absolute())  # first: a name lacks the folders above the given one, or has a number
        for text in (path, image.name) if image.is_file else (image.name,):
            index = self._finder(text)
            if index == NONE:
                continue
            place = self._rows[index]
            name = self._name(place)
            if image.is_file and text != path and not self._may_be_copy(image, place):
                continue
            is_same = name == image.name or (_is_renamed(image) and name.rpartition("/")[2] == image.path.name)
            return place, _SAME_NAME if is_same else _LIKE_NAME
        return None

    def _may_be_copy(self, image: InputImage, place: _Place) -> bool:
        """Whether a file may be the annotated image of its name, although the folders that it is in contradict this."""
        name = self._name(place)
        if _is_renamed(image):
            return False
        original = self._parts[place[0]].folder / name
        try:
            return name == image.name or not original.exists() or filecmp.cmp(original, image.path, shallow=False)
        except (OSError, ValueError):
            return False

    def _by_file(self, path: Path) -> _Place | None:
        """The annotated image that is this file; None if there is none, or several in one part."""
        if path.name not in self._real_files:
            files: dict[str, _Place | None] = {}
            for place in self._by_last_name.get(path.name, ()):
                file = _real_file(self._parts[place[0]].folder / self._name(place))
                if file is not None:  # in several parts it is the same image
                    known = files.setdefault(file, place)
                    files[file] = None if known is None or (known[0] == place[0] and known != place) else known
            self._real_files[path.name] = files
        file = _real_file(path)
        return None if file is None else self._real_files[path.name].get(file)

    def _claims_like(self, image: InputImage) -> dict[_Place, _Claim]:
        """Which annotated images are meant by the predicted ones with the last name of an image, if it is not alone."""
        key = _last_stem(image)
        numbers = self._alike.get(key, ())
        if len(numbers) > 1 and key not in self._claims:
            claims: dict[_Place, _Claim] = {}
            for other in map(self._images.__getitem__, numbers):
                found = self._match(other)
                if found is not None:
                    place, rank = found
                    best = claims.get(place)
                    if best is None or rank < best.rank:
                        claims[place] = _Claim(rank, 1)
                    elif rank == best.rank:
                        claims[place] = _Claim(rank, best.count + 1)
            self._claims[key] = claims
        return self._claims.get(key, {})

    @cached_property
    def _alike(self) -> dict[str, list[int]]:
        """The numbers of the predicted images whose last names are the same."""
        counts = Counter(_last_stem(image) for image in self._images)
        found: dict[str, list[int]] = {key: [] for key, count in counts.items() if count > 1}
        for number, image in enumerate(self._images if found else ()):
            if (numbers := found.get(_last_stem(image))) is not None:
                numbers.append(number)
        return found

    def _name(self, place: _Place) -> str:
        name: str = self._parts[place[0]].annotations.file_names[place[1]]
        return name

    @cached_property
    def _rows(self) -> list[_Place]:
        return [(n, row) for n, part in enumerate(self._parts) for row in range(len(part.annotations.file_names))]

    @cached_property
    def _by_last_name(self) -> dict[str, list[_Place]]:
        found: dict[str, list[_Place]] = {}
        for place in self._rows:
            found.setdefault(self._name(place).rpartition("/")[2], []).append(place)
        return found

    @cached_property
    def _finder(self) -> Callable[[str], int]:
        return image_finder(unique_rows([self._name(place) for place in self._rows]))


def _real_file(path: Path) -> str | None:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _is_renamed(image: InputImage) -> bool:
    """Whether the name of a file has got a number, because another input has its name."""
    return image.is_file and image.name.rpartition("/")[2] != image.path.name


def _last_stem(image: InputImage) -> str:
    """What inputs have in common that may be one annotated image: the last name without suffix, in any form."""
    name = image.path.name if image.is_file else image.member or image.name
    return unicodedata.normalize("NFC", stem_of(name.rpartition("/")[2])).casefold()


def annotation_state(path: Path) -> list[list[Any]]:
    """Values that change with the annotations of `GroundTruth`, of plain types; empty if there are none."""
    if path.is_file() and path.suffix.lower() not in DESCRIPTIONS:
        return [_file_state(path)]
    try:
        splits = _splits(path)
    except DatasetError:
        return []
    # The folder of converted annotations is named after the content of their files; it may be made again.
    return [
        [file.parent.name, file.name] if split.converted else [str(real_path(file)), *_file_state(file)]
        for split in splits
        for file in [split.annotations_path]
    ]


def _file_state(file: Path) -> list[Any]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _read(path: Path) -> list[tuple[Annotations, Path]]:
    """The annotations of all parts of a data set, with the folders of their images."""
    try:
        splits = _splits(path)
    except DatasetError as error:
        if not path.is_file():
            raise
        try:  # its images may be on another computer
            return [(read_annotations(path), path.absolute().parent)]
        except DatasetError:
            raise error from None
    return [(read_annotations(split.annotations_path), split.images_dir) for split in splits]


def _splits(path: Path) -> list[SplitFiles]:
    """The parts of a data set that have annotations, each file once."""
    found = open_dataset(path, ReadOptions(val_fraction=0.0))
    if found is None:
        if path.is_dir():
            raise DatasetError(why_unknown(path))
        raise DatasetError(f"{path} is no file or folder: --against is an annotation file or the folder of a data set")
    files = {split.annotations_path: split for split in found.splits.values()}
    return [split for file, split in files.items() if file.is_file()]
