"""Reads the detections that are compared, and the annotations that each was scored against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import CodetrError, DatasetError, listed
from codetr_cli.evaluation.detection_files import read_detection_file
from codetr_cli.evaluation.detection_records import has_masks, match_detections
from codetr_cli.files import real_path
from codetr_cli.formats.resolve import DataPaths, find_data
from codetr_cli.report.result_sources import ResultSource


@dataclass(frozen=True)
class ComparedInputs:
    """What is compared.

    Attributes:
        sides: of each source, each with its own annotations; those of the same file share the object.
        masks: whether all have masks, and all objects outlines.
        notes: on how files were read, sentences.
        warnings: on what is probably wrong with them, sentences.
    """

    sides: list[AnalysisInputs]
    masks: bool
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def recorded_annotations(sources: Sequence[ResultSource]) -> Path | None:
    """The annotations of the first source that records some; None: no source does.

    Raises:
        DatasetError: the file is gone.
    """
    for source in sources:
        if source.annotations is not None:
            if not source.annotations.is_file():
                raise DatasetError(
                    f"{source.given} was evaluated on {source.annotations}, which is not there: give the data with "
                    "--data or --ann"
                )
            return source.annotations
    return None


def read_sides(
    sources: Sequence[ResultSource],
    names: Sequence[str],
    paths: DataPaths,
    *,
    chosen: bool,
    masks: bool = True,
    done: Callable[[], object] = lambda: None,
) -> ComparedInputs:
    """Reads all detections.

    Args:
        sources: all with detections.
        names: of them, for messages.
        paths: of images and annotations.
        chosen: whether the user has chosen them, for all sources; otherwise they are of those that record none.
        masks: whether masks are compared, if all have them.
        done: is called after each source.

    Raises:
        DatasetError: a file cannot be read, or detections do not fit the annotations.
    """
    truths: dict[Path, Annotations] = {}
    sides, notes, warnings = list[AnalysisInputs](), list[str](), list[str]()
    for source, name in zip(sources, names, strict=True):
        own = paths if chosen or source.annotations is None else _paths_of(source.annotations, paths)
        place = real_path(own.annotations_path)
        if place not in truths:
            recorded_annotations([replace(source, annotations=own.annotations_path)])
            truths[place] = read_annotations(own.annotations_path, with_outlines=masks)
        truth = truths[place]
        assert source.detections is not None
        content = read_detection_file(source.detections)
        found = match_detections(content, truth, str(own.annotations_path), with_masks=masks and has_masks(content))
        del content  # gigabytes
        notes += [f"{note}." for note in found.notes]
        warnings += [f"{hint}." for hint in found.hints]
        images, note = _evaluated_images(source, truth, own.annotations_path)
        if note:
            warnings.append(f"{name}: {note}.")
        sides.append(AnalysisInputs.of(truth, found.table, own, images))
        done()
    masks = masks and all(side.detections.masks is not None for side in sides)
    if masks:
        lacking = [str(place) for place, truth in truths.items() if not _has_all_outlines(truth)]
        if lacking:
            notes.append(f"Masks are not compared: not all objects of {listed(lacking)} have an outline.")
        masks = not lacking
    return ComparedInputs(sides, masks, notes, warnings)


def pictured_paths(annotations: Path) -> DataPaths:
    """Annotations with the folder of their images, which is searched near them; if it is not found, one without any."""
    try:
        found = find_data(DataConfig(annotations=str(annotations)), None, "val", any_dataset=True, whole=True)
    except CodetrError:
        return DataPaths(Path(), annotations, NameRule.of(Path()))
    return replace(found, annotations_path=annotations, notes=(), warnings=())


def _paths_of(annotations: Path, paths: DataPaths) -> DataPaths:
    if real_path(annotations) == real_path(paths.annotations_path):
        return paths
    return replace(paths, annotations_path=annotations)


def _has_all_outlines(truth: Annotations) -> bool:
    return truth.outlines is not None and bool(truth.outlines.present.all())


def _evaluated_images(source: ResultSource, truth: Annotations, annotations: Path) -> tuple[NDArray[np.int64], str]:
    """The images that detections were made of, as far as it is recorded, and a note on what is not known.

    An evaluation processes the first images of a file, without those that cannot be read.
    """
    ids = np.asarray(truth.image_ids, np.int64)
    if source.images is None or (source.images == len(ids) and not source.skipped):
        return ids, ""
    if source.annotations is None or real_path(source.annotations) != real_path(annotations):
        if source.images == len(ids):
            return ids, ""
        return ids, (
            f"it was evaluated on {source.images:,} images of {source.annotations or 'another file'}, and which of the "
            f"{len(ids):,} of {annotations} these are is not recorded: all count, and objects without detections are "
            "missed"
        )
    first = min(source.images + len(source.skipped), len(ids))
    unread = (
        [_is_named(name, source.skipped) for name in truth.file_names[:first]] if source.skipped else [False] * first
    )
    return ids[:first][~np.array(unread, bool)], ""


def _is_named(name: str, skipped: Sequence[str]) -> bool:
    """Whether an image is one of the files that an evaluation could not read."""
    return any(path == name or path.replace("\\", "/").endswith(f"/{name}") for path in skipped)
