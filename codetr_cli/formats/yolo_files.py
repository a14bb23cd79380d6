"""Which label file belongs to which image of a YOLO data set.

For images/train/1.jpg it is labels/train/1.txt (the last folder with `images` in its name), else images/train/1.txt
beside it, as Darknet and labelImg have it, else images/train/labels/1.txt, else labels/images/train/1.txt at the top.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from codetr_cli.annotations.data_files import is_file
from codetr_cli.annotations.survey import Survey, folder_of, stem_of
from codetr_cli.formats.voc_folders import ImageFinder
from codetr_cli.formats.yolo_names import is_names_file

SUFFIX = ".txt"
TRIES = 100
"""Files that are opened to find out whether there are labels at all."""
_IMAGES = re.compile(r"(?i)jpegimages|images")
_RUNS = re.compile(r"(^|.*/)runs/(detect|segment|pose|obb|track|predict|val)[^/]*/")
"""Folders of predictions that Ultralytics' programs write."""


class LabelFiles:
    """The label files of a data set.

    Args:
        survey: of its folder.

    Attributes:
        names: of the text files that may be label files, relative to the folder.
    """

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._prefix = f"{survey.folder}{os.sep}"
        self.names = {name for name in survey.with_suffix(SUFFIX) if not _RUNS.match(name)}
        self._accented = {_composed(name): name for name in self.names if not name.isascii()}
        self._by_image: Mapping[str, str | None] = {}

    def find(self, image: Path) -> Path | None:
        """The label file of an image; None if it has none."""
        path = str(image)
        if not path.startswith(self._prefix):
            return next((Path(each) for each in islice(_candidates(path), 2) if is_file(each)), None)
        name = path[len(self._prefix) :].replace(os.sep, "/")
        found = self.find_name(name)
        return None if found is None else self._survey.folder / found

    def find_name(self, image: str) -> str | None:
        """As `find`, by names relative to the folder."""
        for name in _candidates(image):
            if name in self.names or (self._survey.linked and is_file(self._survey.folder / name)):
                return name
        if not image.isascii():  # macOS writes accents as characters of their own, in some archives
            for name in map(_composed, _candidates(image)):
                if name in self._accented:
                    return self._accented[name]
        return self._by_image.get(image)

    @staticmethod
    def expected(image: Path) -> Path:
        """Where the label file of an image would be."""
        return Path(next(_candidates(str(image))))

    def match_by_stem(self, images: Iterable[str]) -> None:
        """From now on, finds label files in any folder, by the names of images without folders, where only one fits.

        Folders pair as those of Pascal VOC do, see `voc_folders`: `lbls/train` is not for `imgs/val`.

        Args:
            images: names of the images, relative to the folder.
        """
        images = list(images)
        stems = {_composed(_bare(image)).casefold() for image in images}
        files = sorted(name for name in self.names if _composed(_bare(name)).casefold() in stems)
        finder = ImageFinder(images, files)
        by_image: dict[str, str | None] = {}
        for name in files:
            image = finder.of_same_name(name)
            if image is not None:
                by_image[image] = None if image in by_image else name
        self._by_image = by_image

    def unused(self, used: Iterable[Path]) -> list[str]:
        """Label files of no image, among those in folders of label files; others may be texts of any kind."""
        taken = {str(path)[len(self._prefix) :].replace(os.sep, "/") for path in used}
        folders = {folder_of(name) for name in taken}
        rest = sorted(
            name
            for name in self.names - taken
            if (folder_of(name) in folders or _is_in_labels(name)) and not is_names_file(name)
        )
        opened = rest[:TRIES]
        return [name for name in opened if is_label_text(self._survey.head(name))] + rest[TRIES:]


def find_label_file(survey: Survey) -> str | None:
    """The first label file that belongs to an image, by its content; None if there is none."""
    files = LabelFiles(survey)
    texts = {_bare(name): name for name in files.names}
    if not texts:
        return None
    images = [name for name in survey.images if _bare(name) in texts]
    paired = (name for image in images if (name := files.find_name(image)) is not None)
    found = _first_with_labels(survey, paired)
    if found is not None:
        return found
    stems = set(map(_bare, images))
    named = sorted(files.names, key=lambda name: (not _is_in_labels(name), name))
    return _first_with_labels(
        survey, (name for name in named if _bare(name) in stems or survey.linked or not survey.images)
    )


def _bare(name: str) -> str:
    """The name of a file without folders and suffix."""
    return stem_of(name.rpartition("/")[2])


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_in_labels(name: str) -> bool:
    return "labels" in name.lower().split("/")[:-1]


def _first_with_labels(survey: Survey, names: Iterator[str]) -> str | None:
    """The first of some files with rows of labels, of not more than `TRIES`; else the first empty one below labels/."""
    empty = None
    for name in islice(names, TRIES):
        if is_names_file(name):
            continue
        text = survey.head(name)
        if is_label_text(text):
            return name
        if not text.strip() and _is_in_labels(name):
            empty = empty or name
    return empty


def is_label_text(text: str) -> bool:
    """Whether the first lines of a file have a whole number and at least four other numbers each."""
    lines = [line for line in islice(text.split("\n"), 20) if line.strip()]
    rows = [line.split() for line in (lines[:-1] if len(lines) == 20 else lines) or lines]
    return bool(rows) and all(_is_row(row) for row in rows)


def find_almost_label(survey: Survey) -> str:
    """What is wrong in the first text file of an image that has almost rows of labels, a phrase; empty if none has."""
    stems = set(map(_bare, survey.images))
    names = (name for name in sorted(LabelFiles(survey).names) if _bare(name) in stems and not is_names_file(name))
    for name in islice(names, TRIES):
        lines = enumerate(survey.head(name).split("\n"), 1)
        number, line = next(((number, line.strip()) for number, line in lines if line.strip()), (0, ""))
        problem = _almost(line)
        if problem:
            return f"{survey.folder / name}, line {number}: {line!r:.80} is almost `class cx cy w h`, but {problem}"
    return ""


def _almost(line: str) -> str:
    """What makes a line no row of labels, if its other words are four relative numbers; else empty."""
    words = line.split()
    if len(words) == 5 and any("," in word for word in words[1:]) and _are_relative(line.replace(",", ".").split()[1:]):
        return "has decimal commas. Write points"
    words = re.split(r"[\s,;]+", line)
    if len(words) < 5 or not _are_relative(words[-4:]):
        return ""
    label = words[:-4]
    if len(label) == 1 and label[0].isdigit():
        separated = "," in line or ";" in line
        return "its numbers are not separated by blanks. Separate them by blanks alone" if separated else ""
    if any(re.fullmatch(r"[-+.\d]+", word) for word in label):
        return ""
    return "the class is not a number. Write its number among the class names, from 0"


def _are_relative(words: list[str]) -> bool:
    try:
        return all(0 <= float(word) <= 1 for word in words)
    except ValueError:
        return False


def _is_row(words: list[str]) -> bool:
    if len(words) < 5:
        return False
    try:
        numbers = [float(word) for word in words[:9]]
    except ValueError:
        return False
    return all(map(math.isfinite, numbers)) and numbers[0] >= 0 and numbers[0] == int(numbers[0])


def _candidates(image: str) -> Iterator[str]:
    """Where the label file of an image may be, in the order in which they are looked for."""
    folder, slash, file = image.replace(os.sep, "/").rpartition("/")
    stem = stem_of(file)
    parts = folder.split("/")
    for pattern in (_IMAGES.fullmatch, _IMAGES.search):
        at = next((index for index in reversed(range(len(parts))) if pattern(parts[index])), None)
        if at is not None:
            for word in ("labels", "Labels") if parts[at][:1].isupper() else ("labels",):
                yield "/".join([*parts[:at], _IMAGES.sub(word, parts[at]), *parts[at + 1 :], stem + SUFFIX])
    yield f"{folder}{slash}{stem}{SUFFIX}"
    yield f"{folder}{slash}labels/{stem}{SUFFIX}"
    yield f"labels/{folder}{slash}{stem}{SUFFIX}"
