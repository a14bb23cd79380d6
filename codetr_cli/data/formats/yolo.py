"""YOLO folders: images/ beside labels/, where a text file an image has one `class cx cy w h` a line, in shares of 1.

A line of `class x y x y x y ...` is an outline; its box goes around it. Names and places come from a data.yaml, of
which names, path, train, val and test are read, in YAML's plain forms only; or, without it, from classes.txt (one name
a line) and the folders train, val (or valid) and test above or below images/. The category ids are YOLO's numbers. An
image without a label file has no objects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from codetr_cli.data.formats.detect import list_images
from codetr_cli.data.formats.intermediate import MAX_SHARE, Box, Contents, Picture, choose_splits, listed
from codetr_cli.data.headers import ImageFileError, read_header
from codetr_cli.errors import DatasetError

TITLE = "YOLO"
NAME_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
READERS = 16
FAR = 1.5
"""Share of the image beyond which a number must be one of pixels."""

Value: TypeAlias = str | list[str] | dict[str, str]


@dataclass(frozen=True)
class _Plan:
    """Names of the classes and the images of each split, by paths; `labelled_by` is where the names stand."""

    class_names: list[str]
    labelled_by: Path
    images: dict[str, list[Path]]


def is_yolo(folder: Path) -> bool:
    """Whether a folder has the layout: a YAML file with names and train or val, or label folders of text files."""
    return _yaml(folder) is not None or any(_has_text(labels) for labels in _label_folders(folder))


def sources(folder: Path) -> Iterable[Path]:
    """The files and folders that decide what `read_yolo` returns."""
    plan = _plan(folder)
    yield plan.labelled_by
    for paths in plan.images.values():
        for path in paths:
            yield path
            yield _label_path(path)


def read_yolo(folder: Path, *, skip_bad: bool = False) -> Contents:
    """Reads all images that the folder's description names.

    Args:
        folder: of the data set.
        skip_bad: leave out images that cannot be read.

    Raises:
        DatasetError: no class names, a description that cannot be read, missing images, broken labels.
    """
    plan = _plan(folder)
    chosen, places, notes = choose_splits({name: [str(path) for path in paths] for name, paths in plan.images.items()})
    names = list(dict.fromkeys(path for paths in chosen.values() for path in paths))
    with ThreadPoolExecutor(READERS) as pool:
        read = dict(zip(names, pool.map(lambda name: _picture(Path(name), folder, plan), names), strict=True))
    broken = [f"{name} ({problem})" for name, problem in read.items() if isinstance(problem, str)]
    if broken and (not skip_bad or len(broken) > MAX_SHARE * len(names)):
        raise DatasetError(f"{len(broken):,} of {len(names):,} images cannot be used: {listed(broken)}")
    pictures = {name: picture for name, picture in read.items() if isinstance(picture, Picture)}
    bare = sum(not _label_path(Path(name)).is_file() for name in names)
    if bare == len(names):
        raise DatasetError(
            f"none of the {bare:,} images of {folder} has a label file; {_label_path(Path(names[0]))} would be the "
            "first. Put labels/ beside images/, with the same names and folders in it"
        )
    if bare:
        notes.append(f"{bare:,} images have no label file: they are taken as images without objects")
    return Contents(
        title=TITLE,
        images_dir=folder,
        class_names=plan.class_names,
        first_id=0,
        splits={name: [pictures[path] for path in paths if path in pictures] for name, paths in chosen.items()},
        left_out=broken,
        val_is_test=places.get("val") == "test",
        places={name: "images" if origin == "all" else f"images of {origin}" for name, origin in places.items()},
        notes=notes,
    )


# ------------------------------------------------------------------------------------------------------------ pictures


def _label_path(image: Path) -> Path:
    """Where the labels of an image are: the last folder `images` of its path becomes `labels`."""
    parts = list(image.parts)
    at = max((index for index, part in enumerate(parts[:-1]) if part == "images"), default=None)
    if at is not None:
        parts[at] = "labels"
    return Path(*parts).with_suffix(".txt")


def _picture(path: Path, folder: Path, plan: _Plan) -> Picture | str:
    """An image with its boxes, or what is wrong with its file.

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
            _box(line.split(), width, height, plan, f"{labels}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    return Picture(file_name=name, height=height, width=width, source=labels.name, boxes=boxes)


def _box(words: list[str], width: int, height: int, plan: _Plan, where: str) -> Box:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)) or not (len(numbers) == 5 or (len(numbers) >= 7 and len(numbers) % 2)):
        raise DatasetError(f"{where}: {' '.join(words)!r:.80} is neither `class cx cy w h` nor an outline. Mend it")
    number, values = numbers[0], numbers[1:]
    if number != int(number) or not 0 <= number < len(plan.class_names):
        raise DatasetError(
            f"{where}: class {words[0]}, but {plan.labelled_by} names {len(plan.class_names)} classes, 0 to "
            f"{len(plan.class_names) - 1}. Add the name or mend the line"
        )
    if max(map(abs, values)) > FAR:
        raise DatasetError(
            f"{where}: {' '.join(words)!r:.80} has numbers of pixels; YOLO's are shares of the image's width and "
            "height, 0 to 1. Divide them, or export the labels again"
        )
    if len(values) == 4:
        cx, cy, w, h = values
        if w < 0 or h < 0:
            raise DatasetError(f"{where}: width {w:g} and height {h:g}, which cannot be negative. Redraw the box")
        corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        return Box(int(number), corners)
    xs, ys = [value * width for value in values[::2]], [value * height for value in values[1::2]]
    outline = tuple(value for point in zip(xs, ys, strict=True) for value in point)
    return Box(int(number), (min(xs), min(ys), max(xs), max(ys)), outline=outline)


# --------------------------------------------------------------------------------------------------------- description


def _plan(folder: Path) -> _Plan:
    path = _yaml(folder)
    if path is None:
        return _plan_of_folders(folder)
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
            images.setdefault(split, []).extend(_images(_place(entry, bases, f"{path}: {split}"), bases))
    if not any(images.values()):
        raise DatasetError(f"{path} names no image: add `train: images/train` and `val: images/val`")
    return _Plan(class_names, path, images)


def _plan_of_folders(folder: Path) -> _Plan:
    names = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if names is None:
        raise DatasetError(
            f"{folder} is a YOLO data set without class names: write them into {folder / 'classes.txt'}, one a line in "
            "the order of their numbers, or add the data.yaml it came with"
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
    return _Plan(_class_names([line.strip() for line in lines if line.strip()], names), names, images)


def _class_names(value: Value | None, path: Path) -> list[str]:
    if isinstance(value, dict):
        numbers = sorted(int(key) if key.isdigit() else -1 for key in value)
        if numbers != list(range(len(value))):
            raise DatasetError(f"{path}: the keys of names must be 0, 1, 2, ... without a gap")
        value = [value[key] for key in sorted(value, key=int)]
    if not isinstance(value, list) or not value or not all(value):
        raise DatasetError(f"{path} has no class names: write them as `names: [first, second]`")
    return value


def _place(entry: str, bases: list[Path], where: str) -> Path:
    """The folder or list that an entry means; exporters write ../train/images for train/images, too."""
    tail = re.sub(r"^(\.\./)+", "", entry)
    for candidate in (*(base / entry for base in bases), *(base / tail for base in bases)):
        if candidate.exists():
            return candidate
    raise DatasetError(f"{where}: there is no {bases[0] / entry}. Mend the path or put the images there")


def _images(place: Path, bases: list[Path]) -> list[Path]:
    """The images of a folder and those below it, or of a list file."""
    if place.is_dir():
        return [place / name for name in sorted(list_images(place))]
    found, absent = [], []
    for line in place.read_text("utf-8-sig", "replace").splitlines():
        if not line.strip():
            continue
        name = PurePosixPath(line.strip())
        path = next((base / name for base in (place.parent, *bases) if (base / name).is_file()), None)
        if path is None:
            absent.append(str(name))
        else:
            found.append(path)
    if absent:
        raise DatasetError(f"{place} names {len(absent):,} images that are missing: {listed(absent)}. Copy them there")
    return found


def _yaml(folder: Path) -> Path | None:
    """The description: data.yaml first, then any other YAML file with class names and images."""
    paths = sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")), key=lambda path: (path.stem != "data", path.name))
    for path in paths:
        text = path.read_text("utf-8-sig", "replace")[:100_000]
        if re.search(r"^names\s*:", text, re.MULTILINE) and re.search(r"^(train|val)\s*:", text, re.MULTILINE):
            return path
    return None


def _label_folders(folder: Path) -> Iterator[Path]:
    yield folder / "labels"
    yield from folder.glob("*/labels")


def _has_text(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in ("*.txt", "*/*.txt"))


# ---------------------------------------------------------------------------------------------------------------- YAML


KEYS = ("names", "path", "train", "val", "test")


def read_description(path: Path) -> dict[str, Value]:
    """The keys of `KEYS` in a YAML file: texts, lists and maps of texts, on one line or one entry a line.

    Raises:
        DatasetError: one of them has another form.
    """
    blocks: dict[str, list[str]] = {}
    key = None
    for raw in path.read_text("utf-8-sig", "replace").splitlines():
        line = _without_comment(raw)
        if not line.strip():
            continue
        match = re.match(r"([A-Za-z_][\w-]*)\s*:(?:\s+(.*))?$", line)
        if match:
            key = match[1]
            blocks[key] = [match[2] or ""]
        elif key is not None:
            blocks[key].append(line.strip())
    return {key: _value(blocks[key], f"{path}: {key}") for key in KEYS if key in blocks and any(blocks[key])}


def _value(lines: list[str], where: str) -> Value:
    head, entries = lines[0].strip(), [line for line in lines[1:] if line]
    whole = " ".join([head, *entries]).strip()
    if head[:1] in ("[", "{"):
        if whole[-1:] != {"[": "]", "{": "}"}[head[0]]:
            raise _unreadable(where, whole)
        parts = _parts(whole[1:-1], where)
        return [_scalar(part, where) for part in parts] if head[0] == "[" else _map(parts, where)
    if head and not entries:
        return _scalar(head, where)
    if head:
        raise _unreadable(where, whole)
    if all(entry.startswith("- ") for entry in entries):
        return [_scalar(entry[2:], where) for entry in entries]
    return _map(entries, where)


def _map(entries: list[str], where: str) -> dict[str, str]:
    table = {}
    for entry in entries:
        key, colon, value = entry.partition(":")
        if not colon or not value.strip():
            raise _unreadable(where, entry)
        table[_scalar(key, where)] = _scalar(value, where)
    return table


def _parts(text: str, where: str) -> list[str]:
    """What stands between commas outside quotes."""
    parts = re.findall(r"""((?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*'|[^,"'])+)(?:,|$)|(.)""", text)
    if any(stray.strip(" ,") for _, stray in parts):
        raise _unreadable(where, text)
    return [part.strip() for part, _ in parts if part.strip()]


def _scalar(text: str, where: str) -> str:
    text = text.strip()
    if text[:1] == '"':
        try:
            value = json.loads(text)
        except ValueError:
            raise _unreadable(where, text) from None
        return str(value)
    if text[:1] == "'":
        if len(text) < 2 or text[-1] != "'":
            raise _unreadable(where, text)
        return text[1:-1].replace("''", "'")
    if text[:1] in tuple("|>&*!%@`[{") or text.startswith("- "):
        raise _unreadable(where, text)
    return text


def _without_comment(line: str) -> str:
    match = re.match(r"""((?:"(?:\\.|[^"\\])*"|(?<!\w)'(?:''|[^'])*'|(?<!\s)\#|[^\#])*)""", line)
    return "" if line.lstrip().startswith("#") else (match[1] if match else line).rstrip()


def _unreadable(where: str, text: str) -> DatasetError:
    return DatasetError(
        f"{where}: {text!r:.80} is a form of YAML that is not read here. Write lists as [a, b], one `- a` a line, or "
        "one `0: a` a line, and paths as plain text"
    )
