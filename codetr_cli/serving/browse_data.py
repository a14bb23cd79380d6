"""A split of a data set, and detections on it, as hotcoco's objects: what its browser shows."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codetr_cli.analysis.data.splits import DataSplit
from codetr_cli.annotations.objects import Annotations
from codetr_cli.annotations.outlines import check_outline
from codetr_cli.annotations.run_length_codes import OutlineError
from codetr_cli.class_names import storable_class_name
from codetr_cli.errors import DatasetError, counted
from codetr_cli.inference.detections import DetectionTable

if TYPE_CHECKING:
    from hotcoco import COCO, COCOeval

LOOKALIKES = str.maketrans("<>&\"'`,\\", "\u2039\u203a\uff06\u201d\u2019\u2035\u201a\uff3c")
"""For class names: the app puts them into charts, whose texts may be markup, and splits lists of them at commas."""
BROKEN_LINKS = ("#", "?", "%")
"""In the name of a file, these end the address that the app makes of it, or are read as something else."""


@dataclass(frozen=True, eq=False)
class BrowseData:
    """What the app shows.

    Attributes:
        split: its name.
        coco: images, classes and objects.
        images: name of each image -> its file; no other file is shown.
        images_dir: folder that the names are relative to.
        detections: on these images.
        evaluation: of the detections.
        notes: on what is shown otherwise than elsewhere, sentences.
    """

    split: str
    coco: COCO
    images: Mapping[str, Path]
    images_dir: Path
    detections: COCO | None = None
    evaluation: COCOeval | None = None
    notes: Sequence[str] = ()


def browse_data(split: DataSplit, detections: DetectionTable | None = None) -> BrowseData:
    """The objects that the app shows.

    Args:
        split: read with outlines where they are shown.
        detections: with original ids; None: annotations alone.

    Raises:
        DatasetError: names lead out of the data set, an image is no regular file, or hotcoco takes something not.
    """
    found = split.annotations
    files = split.image_files()
    names = [str(file.relative_to(split.paths.images_dir)) if _is_below(file, split) else str(file) for file in files]
    _check_regular(files)
    notes = []
    broken = sum(any(sign in name for sign in BROKEN_LINKS) for name in names)
    if broken:
        notes.append(
            f"{counted(broken, 'image', 'have')} a name with #, ? or %, which the app shows small, but not large."
        )
    first = 1 - int(min(found.image_ids.min(initial=1), 1))  # hotcoco refuses negative ids
    first_class = 1 - min([*found.category_ids, 1])
    images = _image_records(found, names, first, first_class)
    categories = _class_records(found, first_class)
    import hotcoco

    try:
        coco = hotcoco.COCO.from_arrays(
            images,
            categories,
            found.image_ids[found.image_rows] + first,
            np.array(found.category_ids, np.int64)[found.labels] + first_class,
            found.boxes_xywh,
            area=found.area,
            iscrowd=found.iscrowd,
            segmentation=_polygons(found),
        )
        if detections is None:
            return BrowseData(split.name, coco, _shown(names, files), split.paths.images_dir, notes=notes)
        table = np.column_stack(
            [
                detections.image_ids + first,
                detections.boxes_xywh,
                detections.scores,
                detections.category_ids + first_class,
            ]
        )
        results = coco.load_res(table.astype(np.float64))
        evaluation = hotcoco.COCOeval(coco, results, "bbox", lvis_style=found.is_lvis)
        evaluation.evaluate()
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{split.paths.annotations_path}: hotcoco cannot show it: {error}") from error
    return BrowseData(split.name, coco, _shown(names, files), split.paths.images_dir, results, evaluation, notes=notes)


def _image_records(found: Annotations, names: Sequence[str], first: int, first_class: int) -> list[dict[str, Any]]:
    """COCO's records of images, with what LVIS's rules need; `first` and `first_class` are added to ids."""
    records: list[dict[str, Any]] = [
        {"id": image_id, "file_name": name, "height": height, "width": width}
        for image_id, name, (height, width) in zip(
            (found.image_ids + first).tolist(), names, found.sizes.tolist(), strict=True
        )
    ]
    if found.is_lvis:
        for record, absent, partly in zip(
            records, found.neg_category_ids, found.not_exhaustive_category_ids, strict=True
        ):
            record["neg_category_ids"] = [each + first_class for each in absent]
            record["not_exhaustive_category_ids"] = [each + first_class for each in partly]
    return records


def _class_records(found: Annotations, first_class: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [
        {"id": category_id + first_class, "name": shown_class(name)}
        for category_id, name in zip(found.category_ids, found.class_names, strict=True)
    ]
    if found.is_lvis:
        for record, frequency in zip(records, found.frequencies, strict=True):
            record["frequency"] = frequency
    return records


def shown_class(name: str) -> str:
    """A class name without characters that are markup or separators, which look alike instead."""
    return storable_class_name(name).translate(LOOKALIKES)


def _shown(names: Sequence[str], files: Sequence[Path]) -> dict[str, Path]:
    return dict(zip(names, files, strict=True))


def _is_below(file: Path, split: DataSplit) -> bool:
    return file.is_relative_to(split.paths.images_dir)


def _check_regular(files: Sequence[Path]) -> None:
    """Raises a DatasetError for an image that is a pipe, a device or a folder; one that is not there is fine."""
    for file in files:
        try:
            mode = file.stat().st_mode
        except (OSError, ValueError):
            continue
        if not stat.S_ISREG(mode):
            raise DatasetError(f"{file} is no regular file: an image is one. Remove it from the annotations")


def _polygons(found: Annotations) -> list[Any] | None:
    """The polygons of each object that has any; None if outlines were not read, or none is a polygon."""
    outlines = found.outlines
    if outlines is None:
        return None
    polygons: list[Any] = []
    for row in range(len(found.labels)):
        if outlines.is_run_length_code(row):  # the app draws polygons only
            polygons.append([])
            continue
        height, width = found.sizes[found.image_rows[row]].tolist()
        try:
            outline = outlines.parse(row)
            check_outline(outline, (height, width))
        except OutlineError:
            outline = []
        polygons.append(outline)
    return polygons if any(polygons) else None
