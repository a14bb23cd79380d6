"""CVAT's XML 1.1, "CVAT for images": annotations.xml with all images, which are in images/ beside it.

What is read of a file: `cvat_xml`. Several files, one a task or split, are one data set. The `subset` of an image is
its split, else its folder or that of the file is, if it is called train/, val/ or test/. Classes are in the order of
the labels, with ids from 1; labels for shapes without a box are no classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload
from urllib.parse import unquote

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.findings import Findings
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.annotations.survey import Survey, folder_of
from codetr_cli.class_names import alike_names
from codetr_cli.errors import DatasetError, listed
from codetr_cli.formats.cvat_xml import CvatFile, CvatImage, Shape, is_cvat, read_file
from codetr_cli.formats.folder_splits import by_split, place_of
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import (
    MAX_CLASSES,
    MAX_SHARE,
    SHOWN,
    ParsedBox,
    ParsedDataset,
    ParsedImage,
    size_of,
)
from codetr_cli.formats.linked_folders import unused_links, with_links
from codetr_cli.formats.split_names import split_in, splits_of_folders
from codetr_cli.formats.splits import choose_splits
from codetr_cli.formats.xml_text import likely_names, root_of

KEY = "cvat"
TITLE = "CVAT XML"


def evidence(survey: Survey) -> str:
    """The file that shows the layout; empty if there is none."""
    names = likely_names(survey.with_suffix(".xml"), "annotations.xml")
    return survey.first_with_head(names, _shows_cvat, len(names)) or ""


def files_read(survey: Survey, names: NameRule) -> Iterable[Path]:
    """The files and folders that decide the result of `read`, except the content of images."""
    survey = with_links(survey)
    xmls = survey.with_suffix(".xml")
    yield from (survey.folder / name for name in dict.fromkeys(folder_of(name) for name in (*survey.images, *xmls)))
    yield from (survey.folder / name for name in (*xmls, *survey.linked))


def read(survey: Survey, names: NameRule, options: ReadOptions) -> ParsedDataset:
    """Reads all images of all files.

    Args:
        survey: of the data set's folder.
        names: what names may lead to; images are only searched in the folder.
        options: how it is read.

    Raises:
        DatasetError: broken files, missing images, an image in two files, files of CVAT's format for video.
    """
    survey = with_links(survey)
    findings, place = Findings(), f"{survey.folder.name}/"
    for link in unused_links(survey):
        findings.add("linked_folder", place, link)
    xmls = survey.with_suffix(".xml")
    files = {name: read_file(survey.folder / name) for name in xmls if _shows_cvat(survey.head(name))}
    for name in xmls:
        if name not in files:
            findings.add("other_xml", place, name)
    all_images = survey.images
    found, skipped = _found_images(survey.folder, files, all_images, options)
    class_names = _class_names(files)
    for alike in alike_names(class_names):
        findings.add("alike_class_names", place, " and ".join(alike))
    _report(found, findings, place)
    for name in sorted(set(all_images).difference(found)):
        findings.add("unlisted_file", place, name)
    splits = _splits(found)
    lists, outside = by_split(found, splits)
    for name in outside:
        findings.add("outside_splits", place, name)
    chosen, origins, notes = choose_splits(lists)
    labels = {name: label for label, name in enumerate(class_names)}
    images = {image: _parsed(survey.folder, image, found[image], labels) for part in chosen.values() for image in part}
    return ParsedDataset(
        title=TITLE,
        images_dir=survey.folder,
        class_names=class_names,
        first_id=1,
        splits={name: [images[image] for image in part] for name, part in chosen.items()},
        places={name: _place(found, lists[origin], origin) for name, origin in origins.items()},
        val_is_test=origins.get("val") == "test",
        skipped=skipped,
        notes=notes,
        findings=findings,
    )


class _Record(NamedTuple):
    """An image as a file has it, and that file."""

    file: str
    content: CvatImage


def _shows_cvat(head: str) -> bool:
    return is_cvat(head, root_of(head))


def _found_images(
    folder: Path, files: dict[str, CvatFile], all_images: list[str], options: ReadOptions
) -> tuple[dict[str, _Record], list[str]]:
    """The images of all files by their names in the folder, and the names of those that are skipped.

    Raises:
        DatasetError: some are missing, or in two files.
    """
    known, names = set(all_images), ImageNames(all_images)
    found: dict[str, _Record] = {}
    absent = []
    for file, content in files.items():
        for image in content.images:
            place = next((each for each in _places(folder_of(file), image) if each in known), None)
            place = place or names.find(image.name, f"{folder_of(file)}/images".lstrip("/"))
            if place is None or not _may_be(place, file, image):
                absent.append(image.name)
                continue
            other = found.setdefault(place, _Record(file, image))
            if other.content is not image:
                raise DatasetError(
                    f"{folder / place} is twice in the annotations, in {other.file} and in {file}. Remove one of the "
                    "records, or of the files"
                )
    count = len(found) + len(absent)
    if absent and (not options.skip_bad or len(absent) > MAX_SHARE * count):
        raise DatasetError(
            f"{len(absent):,} of the {count:,} images of {listed(list(files), SHOWN)} are missing in {folder}: "
            f"{listed(absent, SHOWN)}. Copy them into images/ beside the file, or export the task with its images"
        )
    return found, [f"{name} (no such file)" for name in absent]


def _places(folder: str, image: CvatImage) -> Iterator[str]:
    """Where CVAT puts an image: in images/, in images/SUBSET/ of a project, or beside the file."""
    base = f"{folder}/" if folder else ""
    yield from (f"{base}images/{image.subset}/{image.name}", f"{base}images/{image.name}", f"{base}{image.name}")


def _may_be(place: str, file: str, image: CvatImage) -> bool:
    """Whether the folder of an image, if it is for some images only, is one that its record names."""
    folder = place_of(folder_of(place)).rpartition("/")[2]
    named = f"{file}/{image.subset}/{unquote(image.name)}".replace("\\", "/").lower().split("/")
    return not folder or folder in named or "/" not in image.name.replace("\\", "/")


def _class_names(files: dict[str, CvatFile]) -> list[str]:
    """The labels for shapes with a box, in their order, and then other names of shapes.

    Raises:
        DatasetError: there is no shape with a box, or there are too many labels.
    """
    used = {shape.label for file in files.values() for image in file.images for shape in image.shapes}
    if not used:
        raise DatasetError(f"no image of {listed(list(files), SHOWN)} has a shape with a box: annotate some")
    boxless = {label for file in files.values() for label in file.boxless_labels} - used
    labels = dict.fromkeys(label for file in files.values() for label in file.labels if label not in boxless)
    names = [*labels, *sorted(used.difference(labels))]
    if len(names) > MAX_CLASSES:
        raise DatasetError(f"{listed(list(files), SHOWN)} have {len(names):,} labels, {MAX_CLASSES:,} are possible")
    return names


def _splits(found: Mapping[str, _Record]) -> dict[str, str | None]:
    """The split of each image: by its subset, the folder of its file, or its own."""
    of_files = splits_of_folders(folder_of(record.file) for record in found.values())
    of_images = splits_of_folders(map(folder_of, found))
    return {
        image: split_in(record.content.subset) or of_files[folder_of(record.file)] or of_images[folder_of(image)]
        for image, record in found.items()
    }


def _place(found: dict[str, _Record], images: list[str], origin: str) -> str:
    """The files of a split, for messages."""
    files = list(dict.fromkeys(found[image].file for image in images))
    return listed(files, SHOWN) if origin == "all" else f"{listed(files, SHOWN)} ({origin})"


def _report(found: dict[str, _Record], findings: Findings, place: str) -> None:
    """Adds findings on what is not read of shapes."""
    for image, record in found.items():
        for shape in record.content.boxless:
            findings.add("object_without_box", place, f"{shape} in {image}")
        if record.content.masks:
            findings.add("mask_as_box", place, image, record.content.masks)


def _parsed(folder: Path, image: str, record: _Record, labels: dict[str, int]) -> ParsedImage:
    height, width = size_of(record.content.size, folder / image)
    return ParsedImage(
        file_name=image,
        height=height,
        width=width,
        label_file=f"{record.file}, {image}",
        boxes=_Boxes(record.content.shapes, labels),
    )


class _Boxes(Sequence[ParsedBox]):
    """The boxes of some shapes, made when they are used: all of a large file need much memory."""

    def __init__(self, shapes: Sequence[Shape], labels: dict[str, int]) -> None:
        self._shapes, self._labels = shapes, labels

    def __len__(self) -> int:
        return len(self._shapes)

    @overload
    def __getitem__(self, index: int) -> ParsedBox: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ParsedBox]: ...
    def __getitem__(self, index: int | slice) -> ParsedBox | Sequence[ParsedBox]:
        if isinstance(index, slice):
            return _Boxes(self._shapes[index], self._labels)
        shape = self._shapes[index]
        return ParsedBox(self._labels[shape.label], shape.corners, shape.is_crowd, tuple(shape.outline))
