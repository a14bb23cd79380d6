"""Several data sets as one: a COCO file a split in the cache, classes merged by their names, ids unique.

Case, `_`, `-` and spaces do not tell names apart. Classes and images keep the ids that the first set gives them; those
of later sets that are taken get the next free ones, and every image says which set it is of and what its id was there.
Images of the sets take turns by their shares, so that the first ones of the whole are of all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from codetr_cli.data.annotations import Annotations, read_annotations
from codetr_cli.data.formats.cache import SUMMARY, cache_folder, filling_cache, write_json, write_whole
from codetr_cli.data.formats.cache_limits import hold, limit_cache
from codetr_cli.data.formats.intermediate import listed
from codetr_cli.errors import DatasetError

FORMAT = "1"
"""Changes whenever the same sets would give another file."""


@dataclass(frozen=True)
class Part:
    """One of the sets.

    Args:
        folder: as it was given.
        title: of its layout.
        splits: folder of the images and annotation file of "train", "val" and "test", as far as it has them.
        notes: sentences about how it was read.
    """

    folder: Path
    title: str
    splits: dict[str, tuple[Path, Path]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Merged:
    """The sets as one.

    Args:
        images_dir: what the names of images are relative to, or would be: they are absolute.
        tables: COCO file of each split that any of the sets has.
        notes: for each split, sentences about what came from where.
        warnings: for each split, sentences about what may go wrong.
    """

    images_dir: Path
    tables: dict[str, Path]
    notes: dict[str, list[str]]
    warnings: dict[str, list[str]]


def find_merged(parts: Sequence[Part]) -> Merged:
    """Merges data sets, or finds the earlier merging of the same files.

    Raises:
        DatasetError: broken annotations, a set with two classes of one name, or with validation classes that its
            training images do not have.
    """
    target = cache_folder() / f"merged-{_fingerprint(parts)}"
    hold(target)
    if not (target / SUMMARY).is_file():
        read = _read(parts)
        classes = _merge_classes(parts, read)
        with filling_cache():
            _write_tables(parts, read, classes, target)
        limit_cache(target.parent)
    summary = json.loads((target / SUMMARY).read_text(encoding="utf-8"))
    return Merged(
        images_dir=Path(summary["images_dir"]),
        tables={split: target / f"instances_{split}.json" for split in summary["names"]},
        notes=summary["notes"],
        warnings=summary["warnings"],
    )


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


@dataclass
class _Classes:
    """The classes of all sets.

    Args:
        names: by label, in the spelling of the first set that has the class.
        ids: by label, ascending.
        maps: for each set the label of each of its classes, by plain name.
        frequencies: LVIS's, as far as a set tells them.
    """

    names: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    maps: list[dict[str, int]] = field(default_factory=list)
    frequencies: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Share:
    """What one set gives to a split.

    Args:
        index: of the set.
        annotations: as read.
        images_dir: of its images.
        labels: (classes of the set,) int64, the label here of each label there.
        image_ids: (images,) int64, unique over all sets.
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
        """Objects of each merged class, (classes,) int64, crowds and ignored ones left out."""
        table = self.annotations
        counted = (table.iscrowd == 0) & ~table.ignore
        return np.bincount(self.labels[table.labels[counted]], minlength=classes)


def _read(parts: Sequence[Part]) -> dict[str, dict[int, Annotations]]:
    """The annotations of each split, by the number of the set."""
    return {
        split: {
            index: read_annotations(part.splits[split][1], with_outlines=True)
            for index, part in enumerate(parts)
            if split in part.splits
        }
        for split in ("train", "val", "test")
    }


def _write_tables(
    parts: Sequence[Part], read: dict[str, dict[int, Annotations]], classes: _Classes, target: Path
) -> None:
    """Writes the tables, and the summary last; several processes may do so at once."""
    target.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    shares: dict[str, list[_Share]] = {}
    for split, tables in read.items():
        if not tables:
            continue
        shares[split] = _shares(parts, split, tables, classes)
        write_whole(target / f"instances_{split}.json", partial(_write, shares[split], classes))
        names[split] = f"{' + '.join(str(parts[index].folder) for index in tables)} ({split}, merged)"
        notes[split] = _notes(parts, split, shares[split], classes)
        warnings[split] = [*_traps(parts, split, shares[split], classes), *_shared_files(shares, split)]
    folders = [str(images_dir.absolute()) for part in parts for images_dir, _ in part.splits.values()]
    summary = {
        "images_dir": common_folder(folders),
        "folders": [str(part.folder) for part in parts],
        "names": names,
        "notes": notes,
        "warnings": warnings,
    }
    write_json(target / SUMMARY, summary)


def common_folder(folders: Sequence[str]) -> str:
    """A folder that holds all of these, or the first where none does: on several drives of Windows."""
    try:
        return os.path.commonpath(folders)
    except ValueError:
        return folders[0]


def _merge_classes(parts: Sequence[Part], read: dict[str, dict[int, Annotations]]) -> _Classes:
    """Those of the training images where a set has any: what only its other images have could never be learned."""
    classes = _Classes()
    labels: dict[str, int] = {}
    for index, part in enumerate(parts):
        tables = [read[split][index] for split in ("train", "val", "test") if index in read[split]]
        own: dict[str, int] = {}
        for name, category_id in zip(tables[0].class_names, tables[0].category_ids, strict=True):
            key = _plain(name)
            if key in own:
                raise DatasetError(
                    f"{part.folder} has two categories called {name!r}, so that it is unclear which of them the other "
                    "data sets' are: rename one, or train on this data set alone"
                )
            if key not in labels:
                labels[key] = len(classes.names)
                classes.names.append(name)
                classes.ids.append(category_id if index == 0 else max(classes.ids, default=0) + 1)
            own[key] = labels[key]
        classes.maps.append(own)
        for table in tables:
            unknown = [name for name in table.class_names if _plain(name) not in own]
            if unknown:
                raise DatasetError(
                    f"{part.folder} has categories among its validation or test images that its training images do "
                    f"not have: {listed(unknown)}. List the same categories in all its annotation files"
                )
            for name, frequency in zip(table.class_names, table.frequencies, strict=False):
                classes.frequencies.setdefault(own[_plain(name)], frequency)
    return classes


def _plain(name: str) -> str:
    """A class name without what data sets spell differently."""
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


def _shares(parts: Sequence[Part], split: str, tables: dict[int, Annotations], classes: _Classes) -> list[_Share]:
    free = max((int(table.image_ids.max(initial=0)) for table in tables.values()), default=0) + 1
    taken = np.zeros(0, np.int64)
    shares = []
    for index, table in tables.items():
        ids = table.image_ids.copy()
        clash = np.isin(ids, taken)
        ids[clash] = np.arange(free, free + clash.sum())
        free += int(clash.sum())
        taken = np.concatenate([taken, ids])
        own = classes.maps[index]
        labels = np.array([own[_plain(name)] for name in table.class_names], np.int64)
        shares.append(_Share(index, table, parts[index].splits[split][0], labels, ids))
    return shares


# ------------------------------------------------------------------------------------------------------------- the file


def _write(shares: Sequence[_Share], classes: _Classes, file: TextIO) -> None:
    """One COCO table, an entry a line."""
    lvis = all(share.annotations.is_lvis for share in shares)
    categories: list[dict[str, Any]] = [
        {"id": category_id, "name": name} for category_id, name in zip(classes.ids, classes.names, strict=True)
    ]
    if lvis:
        for label, category in enumerate(categories):
            category["frequency"] = classes.frequencies.get(label, "f")
    file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
    _write_images(shares, classes, file, lvis=lvis)
    file.write('\n],\n"annotations": [')
    written = 0
    for share in shares:
        written = _write_objects(share, classes, file, written)
    file.write("\n]}\n")


def _write_images(shares: Sequence[_Share], classes: _Classes, file: TextIO, *, lvis: bool) -> None:
    turns = [(np.arange(len(share.image_ids)) + 0.5) / max(len(share.image_ids), 1) for share in shares]
    place = np.concatenate([np.full(len(turn), number) for number, turn in enumerate(turns)])
    rows = np.concatenate([np.arange(len(turn)) for turn in turns])
    files = [share.files() for share in shares]
    ids = np.array(classes.ids, np.int64)
    for count, at in enumerate(np.lexsort((place, np.concatenate(turns)))):
        number, row = int(place[at]), int(rows[at])
        share, table = shares[number], shares[number].annotations
        height, width = table.sizes[row].tolist()
        record: dict[str, Any] = {
            "id": int(share.image_ids[row]),
            "file_name": files[number][row],
            "height": height,
            "width": width,
            "dataset": share.index,
            "original_id": int(table.image_ids[row]),
        }
        if lvis:
            new = dict(zip(table.category_ids, ids[share.labels].tolist(), strict=True))
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                record[key] = [new[category_id] for category_id in getattr(table, key)[row] if category_id in new]
        file.write(f"{',' if count else ''}\n{json.dumps(record)}")


def _write_objects(share: _Share, classes: _Classes, file: TextIO, written: int) -> int:
    """Appends the objects of one set; takes and returns how many are written."""
    table, outlines = share.annotations, share.annotations.outlines
    category_ids = np.array(classes.ids, np.int64)[share.labels][table.labels].tolist()
    image_ids = share.image_ids[table.image_rows].tolist()
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


# ------------------------------------------------------------------------------------------------- what is said of it


def _notes(parts: Sequence[Part], split: str, shares: Sequence[_Share], classes: _Classes) -> list[str]:
    """What each set gives, and which classes it has alone."""
    notes = [note for part in parts for note in part.notes] if split == "train" else []
    images = sum(len(share.image_ids) for share in shares)
    notes.append(f"{split}: {images:,} images with {len(classes.names)} classes, merged from {len(shares)} data sets:")
    for share in shares:
        table, part = share.annotations, parts[share.index]
        here = set(classes.maps[share.index].values())
        others = (own for index, own in enumerate(classes.maps) if index != share.index)
        elsewhere = {label for own in others for label in own.values()}
        alone = [classes.names[label] for label in sorted(here - elsewhere)]
        notes.append(
            f"  {part.folder} ({part.title}): {len(table.image_ids):,} images, {len(table.labels):,} objects, "
            f"{len(here)} {'class' if len(here) == 1 else 'classes'}, "
            + (f"alone with {listed(alone)}" if alone else "all of them elsewhere too")
        )
    if split != "train":
        absent = [str(part.folder) for part in parts if split not in part.splits]
        if absent:
            plural = len(absent) > 1
            notes.append(
                f"  {' and '.join(absent)} {'have' if plural else 'has'} no {split} images and "
                f"{'are' if plural else 'is'} used for training only."
            )
    renumbered = sum(int((share.image_ids != share.annotations.image_ids).sum()) for share in shares)
    if renumbered:
        notes.append(
            f"  {renumbered:,} images got new ids, because the sets' ids overlap; `original_id` and `dataset` of the "
            "merged file say what they were."
        )
    return notes


def _traps(parts: Sequence[Part], split: str, shares: Sequence[_Share], classes: _Classes) -> list[str]:
    """Classes that one set annotates and another does not, in whose images they may be all the same."""
    counts = np.stack([share.counts(len(classes.names)) for share in shares])
    warnings = []
    for share, own in zip(shares, counts, strict=True):
        missing = np.flatnonzero((own == 0) & (counts.sum(axis=0) > 0))
        if not len(missing) or not len(share.image_ids):
            continue
        consequence = (
            "count as background there, so that training on them teaches not to find these classes"
            if split == "train"
            else "count as background there, so that finding them lowers the AP"
        )
        warnings.append(
            f"{parts[share.index].folder} annotates no object of {len(missing)} "
            f"{'classes' if len(missing) > 1 else 'class'} that other data sets of this {split} split have: "
            f"{listed([classes.names[label] for label in missing])}. Objects of "
            f"{'these classes' if len(missing) > 1 else 'this class'} in its {len(share.image_ids):,} images "
            f"{consequence}. Annotate them, or make sure there are none"
        )
    federated = [str(parts[share.index].folder) for share in shares if share.annotations.is_lvis]
    if federated and len(federated) < len(shares):
        warnings.append(
            f"{' and '.join(federated)} (LVIS) tells of each image only what was searched for; merged with other data "
            "sets its images are read as if everything were annotated, and scored by COCO's rules"
        )
    return warnings


def _shared_files(shares: dict[str, list[_Share]], split: str) -> list[str]:
    """Images that several sets have, or that are trained on by way of one and evaluated by way of another."""
    warnings = []
    files = [os.path.realpath(name) for share in shares[split] for name in share.files()]
    twice = len(files) - len(set(files))
    if twice:
        warnings.append(f"{twice:,} images of the {split} split are in several of the data sets and come several times")
    if split != "train" and "train" in shares:
        trained = {os.path.realpath(name) for share in shares["train"] for name in share.files()}
        both = len(trained.intersection(files))
        if both:
            warnings.append(
                f"{both:,} of the {len(set(files)):,} {split} images are among the training images, perhaps of another "
                "of the data sets: scores on them say little"
            )
    return warnings
