"""Pascal VOC folders: Annotations/*.xml, JPEGImages/, ImageSets/Main/{train,val,trainval,test}.txt.

Pixels: the upper left one is (1, 1), and xmax, ymax are inside the box, as in the published development kit. So
x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax. Labelling tools that count from 0 are off by one pixel then; a note
reports it where a 0 shows it. Classes are in alphabetical order, as the published twenty are, with ids from 1. Objects
marked difficult are crowd regions (iscrowd 1): not trained on, ignored in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from codetr_cli.data.formats.intermediate import MAX_SHARE, SHOWN, THREADS, ParsedBox, ParsedDataset, ParsedImage
from codetr_cli.data.formats.splits import choose_splits
from codetr_cli.data.headers import ImageFileError, read_header
from codetr_cli.data.image_files import list_images
from codetr_cli.data.targets import Size
from codetr_cli.errors import DatasetError, listed

TITLE = "Pascal VOC"
SETS = ("train", "val", "trainval", "test")


class _Object(NamedTuple):
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class _File(NamedTuple):
    """One annotation file; `size` is (0, 0) if the file does not state it."""

    size: Size
    objects: list[_Object]


def matches(folder: Path) -> bool:
    """Whether a folder has the layout."""
    annotations = folder / "Annotations"
    return (
        (folder / "JPEGImages").is_dir() and annotations.is_dir() and next(annotations.glob("*.xml"), None) is not None
    )


def files_read(folder: Path) -> Iterable[Path]:
    """The files and folders that decide the result of `read`, except the content of images."""
    yield from (folder / "Annotations", folder / "JPEGImages")
    yield from (folder / "ImageSets" / "Main" / f"{name}.txt" for name in SETS)
    yield from sorted((folder / "Annotations").glob("*.xml"))


def read(folder: Path, *, skip_bad: bool = False) -> ParsedDataset:
    """Reads all images in the lists; without lists, all that have an annotation file.

    Raises:
        DatasetError: broken files, names without an annotation file or image, boxes whose corners are swapped.
    """
    chosen, origins, notes = choose_splits(_lists(folder))
    stems = list(dict.fromkeys(stem for names in chosen.values() for stem in names))
    if not stems:
        raise DatasetError(f"the lists in {folder / 'ImageSets' / 'Main'} are empty. Fill or delete them")
    annotations = folder / "Annotations"
    absent = [stem for stem in stems if not (annotations / f"{stem}.xml").is_file()]
    if absent:
        raise DatasetError(
            f"{len(absent):,} of the {len(stems):,} names of {folder / 'ImageSets' / 'Main'} have no file in "
            f"{annotations}: {listed(absent, SHOWN)}. Add NAME.xml for each or remove them from the lists"
        )
    files, skipped = _images(folder / "JPEGImages", stems, skip_bad=skip_bad)
    with ThreadPoolExecutor(THREADS) as pool:
        parsed = dict(zip(stems, pool.map(lambda stem: _read_file(annotations / f"{stem}.xml"), stems), strict=True))
    class_names = sorted({item.name for file in parsed.values() for item in file.objects})
    if not class_names:
        raise DatasetError(f"no file of {annotations} has an object: check that the folder is the right one")
    labels = {name: label for label, name in enumerate(class_names)}
    from_zero = sum(min(item.corners[:2]) < 0 for file in parsed.values() for item in file.objects)
    if from_zero:
        notes.append(
            f"{from_zero:,} boxes start at pixel 0, so the tool that wrote them counts from 0; they are read as the "
            "layout specifies, from 1, and are one pixel off at their left and upper edges"
        )
    images = {
        stem: ParsedImage(
            file_name=files[stem],
            height=(size := _size(file, folder / "JPEGImages" / files[stem]))[0],
            width=size[1],
            label_file=f"{stem}.xml",
            boxes=[ParsedBox(labels[item.name], item.corners, item.difficult) for item in file.objects],
        )
        for stem, file in parsed.items()
        if stem in files
    }
    return ParsedDataset(
        title=TITLE,
        images_dir=folder / "JPEGImages",
        class_names=class_names,
        first_id=1,
        splits={name: [images[stem] for stem in names if stem in files] for name, names in chosen.items()},
        skipped=skipped,
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
    """The name in a line, which may be followed by a flag (-1, 0, 1) of a class list, or end in a file suffix."""
    words = line.strip().rsplit(maxsplit=1)
    name = words[0] if len(words) == 2 and words[1] in ("-1", "0", "1") else line.strip()
    return name[:-4] if name.lower().endswith((".jpg", ".png", ".xml")) else name


def _images(folder: Path, stems: list[str], *, skip_bad: bool) -> tuple[dict[str, str], list[str]]:
    """The image file of each name, and the names that are skipped because they have none.

    Raises:
        DatasetError: some have none; where skipping is allowed, too many.
    """
    # JPEG last, so that it wins where there are two files of one name.
    names = sorted(list_images(folder), key=lambda name: name.lower().endswith((".jpg", ".jpeg")))
    files = {name.rpartition(".")[0]: name for name in names}
    absent = [stem for stem in stems if stem not in files]
    if absent and (not skip_bad or len(absent) > MAX_SHARE * len(stems)):
        raise DatasetError(
            f"{len(absent):,} of {len(stems):,} images are missing in {folder}: {listed(absent, SHOWN)}. Copy them "
            "there, or remove their names from ImageSets/Main (without lists: their files from Annotations)"
        )
    return files, [f"{stem} (no such file)" for stem in absent]


def _read_file(path: Path) -> _File:
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
        raise DatasetError(f"{where} ({name}) has swapped corners: {x1:g}, {y1:g}, {x2:g}, {y2:g}. Redraw it")
    return _Object(name, (x1 - 1, y1 - 1, x2, y2), _number(element.findtext("difficult"), default=0.0) == 1)


def _number(text: str | None, default: float = math.nan) -> float:
    try:
        return float(text) if text is not None else default
    except ValueError:
        return default


def _size(file: _File, image: Path) -> Size:
    """The annotated size, else that of the image."""
    if min(file.size) > 0:
        return file.size
    try:
        return read_header(image).size
    except ImageFileError as error:
        raise DatasetError(f"{image} cannot be used: {error}. Copy it again") from error
