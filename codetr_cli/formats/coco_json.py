"""JSON files of COCO's tables under any names, used where they are.

A file is recognised by its content; its part of the data set by the words of its name or of its folders; its images by
where the file names in it exist. Exporters that are known by their names are mentioned in messages, nothing more.

Roboflow        train|valid|test/_annotations.coco.json, images beside it
CVAT            annotations/instances_default.json, images/default/ or images/
FiftyOne        labels.json, data/; also one such pair a part
Label Studio    result.json, images/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.layouts import SplitFiles, published_splits
from codetr_cli.annotations.survey import Survey, folder_of, stem_of
from codetr_cli.errors import DatasetError, listed
from codetr_cli.files import real_path
from codetr_cli.formats.adapted import adapt
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.image_places import ImagePlace, ListedImages
from codetr_cli.formats.intermediate import SHOWN
from codetr_cli.formats.json_sample import JsonSample, has_tables, may_continue, read_start, sample_json
from codetr_cli.formats.split_names import split_of, splits_of_files

KEY = "coco"
TITLE = "COCO"
MAX_DEPTH = 2
"""Folders below the data set's in which annotation files are looked for."""
MAX_TRIES = 100
FEW_FILES = 20
"""Up to so many JSON files, each is looked into; of more, only those that do not belong to one image."""
SPLITS = ("train", "val", "test")
PARTLY = {
    "captions": "captions, no boxes",
    "panoptic": "panoptic segments",
    "labels": "labels of whole images, no boxes",
}
"""Kinds of annotation files that are not read -> what they have."""


def evidence(survey: Survey) -> str:
    """The file that shows the layout; empty if there is none."""
    return next(iter(annotation_files(survey)), "")


def annotation_files(survey: Survey) -> list[str]:
    """The JSON files with COCO's tables, the top ones first; none that are in a published layout."""
    if published_splits(survey.folder):
        return []
    names = [name for name in survey.with_suffix(".json") if name.count("/") <= MAX_DEPTH]
    if len(names) > FEW_FILES:
        pictured = {stem_of(name).rpartition("/")[2] for name in survey.images}
        names = [name for name in names if stem_of(name).rpartition("/")[2] not in pictured]
    tops = {name.partition("/")[0] for name in names if "/" in name}
    published = {top for top in tops if published_splits(survey.folder / top)}  # each is a data set by itself
    names = [name for name in names if name.partition("/")[0] not in published]
    names.sort(key=lambda name: (name.count("/"), name))
    return [name for name in names[:MAX_TRIES] if is_annotations(survey.folder / name, survey.head(name))]


def is_annotations(path: Path, start: str) -> bool:
    """Whether a JSON file has COCO's tables, by its start; more of the file is read where that may decide."""
    return has_tables(start) or (may_continue(start) and has_tables(read_start(path)))


def open_json(survey: Survey, names: NameRule, options: ReadOptions) -> FoundDataset:
    """The data set.

    Args:
        survey: of its folder.
        names: what the names of images may lead to.
        options: how it is read.

    Raises:
        DatasetError: a file cannot be read, files have no boxes, files cannot be assigned to training, validation and
            test, or images are missing or in several folders alike.
    """
    files = annotation_files(survey)
    found = find_files(survey, files)
    if found is None:
        raise DatasetError(
            f"{survey.folder}: none of the images that {files[0]} lists is there. Put the images there, or "
            f"give their folder: --ann {survey.folder / files[0]} --images DIR"
        )
    return found


def find_files(survey: Survey, names: Sequence[str]) -> FoundDataset | None:
    """As `open_json`, of some annotation files; None if the images of none are there."""
    notes: list[str] = []
    samples = {name: sample_of(survey.folder / name) for name in names}
    files = _assigned(survey, _with_boxes(survey, samples, notes), notes)
    images = ListedImages(survey, {name for file in files.values() for name in samples[file].names})
    splits: dict[str, SplitFiles] = {}
    respelled: list[str] = []
    for split in SPLITS:
        if split not in files:
            continue
        file = files[split]
        place = _images_of(survey, images, file, samples[file], split)
        if place is None:
            notes.append(f"{file} is not used, because none of its images is there, e.g. {samples[file].names[0]}")
            continue
        folder = place.folder
        splits[split] = SplitFiles(split, survey.folder / folder, survey.folder / file, file)
        respelled += [split] if place.is_respelled else []
        if folder != folder_of(file):
            notes.append(f"the images of {file} are in {folder}/" if folder else f"the images of {file} are beside it")
    if not splits:
        return None
    used = {split: samples[files[split]] for split in splits}
    splits, val_is_test = _for_evaluation(splits, used, notes)
    if val_is_test:
        respelled = ["val" if split == "test" else split for split in respelled]
    root = real_path(survey.folder)
    splits, changes = adapt(root, splits, [sample.categories for sample in used.values()], respelled)
    return FoundDataset(
        title=TITLE,
        evidence=f"{(first := files[next(iter(used))])}{_exporter(first, splits)}",
        folder=root,
        splits=_with_shared(splits),
        notes=[*notes, *changes],
        val_is_test=val_is_test,
    )


def sample_of(path: Path) -> JsonSample:
    """Parts of an annotation file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return sample_json(path)
    except OSError as error:
        raise DatasetError(f"cannot read annotations {path}: {error.strerror or error}. Check the file") from error


# --------------------------------------------------------------------------------------------------------- which files


def _with_boxes(survey: Survey, samples: Mapping[str, JsonSample], notes: list[str]) -> dict[str, JsonSample]:
    """The files whose annotations are of use for detection; those that are not are noted."""
    used = {name: sample for name, sample in samples.items() if sample.kind not in PARTLY}
    splits = splits_of_files(samples)
    boxes = {(folder_of(name), splits[name]) for name, sample in used.items() if sample.kind == "boxes"}
    for name, sample in list(used.items()):
        if sample.kind != "boxes" and (folder_of(name), splits[name]) in boxes:
            del used[name]
            what = "keypoints" if sample.kind == "keypoints" else "images without annotations"
            notes.append(f"{name} ({what}) is not used, because another file has boxes")
    unread = [f"{name} ({PARTLY[sample.kind]})" for name, sample in samples.items() if sample.kind in PARTLY]
    if not used:
        raise DatasetError(
            f"{survey.folder} has annotations, but no boxes: {listed(unread, SHOWN)}. Export boxes in COCO's instances "
            "format"
        )
    notes += [f"{text} is not used" for text in unread]
    return used


def _assigned(survey: Survey, samples: Mapping[str, JsonSample], notes: list[str]) -> dict[str, str]:
    """The file of each part of the data set: "train", "val" and "test".

    A file for both training and validation counts only where there is no other, and so does one without a part in its
    name, unless only training has none.
    """
    by_split: dict[str | None, list[str]] = {}
    for name, split in splits_of_files(samples).items():
        by_split.setdefault(split, []).append(name)
    unnamed = by_split.pop(None, [])
    both = by_split.pop("trainval", [])
    if both and ("train" in by_split or "val" not in by_split):
        unnamed = unnamed if "train" in by_split else [*unnamed, *both]
        notes += [f"{name} is not used, because other files have its parts" for name in both if name not in unnamed]
    elif both:
        _ask(survey, [*both, *by_split["val"]], "that share images, by their names")
    for part, files in by_split.items():
        if len(files) > 1:
            _ask(survey, files, f"for {part}")
    if "train" not in by_split and unnamed:
        if len(unnamed) > 1:
            _ask(survey, unnamed, "whose names mean neither training, validation nor test")
        by_split["train"] = unnamed
    elif unnamed:
        notes += [f"{name} is not used, because other files are for training" for name in unnamed]
    return {str(split): files[0] for split, files in by_split.items()}


def _ask(survey: Survey, files: list[str], what: str) -> NoReturn:
    tops = list(dict.fromkeys(name.partition("/")[0] for name in files))
    several = ""
    if len(tops) == len(files) and all("/" in name for name in files):
        folders = " ".join(f"--data {survey.folder / top}" for top in tops[:SHOWN])
        several = f", or read them as several data sets: {folders}"
    raise DatasetError(
        f"{survey.folder} has {len(files)} annotation files {what}: {listed(files, SHOWN)}. Choose one with --ann "
        f"FILE, or with data.train_annotations and data.val_annotations{several}"
    )


# -------------------------------------------------------------------------------------------------------- their images


def _images_of(survey: Survey, images: ListedImages, file: str, sample: JsonSample, split: str) -> ImagePlace | None:
    """The folder with the images of a file; None if they are not there.

    Raises:
        DatasetError: several folders fit equally.
    """
    if not sample.names:
        return ImagePlace(folder_of(file), 0, 0)
    place = images.place_of(file, sample.names, split if split_of(file) else None)
    if place is None:
        return None
    if place.others:
        folders = listed([f"{folder or '.'}/" for folder in (place.folder, *place.others)], SHOWN)
        raise DatasetError(
            f"{survey.folder}: the images of {file} are in several folders alike: {folders}. Choose one with "
            f"--ann {survey.folder / file} --images DIR"
        )
    return place


def _for_evaluation(
    splits: dict[str, SplitFiles], samples: Mapping[str, JsonSample], notes: list[str]
) -> tuple[dict[str, SplitFiles], bool]:
    """The splits with those for validation; the test images where there are none, if they have annotations."""
    if "val" in splits or "test" not in splits or samples["test"].kind == "images":
        return splits, False
    notes.append("there are no annotations for validation: the test images are used for evaluation")
    test = replace(splits["test"], name="val")
    return {**{name: split for name, split in splits.items() if name != "test"}, "val": test}, True


def _with_shared(splits: Mapping[str, SplitFiles]) -> dict[str, SplitFiles]:
    """The splits with a mark where a folder also has images of another one."""

    def has_others(split: SplitFiles) -> bool:
        return any(
            each.images_dir.is_relative_to(split.images_dir) for each in splits.values() if each.name != split.name
        )

    return {name: replace(split, shared=has_others(split)) for name, split in splits.items()}


def _exporter(file: str, splits: Mapping[str, SplitFiles]) -> str:
    """Which program writes such files, a phrase; empty if it is not known."""
    base = file.rpartition("/")[2]
    folders: Iterable[str] = [split.images_dir.name for split in splits.values()]
    if base == "_annotations.coco.json":
        return ", as Roboflow exports it"
    if base == "instances_default.json":
        return ", as CVAT exports it"
    if base == "labels.json" and "data" in folders:
        return ", as FiftyOne exports it"
    if base == "result.json":
        return ", as Label Studio exports it"
    return ""
