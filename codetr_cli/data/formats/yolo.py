"""YOLO folders: images/ beside labels/, one text file an image with `class cx cy w h` a line, relative to its size.

A line of `class x y x y x y ...` is an outline; its box is the bounding box. Class names and folders come from
data.yaml (names, path, train, val and test, see `yolo_yaml`); or, without it, from classes.txt (one name a line) and
the folders train, val (or valid) and test above or below images/. The category ids are YOLO's numbers. An image without
a label file has no objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from codetr_cli.data.formats.intermediate import MAX_SHARE, SHOWN, THREADS, ParsedBox, ParsedDataset, ParsedImage
from codetr_cli.data.formats.splits import choose_splits
from codetr_cli.data.formats.yolo_yaml import Value, find_description, read_description
from codetr_cli.data.headers import ImageFileError, read_header
from codetr_cli.data.image_files import list_images
from codetr_cli.errors import DatasetError, listed

TITLE = "YOLO"
NAME_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
MAX_RELATIVE = 1.5
"""Relative coordinates beyond this must be pixels."""


@dataclass(frozen=True)
class _Description:
    """Names of the classes, the file with these names, and the paths of the images of each split."""

    class_names: list[str]
    names_file: Path
    images: dict[str, list[Path]]


def matches(folder: Path) -> bool:
    """Whether a folder has the layout: a YAML file with names and train or val, or label folders of text files."""
    patterns = ("labels/*.txt", "labels/*/*.txt", "*/labels/*.txt", "*/labels/*/*.txt")
    return find_description(folder) is not None or any(any(folder.glob(pattern)) for pattern in patterns)


def files_read(folder: Path) -> Iterable[Path]:
    """The files and folders that decide the result of `read`."""
    description = _describe(folder)
    yield description.names_file
    for paths in description.images.values():
        for path in paths:
            yield path
            yield _label_path(path)


def read(folder: Path, *, skip_bad: bool = False) -> ParsedDataset:
    """Reads all images of the folder's description.

    Raises:
        DatasetError: no class names, a description that cannot be read, missing images, broken labels.
    """
    description = _describe(folder)
    chosen, places, notes = choose_splits(
        {name: [str(path) for path in paths] for name, paths in description.images.items()}
    )
    names = list(dict.fromkeys(path for paths in chosen.values() for path in paths))
    with ThreadPoolExecutor(THREADS) as pool:
        parsed = dict(
            zip(names, pool.map(lambda name: _read_image(Path(name), folder, description), names), strict=True)
        )
    broken = [f"{name} ({problem})" for name, problem in parsed.items() if isinstance(problem, str)]
    if broken and (not skip_bad or len(broken) > MAX_SHARE * len(names)):
        raise DatasetError(f"{len(broken):,} of {len(names):,} images cannot be used: {listed(broken, SHOWN)}")
    images = {name: image for name, image in parsed.items() if isinstance(image, ParsedImage)}
    unlabelled = sum(not _label_path(Path(name)).is_file() for name in names)
    if unlabelled == len(names):
        raise DatasetError(
            f"none of the {unlabelled:,} images of {folder} has a label file; {_label_path(Path(names[0]))} would be "
            "the first. Put labels/ beside images/, with the same names and folders in it"
        )
    if unlabelled:
        notes.append(f"{unlabelled:,} images have no label file: they are treated as images without objects")
    return ParsedDataset(
        title=TITLE,
        images_dir=folder,
        class_names=description.class_names,
        first_id=0,
        splits={name: [images[path] for path in paths if path in images] for name, paths in chosen.items()},
        skipped=broken,
        val_is_test=places.get("val") == "test",
        places={name: "images" if origin == "all" else f"images of {origin}" for name, origin in places.items()},
        notes=notes,
    )


def _label_path(image: Path) -> Path:
    """The label file of an image: the last folder `images` of its path becomes `labels`."""
    parts = list(image.parts)
    at = max((index for index, part in enumerate(parts[:-1]) if part == "images"), default=None)
    if at is not None:
        parts[at] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_image(path: Path, folder: Path, description: _Description) -> ParsedImage | str:
    """An image with its boxes, or the problem with its file.

    Raises:
        DatasetError: its labels are wrong.
    """
    try:
        height, width = read_header(path).size
    except ImageFileError as error:
        return str(error)
    labels = _label_path(path)
    boxes = []
    if labels.is_file():
        lines = labels.read_text("utf-8-sig", "replace").splitlines()
        boxes = [
            _box(line.split(), width, height, description, f"{labels}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    return ParsedImage(file_name=name, height=height, width=width, label_file=labels.name, boxes=boxes)


def _box(words: list[str], width: int, height: int, description: _Description, where: str) -> ParsedBox:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)) or not (len(numbers) == 5 or (len(numbers) >= 7 and len(numbers) % 2)):
        raise DatasetError(f"{where}: {' '.join(words)!r:.80} is neither `class cx cy w h` nor an outline. Fix it")
    number, values = numbers[0], numbers[1:]
    if number != int(number) or not 0 <= number < len(description.class_names):
        raise DatasetError(
            f"{where}: class {words[0]}, but {description.names_file} names {len(description.class_names)} classes, 0 "
            f"to {len(description.class_names) - 1}. Add the name or fix the line"
        )
    if max(map(abs, values)) > MAX_RELATIVE:
        raise DatasetError(
            f"{where}: {' '.join(words)!r:.80} has values in pixels; YOLO's are relative to the image's width and "
            "height, 0 to 1. Divide them, or export the labels again"
        )
    if len(values) == 4:
        cx, cy, w, h = values
        if w < 0 or h < 0:
            raise DatasetError(f"{where}: width {w:g} and height {h:g}, which cannot be negative. Correct the box")
        corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        return ParsedBox(int(number), corners)
    xs, ys = [value * width for value in values[::2]], [value * height for value in values[1::2]]
    outline = tuple(value for point in zip(xs, ys, strict=True) for value in point)
    return ParsedBox(int(number), (min(xs), min(ys), max(xs), max(ys)), outline=outline)


def _describe(folder: Path) -> _Description:
    path = find_description(folder)
    if path is None:
        return _describe_folders(folder)
    table = read_description(path)
    class_names = _class_names(table.get("names"), path)
    given = table.get("path", ".")
    bases = [path.parent / given if isinstance(given, str) else path.parent, path.parent]
    images: dict[str, list[Path]] = {}
    for split in ("train", "val", "test"):
        entries = table.get(split, [])
        if isinstance(entries, dict):
            raise DatasetError(f"{path}: {split} must be a path or a list of paths")
        for entry in [entries] if isinstance(entries, str) and entries else entries:
            images.setdefault(split, []).extend(_images(_entry_path(entry, bases, f"{path}: {split}"), bases))
    if not any(images.values()):
        raise DatasetError(f"{path} lists no image: add `train: images/train` and `val: images/val`")
    return _Description(class_names, path, images)


def _describe_folders(folder: Path) -> _Description:
    names = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if names is None:
        raise DatasetError(
            f"{folder} is a YOLO data set without class names: write them into {folder / 'classes.txt'}, one a line in "
            "the order of their numbers, or add the original data.yaml"
        )
    images: dict[str, list[Path]] = {}
    for split, spellings in FOLDERS.items():
        for spelling in spellings:
            for place in (folder / "images" / spelling, folder / spelling / "images"):
                if place.is_dir():
                    images.setdefault(split, []).extend(_images(place, []))
    if not images and (folder / "images").is_dir():
        images = {"all": _images(folder / "images", [])}
    if not any(images.values()):
        raise DatasetError(
            f"{folder} is a YOLO data set without images: expected images/train/ beside labels/train/ or train/images/ "
            "beside train/labels/"
        )
    lines = names.read_text("utf-8-sig", "replace").splitlines()
    return _Description(_class_names([line.strip() for line in lines if line.strip()], names), names, images)


def _class_names(value: Value | None, path: Path) -> list[str]:
    if isinstance(value, dict):
        numbers = sorted(int(key) if key.isdigit() else -1 for key in value)
        if numbers != list(range(len(value))):
            raise DatasetError(f"{path}: the keys of names must be 0, 1, 2, ... without a gap")
        value = [value[key] for key in sorted(value, key=int)]
    if not isinstance(value, list) or not value or not all(value):
        raise DatasetError(f"{path} has no class names: write them as `names: [first, second]`")
    return value


def _entry_path(entry: str, bases: list[Path], where: str) -> Path:
    """The folder or list of an entry; some exporters write ../train/images instead of train/images."""
    tail = re.sub(r"^(\.\./)+", "", entry)
    for candidate in (*(base / entry for base in bases), *(base / tail for base in bases)):
        if candidate.exists():
            return candidate
    raise DatasetError(f"{where}: {bases[0] / entry} does not exist. Fix the path or put the images there")


def _images(place: Path, bases: list[Path]) -> list[Path]:
    """The images of a folder and its subfolders, or of a list file."""
    if place.is_dir():
        return [place / name for name in sorted(list_images(place))]
    present, absent = [], []
    for line in place.read_text("utf-8-sig", "replace").splitlines():
        if not line.strip():
            continue
        name = PurePosixPath(line.strip())
        path = next((base / name for base in (place.parent, *bases) if (base / name).is_file()), None)
        if path is None:
            absent.append(str(name))
        else:
            present.append(path)
    if absent:
        raise DatasetError(
            f"{place} lists {len(absent):,} images that are missing: {listed(absent, SHOWN)}. Copy them there"
        )
    return present
