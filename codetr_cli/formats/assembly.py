"""Builds a data set from annotated images whose boxes have the names of their classes: what several parsers share.

Training, validation and test images are recognised by the folders that they are in; classes are in alphabetical order
where the files have no list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

from codetr_cli.annotations.annotation_json import class_name_problem
from codetr_cli.annotations.findings import Findings
from codetr_cli.annotations.survey import Survey, folder_of
from codetr_cli.class_names import alike_names
from codetr_cli.errors import DatasetError, listed, shown
from codetr_cli.formats.folder_splits import by_split
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.intermediate import (
    MAX_CLASSES,
    MAX_CORNER,
    MAX_SHARE,
    SHOWN,
    THREADS,
    ParsedBox,
    ParsedDataset,
    ParsedImage,
)
from codetr_cli.formats.linked_folders import unused_links
from codetr_cli.formats.split_names import split_in, splits_of_folders
from codetr_cli.formats.splits import choose_splits
from codetr_cli.images.headers import ImageFileError, read_header
from codetr_cli.images.image_files import unreadable_images, unreadable_sentence
from codetr_cli.images.image_header import Size

Item = TypeVar("Item")
Result = TypeVar("Result")


class NamedBox(NamedTuple):
    """An object: its class, corners (x1, y1, x2, y2), and perhaps an outline x, y, x, y, ...

    In pixels, or relative to the image's size where `AnnotatedImage.relative` says so.
    """

    name: str
    corners: tuple[float, float, float, float]
    is_crowd: bool = False
    outline: tuple[float, ...] = ()


@dataclass(slots=True)
class AnnotatedImage:
    """An image and its objects.

    Args:
        name: of the image, relative to the data set's folder.
        where: the file of its annotations, for messages.
        boxes: its objects.
        size: (height, width); (0, 0) if it has to be read from the image.
        split: "train", "val" or "test"; empty if its folders decide.
        relative: whether the boxes are relative to the image's size.
    """

    name: str
    where: str
    boxes: Sequence[NamedBox]
    size: Size = (0, 0)
    split: str = ""
    relative: bool = False


@dataclass
class Content:
    """What a parser read of a folder.

    Args:
        title: of the layout.
        survey: of the folder.
        images: those with annotations.
        place: the file or folder that has the annotations, for messages.
        class_names: in the order of their ids; None: those of the boxes, in alphabetical order.
        absent: annotations whose image does not exist, each with the name that was searched.
        absent_advice: what to do about them.
        first_id: category id of the first class.
        images_dir: what the names of images are relative to, if not the survey's folder.
        unused_images: whether images of the folder without annotations are reported.
    """

    title: str
    survey: Survey
    images: list[AnnotatedImage]
    place: str
    class_names: list[str] | None = None
    absent: list[str] = field(default_factory=list)
    absent_advice: str = "Copy the images into the folder, or remove their annotations"
    first_id: int = 1
    images_dir: Path | None = None
    unused_images: bool = True
    notes: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def split_word(text: str) -> str:
    """The split that a name in a column means ("valid" is "val"); empty for other words."""
    return split_in(text) or ""


def refuse_absent(absent: Sequence[str], total: int, folder: Path, advice: str, *, skip_bad: bool) -> list[str]:
    """The annotations without an image that are skipped.

    Raises:
        DatasetError: there are some and none may be skipped, or there are too many.
    """
    if absent and (not skip_bad or len(absent) > MAX_SHARE * total):
        raise DatasetError(
            f"{len(absent):,} of {total:,} annotated images are not in {folder}: {listed(absent, SHOWN)}. {advice}"
        )
    return [f"{name} (no such image)" for name in absent]


def class_name(value: object, where: str) -> str:
    """The name of a class in a file of annotations; numbers are names too.

    Raises:
        DatasetError: there is none, or it is too long.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value}"
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{where} has no class ({shown(value)}). Name its class, or remove it")
    name = value.strip()
    if problem := class_name_problem(name):
        raise DatasetError(f"{where} has {problem}. Rename its class")
    return name


def check_corners(corners: Iterable[float], where: str) -> None:
    """Raises a DatasetError unless all numbers are finite and not larger than any image."""
    if not all(abs(value) <= MAX_CORNER for value in corners):  # False for NaN
        raise DatasetError(f"{where} has coordinates that are not finite or outside of any image. Redraw or remove it")


def assemble(content: Content, options: ReadOptions) -> ParsedDataset:
    """The data set of annotated images.

    Raises:
        DatasetError: images are missing or cannot be read, there are no objects, or too many classes.
    """
    folder = content.images_dir or content.survey.folder
    if not content.images and not content.absent:
        raise DatasetError(f"{content.place} in {content.survey.folder} has no annotated image. Give another folder")
    total = len(content.images) + len(content.absent)
    skipped = refuse_absent(content.absent, total, folder, content.absent_advice, skip_bad=options.skip_bad)
    _report_unused(content)
    class_names = content.class_names
    if class_names is None:
        class_names = sorted({box.name for image in content.images for box in image.boxes})
    if not class_names:
        raise DatasetError(
            f"{content.place} in {content.survey.folder} has no object: check that it is the right folder"
        )
    if len(class_names) > MAX_CLASSES:
        raise DatasetError(
            f"{content.place} in {content.survey.folder} has {len(class_names):,} classes, the limit is {MAX_CLASSES:,}"
        )
    for alike in alike_names(class_names):
        content.findings.add("alike_class_names", content.place, " and ".join(alike))
    by_split = _by_split(content)
    chosen, origins, notes = choose_splits({split: list(images) for split, images in by_split.items()})
    used = {split: [by_split[origins[split]][name] for name in names] for split, names in chosen.items()}
    broken = read_sizes((image for images in used.values() for image in images), folder)
    if broken and (not options.skip_bad or len(broken) > MAX_SHARE * total):
        first = [f"{name} ({problem})" for name, problem in broken.items()]
        raise DatasetError(
            f"{len(broken):,} of {total:,} images in {folder} cannot be used: {listed(first, SHOWN)}. Copy them again, "
            "or remove them and their annotations"
        )
    labels = {name: label for label, name in enumerate(class_names)}
    return ParsedDataset(
        title=content.title,
        images_dir=folder,
        class_names=class_names,
        first_id=content.first_id,
        splits={
            split: [_parsed(image, labels) for image in images if image.name not in broken]
            for split, images in used.items()
        },
        places={
            split: content.place if origin == "all" else f"{content.place} ({origin})"
            for split, origin in origins.items()
        },
        val_is_test=origins.get("val") == "test",
        in_pixels=options.box_format is not None and not options.box_format.startswith("relative-"),
        skipped=[*skipped, *(f"{name} ({problem})" for name, problem in broken.items())],
        notes=[*content.notes, *notes],
        findings=content.findings,
    )


def _by_split(content: Content) -> dict[str, dict[str, AnnotatedImage]]:
    """The images by split and name, see `folder_splits.by_split`."""
    images = content.images
    folders = splits_of_folders(folder_of(image.name) for image in images)
    splits = {index: image.split or folders[folder_of(image.name)] for index, image in enumerate(images)}
    named = {image.name for index, image in enumerate(images) if splits[index]}
    loose = {index for index, split in splits.items() if not split}
    seconds = [index for index in loose if images[index].name in named]
    by_number, outside = by_split([index for index in splits if index not in set(seconds)], splits)
    tables: dict[str, dict[str, AnnotatedImage]] = {}
    for split, numbers in by_number.items():
        table = tables.setdefault(split, {})
        for index in numbers:
            if images[index].name in table:
                seconds.append(index)
            else:
                table[images[index].name] = images[index]
    for index in sorted(seconds):
        content.findings.add("second_annotation", content.place, f"{images[index].where} ({images[index].name})")
    for index in outside:
        content.findings.add("outside_splits", content.place, images[index].name)
    return tables


def _report_unused(content: Content) -> None:
    survey = content.survey
    for link in unused_links(survey):
        content.findings.add("linked_folder", content.place, link)
    if unreadable := unreadable_images(survey.names):
        content.notes.append(unreadable_sentence(unreadable))
    annotated = {image.name for image in content.images}
    for name in survey.images if content.unused_images else ():
        if name not in annotated:
            content.findings.add("image_without_annotation", content.place, name)


def read_sizes(images: Iterable[AnnotatedImage], folder: Path) -> dict[str, str]:
    """Reads the sizes that are not known from the images; returns the problems of those that cannot be read."""
    unknown = [image for image in images if min(image.size) < 1]
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = pool.map(lambda image: _size(folder / image.name), unknown)
        problems = {}
        for image, size in zip(unknown, sizes, strict=True):
            if isinstance(size, str):
                problems[image.name] = size
            else:
                image.size = size
    return problems


def _size(path: Path) -> Size | str:
    try:
        return read_header(path).size
    except ImageFileError as error:
        return str(error)


def _parsed(image: AnnotatedImage, labels: Mapping[str, int]) -> ParsedImage:
    height, width = image.size
    scale = (width, height) if image.relative else (1, 1)
    return ParsedImage(image.name, height, width, image.where, _Labelled(image.boxes, labels, scale))


class _Labelled(Sequence[ParsedBox]):
    """The boxes of an image with labels and in pixels, made when they are used: millions need much memory."""

    __slots__ = ("_boxes", "_labels", "_scale")

    def __init__(self, boxes: Sequence[NamedBox], labels: Mapping[str, int], scale: tuple[int, int]) -> None:
        self._boxes, self._labels, self._scale = boxes, labels, scale

    def __len__(self) -> int:
        return len(self._boxes)

    def __iter__(self) -> Iterator[ParsedBox]:
        return map(self._parsed, self._boxes)

    @overload
    def __getitem__(self, index: int) -> ParsedBox: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ParsedBox]: ...
    def __getitem__(self, index: int | slice) -> ParsedBox | Sequence[ParsedBox]:
        if isinstance(index, slice):
            return [self._parsed(box) for box in self._boxes[index]]
        return self._parsed(self._boxes[index])

    def _parsed(self, box: NamedBox) -> ParsedBox:
        x1, y1, x2, y2 = box.corners
        across, down = self._scale
        outline = tuple(value * (down if index % 2 else across) for index, value in enumerate(box.outline))
        corners = (x1 * across, y1 * down, x2 * across, y2 * down)
        return ParsedBox(self._labels[box.name], corners, box.is_crowd, outline)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results of a function for some files, which are read by a few threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))
