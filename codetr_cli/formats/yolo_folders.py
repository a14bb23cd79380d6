"""YOLO data sets without data.yaml: Darknet's .data file and lists, or folders of images and label files.

`classes`, `train`, `valid` and `names` of a .data file are relative to the folder where Darknet is started
(data/train.txt), so that files are found by the last parts of their paths. Without it, train.txt, valid.txt and the
like are used if they list images; else the folders: images belong to the split that a folder's name means
(train/images, images/val, obj_train_data), see `split_names`. Images count if their folder, or the one named images
above it, has any image with a label file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from codetr_cli.annotations.data_files import is_file
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.annotations.survey import Survey, folder_of
from codetr_cli.errors import DatasetError, listed
from codetr_cli.formats.folder_splits import by_split
from codetr_cli.formats.intermediate import SHOWN
from codetr_cli.formats.split_names import WORDS, split_of_folder, splits_of_folders
from codetr_cli.formats.yolo_files import LabelFiles
from codetr_cli.formats.yolo_lists import lists_images
from codetr_cli.formats.yolo_names import find_names, read_names
from codetr_cli.images.image_files import list_images

MAX_DATA_FILES = 20
DESCRIPTIONS = ("data.yaml", "data.yml", "classes.txt")
_SETTING = re.compile(r"(?m)^[ \t]*(classes|train|valid|val|test|names)[ \t]*=[ \t]*(\S.*?)[ \t\r]*$")


def describe_folders(
    survey: Survey, named: tuple[list[str], Path] | None, notes: list[str]
) -> tuple[list[str], Path, dict[str, Path], dict[str, list[Path]]]:
    """The class names, the file that has them, and the list of each split, or else the images of each.

    Args:
        survey: of the data set's folder.
        named: names that are known already, and their file.
        notes: to which what was found is added.

    Raises:
        DatasetError: there are no class names, or a file cannot be read.
    """
    data = find_data_file(survey)
    settings = read_settings(survey, data) if data else {}
    if named is None and "names" in settings:
        files = ImageNames(survey.with_suffix(".txt", ".names", ".labels"), strict=False)
        found = files.find(settings["names"], folder_of(data or ""))
        named = None if found is None else (read_names(survey.folder / found), survey.folder / found)
    named = named or find_names(survey)
    if named is None:
        above = next((path for name in DESCRIPTIONS if is_file(path := survey.folder.parent / name)), None)
        if above is not None:
            raise DatasetError(
                f"{survey.folder} is part of a YOLO data set, without its class names, which {above} may have. Give "
                f"the folder {above.parent}"
            )
        raise DatasetError(
            f"{survey.folder} is a YOLO data set without class names: write them into "
            f"{survey.folder / 'classes.txt'}, one a line in the order of their numbers, or add the original data.yaml"
        )
    lists = {split: survey.folder / name for split, name in _lists(survey, settings, data or "", notes).items()}
    return *named, lists, {} if lists else _folders(survey)


def find_data_file(survey: Survey) -> str | None:
    """Darknet's .data file, which has the names of lists and of the file with class names."""
    for name in survey.with_suffix(".data")[:MAX_DATA_FILES]:
        keys = {match[1] for match in _SETTING.finditer(survey.head(name))}
        if keys & {"train", "valid", "names"}:
            return name
    return None


def read_settings(survey: Survey, name: str) -> dict[str, str]:
    """The settings of a .data file."""
    return {match[1]: match[2] for match in _SETTING.finditer(survey.head(name))}


def _lists(survey: Survey, settings: dict[str, str], data: str, notes: list[str]) -> dict[str, str]:
    """The list of each split: those that a .data file names, else those with the names of splits."""
    texts = ImageNames(survey.with_suffix(".txt"), strict=False)
    keys = [key for key in ("train", "val", "valid", "test") if key in settings]
    named = {WORDS[key]: texts.find(settings[key], folder_of(data)) for key in keys}
    lists: dict[str, str] = {split: name for split, name in named.items() if name is not None}
    absent = [settings[key] for key in keys if WORDS[key] not in lists]
    if absent:
        notes.append(f"{data} names lists that are not in the folder: {listed(absent, SHOWN)}")
    if lists:
        return lists
    for name in survey.with_suffix(".txt"):
        stem = name.rpartition("/")[2][:-4].lower()
        if name.count("/") <= 1 and stem in WORDS and WORDS[stem] not in lists and lists_images(survey, name):
            lists[WORDS[stem]] = name
    return lists


def _folders(survey: Survey) -> dict[str, list[Path]]:
    """The images of each split by the names of folders, or all."""
    files = LabelFiles(survey)
    names = [*survey.images, *_behind_links(survey)]
    labelled = {_group(name) for name in names if files.find_name(name) is not None}
    if not labelled:
        files.match_by_stem(names)
        labelled = {_group(name) for name in names if files.find_name(name) is not None}
    used = [name for name in names if _group(name) in labelled or not labelled]
    folders = splits_of_folders(map(folder_of, used))
    splits, _ = by_split(used, {name: folders[folder_of(name)] for name in used})
    return {split: [survey.folder / name for name in part] for split, part in splits.items()}


def _behind_links(survey: Survey) -> Iterable[str]:
    """Images in linked folders that are called images, or as a split."""
    for link in survey.linked:
        if "images" in link.lower().split("/") or split_of_folder(link) is not None:
            for name in sorted(list_images(survey.folder / link)):
                yield f"{link}/{name}"


def _group(name: str) -> str:
    """The folder that an image is judged with: the last one called images, else its own."""
    parts = folder_of(name).split("/")
    at = next((index for index in reversed(range(len(parts))) if parts[index].lower() == "images"), len(parts))
    return "/".join(parts[: at + 1])
