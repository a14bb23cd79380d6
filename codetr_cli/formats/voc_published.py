"""The published folder of Pascal VOC: Annotations/, JPEGImages/, ImageSets/Main/{train,val,trainval,test}.txt.

A name of a list is that of both files, without suffix, and may have folders in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from codetr_cli.annotations.data_files import is_file, read_lines, without_file
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.survey import Survey, stem_of
from codetr_cli.errors import DatasetError, listed
from codetr_cli.formats.intermediate import SHOWN
from codetr_cli.formats.split_names import WORDS
from codetr_cli.formats.voc_folders import file_finder
from codetr_cli.images.image_files import IMAGE_SUFFIXES, is_debris, list_images

SETS = ("train", "val", "trainval", "test")
ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"
_SUFFIXES = sorted(IMAGE_SUFFIXES, key=lambda suffix: suffix not in (".jpg", ".jpeg"))


def roots(survey: Survey) -> dict[str, str]:
    """The folders in the published layout, "" for the survey's own, and the first annotation file of each."""
    first: dict[str, str] = {}
    for name in survey.with_suffix(".xml"):
        if ANNOTATIONS in name:
            parts = name.split("/")[:-1]
            if ANNOTATIONS in parts:
                first.setdefault("/".join(parts[: parts.index(ANNOTATIONS)]), name)
    return {root: name for root, name in first.items() if (survey.folder / root / IMAGES).is_dir()}


def list_files(folder: Path) -> list[Path]:
    """The text files in ImageSets/Main/."""
    return sorted(path for path in (folder / "ImageSets" / "Main").glob("*.txt") if not is_debris(path.name))


def read_lists(survey: Survey, names: NameRule) -> dict[str, dict[str, list[str]]]:
    """Names of images by split and list: those of train.txt, ..., else of CVAT's default.txt, else of classes' lists.

    VoTT writes only lists of classes, such as cat_train.txt, which have all images of the split.

    Raises:
        DatasetError: a list cannot be read, or a name leads out of the folder.
    """
    files = {path.stem: path for path in list_files(survey.folder)}
    named = sorted(files, key=lambda stem: stem not in SETS)  # val.txt rather than valid.txt
    chosen: dict[str, list[Path]] = {}
    for stem in named:
        if stem.lower() in WORDS:
            chosen.setdefault(WORDS[stem.lower()], [files[stem]])
    if not chosen and "default" in files:
        chosen = {"all": [files["default"]]}
    if not chosen:
        for path in files.values():
            word = path.stem.rpartition("_")[2].lower()
            if word in WORDS:
                chosen.setdefault(WORDS[word], []).append(path)
    present = set(stems_of(survey))
    find: Callable[[str, str], str | None] | None = None
    lists: dict[str, dict[str, list[str]]] = {}
    for split, paths in chosen.items():
        for path in paths:
            stems = [_stem(line) for line in read_lines(path) if line]
            names.check(stems, survey.folder / ANNOTATIONS, str(path))
            if not present.issuperset(stems):
                find = find or file_finder(present)
                stems = [stem if stem in present else find(stem, "") or stem for stem in stems]
            lists.setdefault(split, {})[f"ImageSets/Main/{path.name}"] = stems
    return lists


def stems_of(survey: Survey) -> list[str]:
    """The names of the annotation files, without folder and suffix."""
    prefix = f"{ANNOTATIONS}/"
    return sorted(stem_of(name[len(prefix) :]) for name in survey.with_suffix(".xml") if name.startswith(prefix))


def check_present(survey: Survey, stems: list[str]) -> None:
    """Raises a DatasetError if some names of lists have no annotation file."""
    folder, present = survey.folder, set(stems_of(survey))
    absent, count = without_file(
        stems, lambda stem: stem in present or ("/" in stem and is_file(annotation_path(folder, stem)))
    )
    if absent:
        raise DatasetError(
            f"{count} of the {len(stems):,} names of {folder / 'ImageSets' / 'Main'} have no file in "
            f"{folder / ANNOTATIONS}: {listed(absent, SHOWN)}. Add NAME.xml for each or remove them from the lists"
        )


def annotation_paths(survey: Survey, stems: Iterable[str]) -> dict[str, Path]:
    """The annotation file of each name."""
    prefix = f"{ANNOTATIONS}/"
    known = {stem_of(name[len(prefix) :]): name for name in survey.with_suffix(".xml") if name.startswith(prefix)}
    folder = survey.folder
    return {stem: folder / known[stem] if stem in known else annotation_path(folder, stem) for stem in stems}


def annotation_path(folder: Path, stem: str) -> Path:
    """The annotation file of a name; of an absolute one beside JPEGImages/, or beside the image."""
    path = folder / ANNOTATIONS / f"{stem}.xml"
    if path.parent.name == IMAGES:
        path = path.parent.with_name(ANNOTATIONS) / path.name
    return path


def find_images(folder: Path, stems: list[str]) -> tuple[dict[str, str], list[str]]:
    """The image of each name, as far as there is one, and all images, relative to JPEGImages/."""
    images = folder / IMAGES
    # JPEG last, so that it wins where there are two files of one name.
    names = sorted(list_images(images), key=lambda name: name.lower().endswith((".jpg", ".jpeg")))
    by_stem = {stem_of(name): name for name in names}
    files = {stem: by_stem[stem] for stem in stems if stem in by_stem}
    for stem in stems:
        if stem not in files and "/" in stem:  # not below JPEGImages/
            found = next((name for suffix in _SUFFIXES if is_file(images / (name := f"{stem}{suffix}"))), None)
            files.update({stem: found} if found else {})
    return files, names


def _stem(line: str) -> str:
    """The name in a line, which may be followed by a flag (-1, 0, 1) of a class list, or end in a file suffix."""
    words = line.rsplit(maxsplit=1)
    name = words[0] if len(words) == 2 and words[1] in ("-1", "0", "1") else line
    name = name.strip('"') if name.startswith('"') else name
    suffix = name[len(stem_of(name)) :].lower()
    return stem_of(name) if suffix == ".xml" or suffix in IMAGE_SUFFIXES else name
