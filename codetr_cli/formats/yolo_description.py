"""The description of a YOLO data set: its class names and the images of each split.

Both come from data.yaml (`names`, `path`, `train`, `val` and `test`, see `yolo_yaml`), or from what there is without
it, see `yolo_folders`. An entry is a folder or a list of images, relative to `path`, else to the description's own
folder; see `yolo_lists` for the lines of a list. An entry of another computer is the folder here whose path ends as it
does. Names that lead out of the data set to something that exists are errors unless that is allowed; a `path` that does
is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from codetr_cli.annotations.data_files import is_file, is_folder
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.survey import Survey
from codetr_cli.config.data_settings import YoloLabels
from codetr_cli.errors import MAX_ITEM, DatasetError, listed
from codetr_cli.formats.intermediate import MAX_LETTERS, SHOWN
from codetr_cli.formats.yolo_folders import describe_folders
from codetr_cli.formats.yolo_labels import TASKS, RowRule
from codetr_cli.formats.yolo_lists import ListReader, joined
from codetr_cli.formats.yolo_names import names_of
from codetr_cli.formats.yolo_yaml import SPLITS, Value, YamlFile, find_description
from codetr_cli.images.image_files import list_images

MAX_IMAGES = 2_000_000
"""Of a data set; Objects365 has 1.8 million."""
MAX_ENTRIES = 1_000
"""Folders and lists of one split."""


@dataclass(frozen=True)
class Description:
    """Names of the classes, the file with these names, the paths of the images of each split, notes, and more.

    Attributes:
        keypoints: (K, D) of kpt_shape.
        long_rows: what `task` says about rows of more than 5 columns.
    """

    class_names: list[str]
    names_file: Path
    images: dict[str, list[Path]]
    notes: list[str] = field(default_factory=list)
    keypoints: tuple[int, int] | None = None
    long_rows: YoloLabels | None = None

    def row_rule(self, chosen: YoloLabels | None) -> RowRule:
        """What rows of label files may have, with what the user chose."""
        keypoints = None if chosen else self.keypoints
        return RowRule(len(self.class_names), self.names_file, keypoints, chosen or self.long_rows)


def describe(survey: Survey, names: NameRule) -> Description:
    """The description of a folder.

    Raises:
        DatasetError: no class names, no images, missing images, names that lead out of the data set, or a file that
            cannot be read.
    """
    file = find_description(survey)
    reader = ListReader(survey, names)
    if file is not None and file.is_complete:
        return _describe_yaml(survey, names, file, reader)
    table, path = (file.table, file.path) if file is not None else ({}, survey.folder)
    notes: list[str] = []
    named = names_of(table, path, survey, notes) if file else None
    class_names, names_file, lists, images = describe_folders(survey, named, notes)
    if lists:
        places = {split: [place] for split, place in lists.items()}
        images = _collect(places, lambda place: reader.read(place, [str(survey.folder)]), survey.folder)
    if not any(images.values()):
        raise DatasetError(
            f"{survey.folder} is a YOLO data set without images: expected images/train/ beside labels/train/, or "
            "train/images/ beside train/labels/, or images and label files in one folder"
        )
    return _description(table, path, (class_names, names_file), images, [*notes, *reader.notes])


def _describe_yaml(survey: Survey, names: NameRule, file: YamlFile, reader: ListReader) -> Description:
    path, table = file.path, file.table
    notes: list[str] = []
    if file.others:
        notes.append(f"{path.name} describes the data set; {listed(file.others, SHOWN)}, which differ, are not used")
    class_names, names_file = names_of(table, path, survey, notes)
    bases, skipped = _bases(survey, names, file, notes)
    places: dict[str, list[Path]] = {}
    outside: list[str] = []
    for split in SPLITS:
        places[split] = []
        for entry in _entries(table.get(split, []), f"{path}: {split}"):
            place = _find(entry, bases, names)
            if place is None and not _exists_outside(entry, bases, names):
                place = _tail(entry, survey)
                if place is not None and not _is_upwards(entry):
                    notes.append(f"{path.name} names {entry:.{MAX_ITEM}} for {split}, which is {place} here")
            if place is not None:
                places[split].append(place)
            elif split == "test":
                notes.append(f"{path.name} names {entry:.{MAX_ITEM}} for test, which does not exist")
            elif skipped or not any(names.is_inside(entry, base) for base in bases):
                outside.append(entry)
            else:
                raise DatasetError(
                    f"{path}: {split}: {joined(bases[0], entry):.{MAX_ITEM}} does not exist. Fix the path or put "
                    "the images there"
                )
    if outside:
        names.refuse([*skipped, *outside], str(path))
    images = _collect(places, lambda place: reader.read(place, bases), path)
    if not any(images.values()):
        raise DatasetError(f"{path} lists no image: add `train: images/train` and `val: images/val`")
    return _description(table, path, (class_names, names_file), images, [*notes, *reader.notes])


def _description(
    table: dict[str, Value],
    path: Path,
    named: tuple[list[str], Path],
    images: dict[str, list[Path]],
    notes: list[str],
) -> Description:
    """With what the table of a file says about rows of label files, and the splits that have images."""
    found = {split: paths for split, paths in images.items() if paths}
    return Description(*named, found, notes, _keypoints(table, path), _long_rows(table))


def _bases(survey: Survey, names: NameRule, file: YamlFile, notes: list[str]) -> tuple[list[str], list[str]]:
    """The folders that entries may be relative to, and the `path` if it leads out of the data set; adds a note then."""
    given = file.table.get("path", "")
    bases = list(dict.fromkeys((str(file.path.parent), str(survey.folder))))
    if not isinstance(given, str) or not given:
        return bases, []
    if names.allow_outside or names.is_inside(given, bases[0]):
        return [joined(bases[0], given), joined(bases[0], given.replace("\\", "/")), *bases], []
    notes.append(
        f"{file.path.name} names the path {given:.{MAX_ITEM}}, which leads out of the data set's folder and is not used"
    )
    return bases, [given]


def _entries(value: Value, where: str) -> list[str]:
    """The folders and lists of a split; lists may be in lists."""
    entries: dict[str, None] = {}
    waiting: list[Value] = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            raise DatasetError(f"{where} must be a path or a list of paths")
        if isinstance(each, list):
            waiting.extend(reversed(each))
        elif each and each.lower() not in ("null", "~"):
            entries[each] = None
        if len(entries) + len(waiting) > MAX_ENTRIES:
            count = len(entries) + len(waiting)
            raise DatasetError(f"{where} has {count:,} entries, {MAX_ENTRIES:,} are possible: list the images")
    return list(entries)


def _keypoints(table: dict[str, Value], path: Path) -> tuple[int, int] | None:
    """The numbers of kpt_shape, if the description has it.

    Raises:
        DatasetError: it is not [K, 2] or [K, 3].
    """
    value = table.get("kpt_shape", "")
    if value in ("", [], "null", "~"):
        return None
    if isinstance(value, list) and len(value) == 2:
        numbers = [int(each) for each in value if isinstance(each, str) and each.isdecimal() and len(each) < 5]
        if len(numbers) == 2 and numbers[0] > 0 and numbers[1] in (2, 3):
            return numbers[0], numbers[1]
    raise DatasetError(
        f"{path}: kpt_shape must be [number of keypoints, 2 or 3], such as [17, 3], but is {value!s:.80}. Correct it"
    )


def _long_rows(table: dict[str, Value]) -> YoloLabels | None:
    task = table.get("task")
    return TASKS.get(task) if isinstance(task, str) else None


def _collect(
    places: dict[str, list[Path]], list_of: Callable[[Path], list[Path]], where: Path
) -> dict[str, list[Path]]:
    """The images of the folders, images and lists of each split, each once.

    Raises:
        DatasetError: there are more than `MAX_IMAGES`, counted in each folder or list.
    """
    left = MAX_IMAGES
    images: dict[str, list[Path]] = {}
    for split, given in places.items():
        found: dict[Path, None] = {}
        for place in _outermost(given):
            paths = _in_folder(place) if is_folder(place) else list_of(place)
            left -= len(paths)
            if left < 0:
                raise DatasetError(
                    f"{where} leads to more than {MAX_IMAGES:,} images, the limit, with those that several of its "
                    f"entries lead to. {place} is one too many: remove entries, or divide the data set"
                )
            found.update(dict.fromkeys(paths))
        images[split] = list(found)
    return images


def _outermost(places: list[Path]) -> list[Path]:
    """The folders and lists without folders that are in another one, by the places that links lead to."""
    real: dict[str, Path] = {}
    for place in places:
        real.setdefault(os.path.realpath(place), place)
    return [
        place
        for path, place in real.items()
        if not is_folder(place) or not any(str(parent) in real for parent in Path(path).parents)
    ]


def _find(entry: str, bases: list[str], names: NameRule) -> Path | None:
    """The folder or list of an entry."""
    for base in bases:
        if names.allow_outside or names.is_inside(entry, base):
            for spelling in dict.fromkeys((entry, entry.replace("\\", "/"))):
                place = joined(base, spelling)
                if is_file(place) or is_folder(place):
                    return Path(place)
    return None


def _exists_outside(entry: str, bases: list[str], names: NameRule) -> bool:
    """Whether an entry leads to something outside; a path of another computer leads nowhere."""
    places = (joined(base, entry) for base in bases if not names.is_inside(entry, base))
    return any(is_file(place) or is_folder(place) for place in places)


def _tail(entry: str, survey: Survey) -> Path | None:
    """The folder or list here whose path ends as an entry does, as many parts as possible."""
    if len(entry) > MAX_LETTERS:
        return None
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    places = (survey.folder / "/".join(parts[start:]) for start in range(len(parts)))
    return next((place for place in places if is_file(place) or is_folder(place)), None)


def _is_upwards(entry: str) -> bool:
    """Whether an entry starts with `../`, as exporters write it for the description's own folder."""
    return entry.startswith("../")


def _in_folder(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(list_images(folder))]
