"""Pascal VOC folders: Annotations/*.xml, JPEGImages/, ImageSets/Main/{train,val,trainval,test}.txt.

Pixels: the left upper one is (1, 1) and xmax, ymax belong to the box, as in the published development kit. So
x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax; labelling tools that count from 0 are off by one pixel then, which
is told where a 0 shows it. Classes are in alphabetical order, as the published twenty are, with ids from 1. Objects
marked difficult are crowd regions (iscrowd 1): not trained on, in evaluation neither right nor wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from codetr_cli.data.formats.detect import list_images
from codetr_cli.data.formats.intermediate import MAX_SHARE, Box, Contents, Picture, choose_splits, listed
from codetr_cli.data.headers import ImageFileError, read_header
from codetr_cli.errors import DatasetError

TITLE = "Pascal VOC"
SETS = ("train", "val", "trainval", "test")
READERS = 16


@dataclass(frozen=True)
class _Object:
    """One object as its file has it."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class _File:
    """One annotation file; `size` is (height, width), (0, 0) if it is not told."""

    size: tuple[int, int]
    objects: list[_Object]


def is_voc(folder: Path) -> bool:
    """Whether a folder has the layout."""
    annotations = folder / "Annotations"
    return (
        (folder / "JPEGImages").is_dir() and annotations.is_dir() and next(annotations.glob("*.xml"), None) is not None
    )


def sources(folder: Path) -> Iterable[Path]:
    """The files and folders that decide what `read_voc` returns, images' contents aside."""
    yield from (folder / "Annotations", folder / "JPEGImages")
    yield from (folder / "ImageSets" / "Main" / f"{name}.txt" for name in SETS)
    yield from sorted((folder / "Annotations").glob("*.xml"))


def read_voc(folder: Path, *, skip_bad: bool = False) -> Contents:
    """Reads all images that the lists name; without lists, all that have an annotation file.

    Args:
        folder: of the data set.
        skip_bad: leave out images that are missing.

    Raises:
        DatasetError: broken files, names without an annotation file or image, boxes whose corners are exchanged.
    """
    chosen, origins, notes = choose_splits(_lists(folder))
    stems = list(dict.fromkeys(stem for names in chosen.values() for stem in names))
    if not stems:
        raise DatasetError(f"{folder / 'ImageSets' / 'Main'} names no image: its lists are empty. Fill or delete them")
    annotations = folder / "Annotations"
    absent = [stem for stem in stems if not (annotations / f"{stem}.xml").is_file()]
    if absent:
        raise DatasetError(
            f"{len(absent):,} of the {len(stems):,} names of {folder / 'ImageSets' / 'Main'} have no file in "
            f"{annotations}: {listed(absent)}. Add NAME.xml for each or remove them from the lists"
        )
    files, left_out = _images(folder / "JPEGImages", stems, skip_bad=skip_bad)
    with ThreadPoolExecutor(READERS) as pool:
        read = dict(zip(stems, pool.map(lambda stem: _read(annotations / f"{stem}.xml"), stems), strict=True))
    class_names = sorted({found.name for file in read.values() for found in file.objects})
    if not class_names:
        raise DatasetError(f"no file of {annotations} has an object: check that the right folder was given")
    labels = {name: label for label, name in enumerate(class_names)}
    zeros = sum(min(found.corners[:2]) < 0 for file in read.values() for found in file.objects)
    if zeros:
        notes.append(
            f"{zeros:,} boxes begin at pixel 0, so the tool that wrote them counts from 0; they are read as the layout "
            "says, from 1, and lie one pixel off at their left and upper edges"
        )
    pictures = {
        stem: Picture(
            file_name=files[stem],
            height=(size := _size(file, folder / "JPEGImages" / files[stem]))[0],
            width=size[1],
            source=f"{stem}.xml",
            boxes=[Box(labels[found.name], found.corners, found.difficult) for found in file.objects],
        )
        for stem, file in read.items()
        if stem in files
    }
    return Contents(
        title=TITLE,
        images_dir=folder / "JPEGImages",
        class_names=class_names,
        first_id=1,
        splits={name: [pictures[stem] for stem in names if stem in files] for name, names in chosen.items()},
        left_out=left_out,
        places={
            name: "Annotations/" if origin == "all" else f"ImageSets/Main/{origin}.txt"
            for name, origin in origins.items()
        },
        val_is_test=origins.get("val") == "test",
        notes=notes,
    )


def _lists(folder: Path) -> dict[str, list[str]]:
    """Names of images by list; "all" when there is no list."""
    lists = {}
    for name in SETS:
        path = folder / "ImageSets" / "Main" / f"{name}.txt"
        if path.is_file():
            lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
            lists[name] = [_stem(line) for line in lines if line.strip()]
    return lists or {"all": sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))}


def _stem(line: str) -> str:
    """The name in a line, which may end in a mark for whether a class is in the image, or in the file's suffix."""
    words = line.strip().rsplit(maxsplit=1)
    name = words[0] if len(words) == 2 and words[1] in ("-1", "0", "1") else line.strip()
    return name[:-4] if name.lower().endswith((".jpg", ".png", ".xml")) else name


def _images(folder: Path, stems: list[str], *, skip_bad: bool) -> tuple[dict[str, str], list[str]]:
    """The image file of each name, and the names that are left out because they have none.

    Raises:
        DatasetError: some have none, or too many where they may be left out.
    """
    # JPEG last, so that it counts where there are two files of one name.
    names = sorted(list_images(folder), key=lambda name: name.lower().endswith((".jpg", ".jpeg")))
    files = {name.rpartition(".")[0]: name for name in names}
    absent = [stem for stem in stems if stem not in files]
    if absent and (not skip_bad or len(absent) > MAX_SHARE * len(stems)):
        raise DatasetError(
            f"{len(absent):,} of {len(stems):,} images are missing in {folder}: {listed(absent)}. Copy them there, or "
            "remove their names from ImageSets/Main (without lists: their files from Annotations)"
        )
    return files, [f"{stem} (no such file)" for stem in absent]


def _read(path: Path) -> _File:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DatasetError(
            f"{path} is not valid XML: {error}. Export it again, or remove it and its name from ImageSets/Main"
        ) from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}. Check its permissions") from error
    objects = [_object(element, f"{path}: object {index}") for index, element in enumerate(root.iter("object"), 1)]
    height, width = (_number(root.findtext(f"size/{side}"), default=0.0) for side in ("height", "width"))
    return _File((int(height), int(width)), objects)


def _object(element: ElementTree.Element, where: str) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DatasetError(f"{where} has no <name>. Name its class, or remove it")
    corners = [_number(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
    if not all(map(math.isfinite, corners)):
        raise DatasetError(f"{where} ({name}) lacks a number of <bndbox> (xmin, ymin, xmax, ymax). Add or remove it")
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        raise DatasetError(f"{where} ({name}) ends before it begins: {x1:g}, {y1:g}, {x2:g}, {y2:g}. Redraw it")
    return _Object(name, (x1 - 1, y1 - 1, x2, y2), _number(element.findtext("difficult"), default=0.0) == 1)


def _number(text: str | None, default: float = math.nan) -> float:
    try:
        return float(text) if text is not None else default
    except ValueError:
        return default


def _size(file: _File, image: Path) -> tuple[int, int]:
    """(height, width) as annotated, else as the image has it."""
    if min(file.size) > 0:
        return file.size
    try:
        return read_header(image).size
    except ImageFileError as error:
        raise DatasetError(f"{image} cannot be used: {error}. Copy it again") from error
