"""Pascal VOC's annotation files in folders of any names: which image each means, and which lists there are.

The image of an annotation file has its name, except for the suffix, and is beside it or in a folder that differs only
in the words for images and annotations (`train/annotations/a.xml`, `train/images/a.jpg`); else it is the only one with
that name in a folder that has no annotation files of its own; else the one that the file's `filename` or `path` names.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator

from codetr_cli.annotations.data_files import read_lines
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.annotations.survey import Survey, folder_of, stem_of
from codetr_cli.formats.folder_splits import place_of
from codetr_cli.formats.split_names import WORDS
from codetr_cli.formats.voc_xml import VocFile
from codetr_cli.images.image_files import IMAGE_SUFFIXES

LIST_FOLDERS = ("main", "imagesets", "", "lists", "list", "splits", "split", "sets")
"""Names of the folders of lists, in lower case, the preferred first; "" is the data set's own."""
LISTS = {**WORDS, "default": "all", "all": "all"}
_JPEG = (".jpg", ".jpeg")


class ImageFinder:
    """Finds the images of annotation files.

    Args:
        images: names of all images, relative to the data set's folder.
        files: names of all annotation files.
    """

    def __init__(self, images: Iterable[str], files: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        self._by_base: dict[str, list[str]] = {}
        for image in images:
            base = image.rpartition("/")[2]
            self._by_stem.setdefault(_plain(stem_of(base)), []).append(image)
            self._by_base.setdefault(_plain(base), []).append(image)
        folders = dict.fromkeys(folder_of(name) for names in self._by_base.values() for name in names)
        self._places = {place_of(folder) for folder in folders}
        self._places_of_files = {place_of(folder) for folder in dict.fromkeys(map(folder_of, files))}
        self._names = ImageNames(name for names in self._by_base.values() for name in names)

    def find(self, name: str, file: VocFile) -> str | None:
        """The image of an annotation file; None if there is none, or if several are possible."""
        folder = folder_of(name)
        found = self.of_same_name(name, {each.replace("\\", "/").rpartition("/")[2] for each in file.names})
        if found is not None:
            return found
        for each in file.names:
            place, _, last = each.replace("\\", "/").strip().rpartition("/")
            near = f"{folder}/{place}" if place else folder
            found = self._best(folder, stem_of(last), self._by_base.get(_plain(last), ()), {last}, near)
            if found is None and (other := self._names.find(each, folder)) and self._may_pair(folder, other):
                found = other
            if found is not None:
                return found
        return None

    def of_same_name(self, name: str, written: Collection[str] = ()) -> str | None:
        """The image with the name of an annotation file, in a folder that may be of the same images; see `find`.

        Args:
            name: of the file.
            written: names of images in it, which decide between several.
        """
        folder, _, base = name.rpartition("/")
        stem = stem_of(base)
        alike = self._by_stem.get(_plain(stem)) or self._by_base.get(_plain(stem), [])  # a.xml, else a.jpg.xml
        return self._best(folder, stem, alike, written)

    def _best(
        self, folder: str, stem: str, images: Iterable[str], written: Collection[str], near: str | None = None
    ) -> str | None:
        """The only image that may belong to a folder of annotations and fits best; None if there is none or a tie."""
        usable = [image for image in images if self._may_pair(folder, image)]
        if len(usable) <= 1:
            return usable[0] if usable else None

        def rank(image: str) -> tuple[bool, bool, int, bool, bool, bool]:
            own, _, base = image.rpartition("/")
            common = _common_parts(near if near is not None else folder, own)
            exact = stem_of(base) == stem or base == stem
            return own == folder, place_of(own) == place_of(folder), common, exact, base in written, _is_jpeg(base)

        order = sorted(usable, key=rank, reverse=True)
        return order[0] if rank(order[0]) > rank(order[1]) else None

    def _may_pair(self, folder: str, image: str) -> bool:
        """Whether an image can be one of a folder of annotations: not if its folder has annotations of its own."""
        beside = folder_of(image)
        own, other = place_of(folder), place_of(beside)
        if own == other:
            return True
        if other in self._places_of_files:
            return False
        if not own or not other or _is_part(own, other) or _is_part(other, own):
            return True
        both_named = own != folder.lower() and other != beside.lower()  # annotations/cats, images/dogs
        return own not in self._places and not both_named


def find_lists(survey: Survey, files: Iterable[str]) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """The names of annotation files in lists such as ImageSets/Main/train.txt or train.txt.

    Args:
        survey: of the data set's folder.
        files: names of the annotation files, relative to it.

    Returns:
        by split, by list: names of annotation files; lines without such a file stay as they are. And the names of text
        files that look like lists by their names, but name no such file.

    Raises:
        DatasetError: a list cannot be read.
    """
    paths = _list_files(survey)
    if not paths:
        return {}, []
    find = file_finder(files)
    lists: dict[str, dict[str, list[str]]] = {}
    others = []
    for path, split in paths:
        lines = [line for line in read_lines(survey.folder / path) if line]
        base = "/".join(part for part in folder_of(path).split("/") if part.lower() not in LIST_FOLDERS)
        names = [find(line, base) for line in lines]
        if any(names):
            resolved = [name or line for name, line in zip(names, lines, strict=True)]
            lists.setdefault(split, {})[path] = resolved
        elif lines:
            others.append(path)
    return lists, others


def list_paths(survey: Survey) -> list[str]:
    """The names of all files that may be lists."""
    return [path for path, _ in _list_files(survey)]


def _list_files(survey: Survey) -> list[tuple[str, str]]:
    """The names and splits of lists in the folder, or in folders of the same name, that is preferred."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in survey.with_suffix(".txt"):
        folder, _, base = name.rpartition("/")
        words = [word for word in stem_of(base).lower().replace("-", "_").split("_") if word not in ("list", "set")]
        last = folder.rpartition("/")[2].lower()
        if len(words) == 1 and words[0] in LISTS and last in LIST_FOLDERS:
            found.setdefault(last, []).append((name, LISTS[words[0]]))
    return next((found[kind] for kind in LIST_FOLDERS if kind in found), [])


def file_finder(files: Iterable[str]) -> Callable[[str, str], str | None]:
    """A function that finds the annotation file which a line of a list means, seen from a folder.

    Args:
        files: names of annotation files; a suffix `.xml` does not count.
    """
    by_place: dict[str, str | None] = {}
    for name in files:
        place = _place_of_stem(stem_of(name) if _suffix(name) == ".xml" else name)
        by_place[place] = None if place in by_place else name
    names = ImageNames(by_place)

    def find(line: str, base: str) -> str | None:
        for spelling in _spellings(line):
            wanted = _place_of_stem(spelling)
            place = names.find(wanted, place_of(base))
            if place is not None and _is_same_folder(wanted, place):
                return by_place[place]
        return None

    return find


def _is_same_folder(one: str, other: str) -> bool:
    """Whether two names are in folders of the same name, as far as both have one."""
    first, second = (folder_of(name).rpartition("/")[2].lower() for name in (one, other))
    return not first or not second or first == second


def _place_of_stem(stem: str) -> str:
    folder, _, base = stem.replace("\\", "/").removeprefix("./").rpartition("/")
    place = place_of(folder)
    return f"{place}/{base}" if place else base


def _spellings(line: str) -> Iterator[str]:
    """What a line may mean: a name, a name and a flag (-1, 0, 1), or the names of an image and an annotation file."""
    words = line.rsplit(maxsplit=1)
    spellings = [line]
    if len(words) == 2:
        spellings += [words[0]] if words[1] in ("-1", "0", "1") else []
        spellings += [word for word in reversed(words) if _suffix(word) == ".xml" or _suffix(word) in IMAGE_SUFFIXES]
    for each in spellings:
        plain = each.strip("\"' ")
        if plain:
            yield stem_of(plain) if _suffix(plain) == ".xml" or _suffix(plain) in IMAGE_SUFFIXES else plain


def _suffix(name: str) -> str:
    return os.path.splitext(name.strip("\"' "))[1].lower()  # noqa: PTH122 (a Path a line is slow)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _is_jpeg(name: str) -> bool:
    return name.lower().endswith(_JPEG)


def _is_part(inner: str, outer: str) -> bool:
    return inner.startswith(f"{outer}/") or inner.endswith(f"/{outer}")


def _common_parts(one: str, other: str) -> int:
    """The number of equal parts at the start and, in what remains, at the end of two paths."""
    first, second = one.split("/"), other.split("/")
    count = 0
    while first and second and first[0] == second[0]:
        first, second, count = first[1:], second[1:], count + 1
    while first and second and first[-1] == second[-1]:
        first, second, count = first[:-1], second[:-1], count + 1
    return count
