"""Several data sets as one: a COCO file a split in the cache, classes merged by their names, ids unique."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.annotations.cache import cache_folder, find_conversion, finish_conversion, writing_to_cache
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.errors import listed
from codetr_cli.formats.intermediate import SHOWN
from codetr_cli.formats.merged_table import MergedClasses, Part, PartSplit, merge_classes, part_splits, write_table

FORMAT = "2"
"""Changes whenever the same data sets would give a different file."""
SHAPE = {"notes": {str: [str]}, "warnings": {str: [str]}}
"""The shape of a summary, see `cache.has_shape`."""


def find_merged(parts: Sequence[Part]) -> tuple[Path, dict[str, Any]]:
    """Merges data sets, or finds the merged files of the same annotations in the cache.

    Returns:
        the folder of a COCO file for each split that any of the data sets has, and their summary: a common folder of
        all images, whose names are absolute, and notes and warnings for each split.

    Raises:
        DatasetError: broken annotations, two classes of one data set with the same name, or validation classes that
            the training images of the data set do not have.
    """
    target = cache_folder() / f"merged-{_fingerprint(parts)}"
    summary = find_conversion(target, SHAPE)
    if summary is None:
        annotations = _read(parts)
        classes = merge_classes(parts, annotations)
        with writing_to_cache():
            summary = _write_tables(parts, annotations, classes, target)
    return target, summary


def _fingerprint(parts: Sequence[Part]) -> str:
    digest = hashlib.sha256(FORMAT.encode())
    for part in parts:
        digest.update(f"\0\0{part.folder}".encode(errors="surrogateescape"))
        for split, (images_dir, path) in part.splits.items():
            stat = path.stat()
            place = f"{images_dir.absolute()}\0{path.absolute()}"
            state = f"\0{split}\0{place}\0{stat.st_size}\0{stat.st_mtime_ns}"
            digest.update(state.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _read(parts: Sequence[Part]) -> dict[str, dict[int, Annotations]]:
    """The annotations of each split, by the index of the data set."""
    return {
        split: {
            index: read_annotations(part.splits[split][1], with_outlines=True)
            for index, part in enumerate(parts)
            if split in part.splits
        }
        for split in ("train", "val", "test")
    }


def _write_tables(
    parts: Sequence[Part], annotations: dict[str, dict[int, Annotations]], classes: MergedClasses, target: Path
) -> dict[str, Any]:
    """Writes the COCO files, and the summary last; safe when several processes do it at once."""
    target.mkdir(parents=True, exist_ok=True)
    splits = {split: part_splits(parts, split, tables, classes) for split, tables in annotations.items() if tables}
    for split, taken in splits.items():
        write_table(target / f"instances_{split}.json", taken, classes)
    folders = [str(images_dir.absolute()) for part in parts for images_dir, _ in part.splits.values()]
    summary = {
        "images_dir": common_folder(folders),
        "folders": [str(part.folder) for part in parts],
        "names": {
            split: f"{' + '.join(str(parts[entry.index].folder) for entry in taken)} ({split}, merged)"
            for split, taken in splits.items()
        },
        "notes": {split: _notes(parts, split, taken, classes) for split, taken in splits.items()},
        "warnings": {
            split: [*_missing_classes(parts, split, taken, classes), *_shared_files(splits, split)]
            for split, taken in splits.items()
        },
    }
    return finish_conversion(target, [f"instances_{split}.json" for split in splits], summary)


def common_folder(folders: Sequence[str]) -> str:
    """A folder that contains all of these, or the first where none does: on several drives of Windows."""
    try:
        return os.path.commonpath(folders)
    except ValueError:
        return folders[0]


def _notes(parts: Sequence[Part], split: str, taken: Sequence[PartSplit], classes: MergedClasses) -> list[str]:
    """The images of each data set, and the classes that it alone has."""
    notes = [note for part in parts for note in part.notes] if split == "train" else []
    images = sum(len(part.image_ids) for part in taken)
    notes.append(f"{split}: {images:,} images with {len(classes.names)} classes, merged from {len(taken)} data sets:")
    for entry in taken:
        table, part = entry.annotations, parts[entry.index]
        here = set(classes.label_maps[entry.index].values())
        others = (labels for index, labels in enumerate(classes.label_maps) if index != entry.index)
        elsewhere = {label for labels in others for label in labels.values()}
        alone = [classes.names[label] for label in sorted(here - elsewhere)]
        notes.append(
            f"  {part.folder} ({part.title}): {len(table.image_ids):,} images, {len(table.labels):,} objects, "
            f"{len(here)} {'class' if len(here) == 1 else 'classes'}, "
            + (f"only here: {listed(alone, SHOWN)}" if alone else "all of them in other data sets too")
        )
    if split != "train":
        absent = [str(part.folder) for part in parts if split not in part.splits]
        if absent:
            plural = len(absent) > 1
            notes.append(
                f"  {' and '.join(absent)} {'have' if plural else 'has'} no {split} images and "
                f"{'are' if plural else 'is'} used for training only."
            )
    renumbered = sum(int((entry.image_ids != entry.annotations.image_ids).sum()) for entry in taken)
    if renumbered:
        notes.append(
            f"  {renumbered:,} images got new ids, because the data sets' ids overlap; `original_id` and `dataset` in "
            "the merged file give the original ones."
        )
    return notes


def _missing_classes(
    parts: Sequence[Part], split: str, taken: Sequence[PartSplit], classes: MergedClasses
) -> list[str]:
    """Warnings about classes that one data set annotates and another does not, although its images may show them."""
    counts = np.stack([entry.counts(len(classes.names)) for entry in taken])
    warnings = []
    for entry, own in zip(taken, counts, strict=True):
        missing = np.flatnonzero((own == 0) & (counts.sum(axis=0) > 0))
        if not len(missing) or not len(entry.image_ids):
            continue
        consequence = (
            "count as background there, so that training on them teaches not to find these classes"
            if split == "train"
            else "count as background there, so that finding them lowers the AP"
        )
        warnings.append(
            f"{parts[entry.index].folder} annotates no object of {len(missing)} "
            f"{'classes' if len(missing) > 1 else 'class'} that other data sets of this {split} split have: "
            f"{listed([classes.names[label] for label in missing], SHOWN)}. Objects of "
            f"{'these classes' if len(missing) > 1 else 'this class'} in its {len(entry.image_ids):,} images "
            f"{consequence}. Annotate them, or make sure there are none"
        )
    federated = [str(parts[entry.index].folder) for entry in taken if entry.annotations.is_lvis]
    if federated and len(federated) < len(taken):
        warnings.append(
            f"{' and '.join(federated)} (LVIS) annotates in each image only some classes; merged with other data sets "
            "its images are treated as fully annotated, and scored by COCO's rules"
        )
    return warnings


def _shared_files(splits: dict[str, list[PartSplit]], split: str) -> list[str]:
    """Warnings about images that several data sets have, or that are in both training and evaluation."""
    warnings = []
    files = [os.path.realpath(name) for entry in splits[split] for name in entry.files()]
    twice = len(files) - len(set(files))
    if twice:
        warnings.append(f"{twice:,} images of the {split} split are in several of the data sets and occur repeatedly")
    if split != "train" and "train" in splits:
        trained = {os.path.realpath(name) for entry in splits["train"] for name in entry.files()}
        both = len(trained.intersection(files))
        if both:
            warnings.append(
                f"{both:,} of the {len(set(files)):,} {split} images are also training images, perhaps of another data "
                "set: their scores are not representative"
            )
    return warnings
