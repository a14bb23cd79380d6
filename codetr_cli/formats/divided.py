"""Reserves a part of the training images of a COCO file for validation, where a data set has no such part.

Both parts are written to the cache as files of COCO's tables with all keys of their entries; the key of the cache is
the state of the annotation file and of the folder of images.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codetr_cli.annotations.annotation_json import part_of_table, read_json_file
from codetr_cli.annotations.cache import cache_folder, find_conversion, finish_conversion, write_json, writing_to_cache
from codetr_cli.annotations.data_files import is_file
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.annotations.json_text import UnusableFileError, without_collector
from codetr_cli.annotations.layouts import SplitFiles
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.errors import DatasetError
from codetr_cli.files import real_path
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.reserved import Candidate, choose_validation, reserved_place
from codetr_cli.images.image_files import list_images

FORMAT = "3"
"""Changes whenever the same files would be divided otherwise."""
SHAPE = {"note": str}
"""The shape of a summary, see `cache.has_shape`."""


def reserve_validation(found: FoundDataset, options: ReadOptions) -> FoundDataset:
    """The data set with a validation part, if it has none and its training images are in a COCO file; else as it is.

    A file that cannot be used is not divided: whatever reads it reports what is wrong, with the right entry numbers.

    Raises:
        DatasetError: an image of each part has the same file.
        ResourceError: the cache cannot be written.
    """
    if "train" not in found.splits or "val" in found.splits or not options.val_fraction:
        return found
    if found.splits["train"].converted:
        return found
    train = found.splits["train"]
    target = _target(train, options)
    summary = find_conversion(target, SHAPE)
    if summary is None:
        try:
            annotations = read_annotations(train.annotations_path)
        except DatasetError:
            return found
        names = NameRule.of(found.folder, train.images_dir, allow_outside=options.allow_outside)
        chosen, note = _choose(annotations, train, names, options)
        _check_names(annotations.file_names, chosen, train, names)
        with writing_to_cache():
            summary = _divide(train, found, target, {int(annotations.image_ids[row]) for row in chosen}, note)
    if not summary["note"]:
        return found
    splits = {
        name: replace(
            train,
            name=name,
            annotations_path=target / f"instances_{name}.json",
            where=train.where if name == "train" else reserved_place(train.where),
            part_of=train.annotations_path,
        )
        for name in ("train", "val")
    }
    splits |= {name: split for name, split in found.splits.items() if name == "test"}  # images without annotations
    return replace(found, splits=splits, notes=[*found.notes, summary["note"]])


def _target(train: SplitFiles, options: ReadOptions) -> Path:
    """The folder in the cache."""
    path = real_path(train.annotations_path)
    digest = hashlib.sha256(f"{FORMAT}\0{options.val_fraction}\0{path}".encode(errors="surrogateescape"))
    for place in (path, train.images_dir):
        try:
            status = place.stat()
        except OSError:
            continue
        digest.update(f"\0{place}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    return cache_folder() / f"{path.stem}-{digest.hexdigest()[:16]}"


def _choose(annotations: Annotations, train: SplitFiles, names: NameRule, options: ReadOptions) -> tuple[set[int], str]:
    """The rows of the images to reserve, and a note."""
    classes: dict[int, set[str]] = defaultdict(set)
    for row, label in zip(annotations.image_rows.tolist(), annotations.labels.tolist(), strict=True):
        classes[row].add(annotations.class_names[label])
    outside = set(names.outside(annotations.file_names, train.images_dir)) if not names.allow_outside else set()
    nowhere = Path("/dev/null/outside")  # is not read, and similar to nothing
    folder = ImageFolder(train.images_dir, annotations.file_names, names)
    images = []
    for row, name in enumerate(annotations.file_names):
        if name not in outside and not is_file(train.images_dir / name):
            name = folder.find(name) or name
        path = nowhere / name if name in outside else train.images_dir / name
        images.append(Candidate(name, path, frozenset(classes[row])))
    return choose_validation(images, options.val_fraction)


def _check_names(file_names: Sequence[str], chosen: set[int], train: SplitFiles, names: NameRule) -> None:
    """Raises a DatasetError if a part would read a file that an image of the other part has or means, too."""
    missing = ImageFolder(train.images_dir, file_names, names).meant() if not _all_exist(file_names, train) else {}
    if not missing:
        return
    for is_val in (False, True):
        part = [name for row, name in enumerate(file_names) if (row in chosen) == is_val]
        for name, file in ImageFolder(train.images_dir, part, names).meant().items():
            if file is not None and missing.get(name) is None:
                raise DatasetError(
                    f"{train.where}: {file} in {train.images_dir} is the image of {name} and of another entry. Correct "
                    "the names in the file, or remove one of the entries"
                )


def _all_exist(file_names: Sequence[str], train: SplitFiles) -> bool:
    try:
        return set(file_names) <= set(list_images(train.images_dir))
    except DatasetError:
        return True


def _divide(train: SplitFiles, found: FoundDataset, target: Path, chosen: set[int], note: str) -> dict[str, Any]:
    """Writes the files of both parts, and the summary last; safe when several processes do it at once."""
    target.mkdir(parents=True, exist_ok=True)
    names = [f"instances_{name}.json" for name in ("train", "val")]
    with without_collector():
        try:
            table = read_json_file(train.annotations_path)
        except UnusableFileError as error:
            raise DatasetError(f"{train.annotations_path} has changed while it was read: {error.detail}") from error
        for name, is_val in zip(names, (False, True), strict=True):
            write_json(target / name, part_of_table(table, chosen, keep=is_val))
    summary = {
        "images_dir": str(train.images_dir),
        "folders": [str(found.folder)],
        "names": {"train": str(train.annotations_path), "val": reserved_place(str(train.annotations_path))},
        "note": note,
    }
    return finish_conversion(target, names, summary)
