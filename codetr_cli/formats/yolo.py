"""YOLO folders: images, and a text file an image with `class cx cy w h` a line, relative to its size.

Where class names and images come from: `yolo_description`; label files: `yolo_files`; their rows: `yolo_labels`. The
category ids are YOLO's numbers. An image without a label file has no objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.annotations.data_files import read_text
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.findings import Findings
from codetr_cli.annotations.survey import Survey, folder_of
from codetr_cli.errors import DatasetError, listed
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import MAX_OBJECTS, MAX_SHARE, SHOWN, THREADS, ParsedDataset, ParsedImage
from codetr_cli.formats.splits import choose_splits
from codetr_cli.formats.yolo_description import Description, describe
from codetr_cli.formats.yolo_files import LabelFiles, find_label_file
from codetr_cli.formats.yolo_folders import find_data_file
from codetr_cli.formats.yolo_labels import LongRows, RowRule, parse_rows
from codetr_cli.formats.yolo_yaml import find_description
from codetr_cli.images.headers import ImageFileError, read_header

KEY = "yolo"
TITLE = "YOLO"
MAX_LABEL_BYTES = 8 << 20
MAX_DESCRIBED = 20
"""YAML files in subfolders that are read to see whether they describe data sets."""


def evidence(survey: Survey) -> str:
    """The file that shows the layout: a YAML file with names and train or val, or labels; empty if there is none."""
    try:
        description = find_description(survey)
    except DatasetError:
        return next((name for name in survey.with_suffix(".yaml", ".yml") if "/" not in name), "")
    if description is not None and description.is_complete:
        return description.name
    data = find_data_file(survey)
    if data is not None and survey.images:
        return data
    labels = find_label_file(survey)
    if labels is None or any(_describes_itself(survey, folder) for folder in _folders_of(labels)):
        return ""
    return labels


def described_folders(survey: Survey) -> list[str]:
    """The folders below the top one with a description of their own and labels, so that they are data sets."""
    names = [name for name in survey.with_suffix(".yaml", ".yml") if "/" in name][:MAX_DESCRIBED]
    return [
        folder
        for folder in dict.fromkeys(map(folder_of, names))
        if find_label_file(survey.below(folder)) is not None and _describes_itself(survey, folder)
    ]


def _folders_of(name: str) -> list[str]:
    """The folders that a file is in, the top one excluded, the outermost first."""
    parts = folder_of(name).split("/") if "/" in name else []
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _describes_itself(survey: Survey, folder: str) -> bool:
    """Whether a subfolder has a description of its own, so that it is a data set rather than a part of one."""
    part = survey.below(folder)
    part.names = [name for name in part.names if "/" not in name]
    try:
        description = find_description(part)
    except DatasetError:
        return True
    return description is not None and description.is_complete


def files_read(survey: Survey, names: NameRule) -> Iterable[Path]:
    """The files and folders that decide the result of `read`."""
    description = describe(survey, names)
    yield description.names_file
    file = find_description(survey)
    if file is not None:
        yield file.path
    paths = list(dict.fromkeys(path for listed_paths in description.images.values() for path in listed_paths))
    for path, labels in _label_files(survey, paths)[0].items():
        yield path
        if labels is not None:
            yield labels
    for folder in dict.fromkeys(map(folder_of, survey.names)):
        yield survey.folder / folder


def read(survey: Survey, names: NameRule, options: ReadOptions) -> ParsedDataset:
    """Reads all images of the folder's description.

    Args:
        survey: of the data set's folder.
        names: what names in the description and its lists may lead to.
        options: how it is read.

    Raises:
        DatasetError: no class names, a description that cannot be read, missing images, names that lead out of the
            folder, broken labels, or labels with several meanings.
    """
    folder = survey.folder
    description = describe(survey, names)
    paths = list(dict.fromkeys(path for listed_paths in description.images.values() for path in listed_paths))
    labels, notes = _label_files(survey, paths)
    _check_labels(folder, labels)
    images_of = _labelled(description, labels, notes)
    chosen, places, more = choose_splits({name: list(map(str, each)) for name, each in images_of.items()})
    notes = [*description.notes, *notes, *more]
    paths = [Path(path) for path in dict.fromkeys(path for each in chosen.values() for path in each)]
    rule = description.row_rule(options.yolo_labels)
    with ThreadPoolExecutor(THREADS) as pool:
        parsed = list(pool.map(lambda path: _read_image(path, labels[path], folder, rule), paths))
    broken = [f"{path} ({problem})" for path, problem in zip(paths, parsed, strict=True) if isinstance(problem, str)]
    if broken and (not options.skip_bad or len(broken) > MAX_SHARE * len(paths)):
        raise DatasetError(f"{len(broken):,} of {len(paths):,} images cannot be used: {listed(broken, SHOWN)}")
    long_rows = LongRows()
    images: dict[str, ParsedImage] = {}
    for path, result in zip(paths, parsed, strict=True):
        if isinstance(result, _Read):
            images[str(path)] = result.image
            if result.long_rows is not None:
                long_rows.add(result.long_rows)
    long_rows.check(rule, (box.outline for image in images.values() for box in image.boxes if box.outline))
    return ParsedDataset(
        title=TITLE,
        images_dir=folder,
        class_names=description.class_names,
        first_id=0,
        splits={name: [images[path] for path in chosen[name] if path in images] for name in chosen},
        skipped=broken,
        val_is_test=places.get("val") == "test",
        places={name: "images" if origin == "all" else f"images of {origin}" for name, origin in places.items()},
        notes=[*notes, *long_rows.notes(rule, sum(len(image.boxes) for image in images.values()))],
        findings=_findings(survey, paths, labels),
    )


def _label_files(survey: Survey, paths: list[Path]) -> tuple[dict[Path, Path | None], list[str]]:
    """The label file of each image, and notes on how they were found."""
    files = LabelFiles(survey)
    labels = {path: files.find(path) for path in paths}
    if any(labels.values()):
        return labels, []
    files.match_by_stem(_shown(path, survey) for path in paths)
    labels = {path: files.find(path) for path in paths}
    first = next((path for path in labels.values() if path is not None), None)
    return labels, [] if first is None else [f"label files such as {first} are matched by the names of the images"]


def _check_labels(folder: Path, labels: dict[Path, Path | None]) -> None:
    """Raises a DatasetError if no image has a label file."""
    if labels and not any(labels.values()):
        raise DatasetError(
            f"none of the {len(labels):,} images of {folder} has a label file; "
            f"{LabelFiles.expected(next(iter(labels)))} would be the first. Put labels/ beside images/, with the same "
            "names and folders in it"
        )


def _labelled(description: Description, labels: dict[Path, Path | None], notes: list[str]) -> dict[str, list[Path]]:
    """The images of each split; without those of a test set that has no label file at all, with a note."""
    images = dict(description.images)
    test = images.get("test", [])
    if test and not any(labels[path] for path in test):
        none = f"none of the {len(test):,} test images has a" if len(test) > 1 else "the test image has no"
        notes.append(f"{none} label file: {'they are' if len(test) > 1 else 'it is'} not used")
        del images["test"]
    return images


def _findings(survey: Survey, paths: list[Path], labels: dict[Path, Path | None]) -> Findings:
    """What was found and is not used, or used twice."""
    findings = Findings()
    where = survey.folder.name
    owners: dict[Path, Path] = {}
    for path in paths:
        file = labels[path]
        if file is None:
            findings.add("image_without_labels", where, _shown(path, survey))
        elif owners.setdefault(file, path) != path:
            findings.add("shared_labels", where, f"{_shown(path, survey)} and {_shown(owners[file], survey)}")
    files = LabelFiles(survey)
    used = {_shown(path, survey) for path in paths}
    of_others = []
    for name in survey.images:
        if name not in used:
            label_file = files.find(survey.folder / name)
            findings.add("outside_splits" if label_file else "unlisted_file", where, name)
            of_others.append(label_file)
    for name in files.unused(file for file in (*labels.values(), *of_others) if file is not None):
        findings.add("labels_without_image", where, name)
    return findings


def _shown(path: Path, survey: Survey) -> str:
    """A path relative to the data set's folder, with forward slashes; others as they are."""
    return _relative(path, survey.folder)


def _relative(path: Path, folder: Path) -> str:
    """As `_shown`; `Path.relative_to` takes ten times as long."""
    return str(path).removeprefix(f"{folder}{os.sep}").replace(os.sep, "/")


@dataclass(frozen=True)
class _Read:
    image: ParsedImage
    long_rows: LongRows | None


def _read_image(path: Path, labels: Path | None, folder: Path, rule: RowRule) -> _Read | str:
    """An image with its boxes, or the problem with its file.

    Raises:
        DatasetError: its labels are wrong.
    """
    try:
        size = read_header(path).size
    except ImageFileError as error:
        return str(error)
    lines = [] if labels is None else read_text(labels, MAX_LABEL_BYTES).split("\n")
    if len(lines) > MAX_OBJECTS:
        raise DatasetError(f"{labels} has {len(lines):,} lines, {MAX_OBJECTS:,} are possible. Export it again")
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    boxes, long_rows = parse_rows(rows, size, rule, labels or path)
    name = _relative(path, folder)
    label_file = (labels or LabelFiles.expected(path)).name
    image = ParsedImage(file_name=name, height=size[0], width=size[1], label_file=label_file, boxes=boxes)
    return _Read(image, long_rows)
