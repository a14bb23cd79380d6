"""Finds the image that an annotation means, whatever system, tool or person wrote its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from urllib.parse import unquote

from codetr_cli.annotations.survey import folder_of, stem_of

_URL_PREFIX = re.compile(r"(?i)[a-z][a-z0-9+.-]*://")
_ABSOLUTE = re.compile(r"(?i)[/\\]|[a-z]:|[a-z][a-z0-9+.-]*://")
_PARTS_OF_SETS = re.compile(r"(?i)(train|val|test)(?:ing|id|idation)?(?:[-_ ]?(?:images?|imgs?|set|data|\d{1,4}))?")
_USUAL = frozenset(("images", "image", "data", "imgs", "img", "jpegimages", "photos"))
"""Names of folders that say nothing about the images in them."""

Stated = Callable[[], Iterable[tuple[str, str]]]
"""Gives all names that the annotations of a data set have, each with the folder that it is relative to."""


class ImageNames:
    """The images of a data set, by their names relative to its folder, and how annotations may spell these.

    A name is searched as it is; then with the slashes of other systems and without `./`, blanks at its ends and escapes
    of URLs; then by its last parts, as many as there are (`/home/me/data/train/1.jpg` is `train/1.jpg`); each of these
    regardless of the form of accents, and of case. What fits several images is none.

    Shortening is for paths of other computers and for images in other folders than stated. It must not replace a
    missing image by one of the same name: an image found by the last parts only is none where the folders contradict
    it. They do if
    - a folder of the name has images here, but not this one (`cats/1.jpg` is not `dogs/1.jpg` if there is `cats/2.jpg`;
      and `1.jpg` stated in `train/` is not `valid/1.jpg` if there are images in `train/`);
    - both have folders of different parts of the set (`val/1.jpg` is not `train/1.jpg`);
    - both have other folders, and that of the image distinguishes images: other annotations name it, or there are
      images outside it, and it is not called `images` or the like;
    - another annotation has exactly this image.

    Args:
        names: of the images.
        stated: gives the names in all annotations; asked once, when images found by last parts are compared with it.
        among: all images of the data set, if `names` are only some of them.
        strict: whether folders can contradict; not for names of files other than images.
    """

    def __init__(
        self,
        names: Iterable[str],
        stated: Stated | None = None,
        among: Iterable[str] | None = None,
        *,
        strict: bool = True,
    ) -> None:
        self._exact = set(names)
        self._among = self._exact if among is None else set(among)
        self._stated, self._is_strict = stated, strict
        self._tables: dict[int, dict[str, str | None]] = {}

    def __len__(self) -> int:
        return len(self._exact)

    def find(self, name: str, folder: str = "") -> str | None:
        """The image that a name means; None if there is none, or if there are several.

        Args:
            name: as an annotation has it.
            folder: of the annotation, relative to the data set's folder; looked in first.
        """
        exact = self.find_exactly(name, folder)
        if exact is not None:
            return exact
        for spelling in spellings(name):
            parts = _parts(spelling)
            for start in range(len(parts)):
                for form, alike in enumerate(_FORMS):
                    found = self._table(form).get(alike("/".join(parts[start:])), "")
                    if found:
                        return found if self._agrees(name, parts, folder, found, len(parts) - start) else None
                    if found is None:
                        return None
        return None

    def find_exactly(self, name: str, folder: str = "") -> str | None:
        """The image with just this name, in a spelling of any system, in the annotation's folder or from the top."""
        for spelling in spellings(name):
            for place in (f"{folder}/{spelling}" if folder else spelling, spelling):
                if place in self._exact and (place != spelling or self._is_of(folder, place)):
                    return place
        return None

    def find_stem(self, stem: str, folder: str = "") -> str | None:
        """The image with a name without suffix, in a folder or, if only one image has it, in any."""
        for place in (f"{folder}/{stem}" if folder else stem, stem):
            found = self._stems().get(place)
            if found and self._agrees(stem, _parts(stem), folder, found, len(_parts(place))):
                return found
        found = self._stems().get(stem.rpartition("/")[2])
        return found if found and self._agrees(stem, _parts(stem), folder, found, 1) else None

    def has_folder_of(self, name: str) -> bool:
        """Whether there are images in a folder that has the name of one in a path."""
        return any(_plain(part) in self._folders for part in _parts(name.replace("\\", "/"))[:-1])

    def may_be(self, image: str, folder: str) -> bool:
        """Whether an annotation in a folder, which names no other, may be of an image that was found by its file."""
        return self._agrees("", [image.rpartition("/")[2]], folder, image, 1)

    def _is_of(self, folder: str, image: str) -> bool:
        """Whether an image at the top may be one that an annotation in a folder names without folder."""
        return not self._is_strict or "/" in image or not any(_plain(p) in self._folders for p in _parts(folder))

    def _agrees(self, name: str, parts: Sequence[str], folder: str, image: str, equal: int) -> bool:
        """Whether no folder contradicts that a name with some parts, of which the last are equal, means an image.

        Args:
            name: as an annotation has it.
            parts: of the name, the last one that of the file.
            folder: of the annotation.
            image: that was found.
            equal: number of last parts that are equal.
        """
        if not self._is_strict:
            return True
        own = [_plain(part) for part in folder_of(image).split("/") if part]
        dropped = [_plain(part) for part in parts[: max(len(parts) - equal, 0)]]
        added = own[: max(len(own) + 1 - equal, 0)]
        if not dropped and not added:
            return self._is_of(folder, image)  # only spelled in another way
        context = [_plain(part) for part in _parts(folder)] if added and not _is_of_other_computer(name) else []
        if any(part in self._folders and part not in own for part in (*context, *dropped)):
            return False
        if image in self._taken and (added or not own):  # the whole path of an image means this one
            return False
        if not dropped or not added:
            return True
        kinds = [{match[1].lower() for part in each if (match := _PARTS_OF_SETS.fullmatch(part))}
                 for each in (dropped, added)]  # fmt: skip
        if all(kinds):
            return bool(kinds[0] & kinds[1])
        if dropped[-1] in _USUAL:
            return True
        last = added[-1]
        if last in self._stated_folders:
            return False
        if last in _USUAL or kinds[1]:
            return True
        top = "/".join(image.split("/")[: len(added)])
        return all(other.startswith(f"{top}/") for other in self._among)

    @cached_property
    def _folders(self) -> set[str]:
        """The names of all folders with images at any depth, without case."""
        return {_plain(part) for folder in set(map(folder_of, self._among)) for part in folder.split("/") if part}

    @cached_property
    def _stated_names(self) -> tuple[set[str], set[str]]:
        """The images that annotations name exactly, and the names of all folders in annotations, without case."""
        taken: set[str] = set()
        folders: set[str] = set()
        for name, folder in self._stated() if self._stated is not None else ():
            found = self.find_exactly(name, folder)
            if found is not None:
                taken.add(found)
            folders.add(folder_of(name.replace("\\", "/")))
        return taken, {_plain(part) for folder in folders for part in _parts(folder)}

    @property
    def _taken(self) -> set[str]:
        return self._stated_names[0]

    @property
    def _stated_folders(self) -> set[str]:
        return self._stated_names[1]

    def _table(self, form: int) -> dict[str, str | None]:
        """The image of every ending of its path, in one form of spelling; None where there are several."""
        if form not in self._tables:
            self._tables[form] = _unique_endings(self._exact, _FORMS[form])
        return self._tables[form]

    def _stems(self) -> dict[str, str | None]:
        form = len(_FORMS)
        if form not in self._tables:
            self._tables[form] = _unique_endings(self._exact, stem_of)
        return self._tables[form]


def _unique_endings(names: Iterable[str], alike: Callable[[str], str]) -> dict[str, str | None]:
    """The only name with each ending; a whole name means its own image, whatever others end in it."""
    whole: dict[str, str | None] = {}
    endings: dict[str, str | None] = {}
    for name in names:
        ending = alike(name)
        whole[ending] = None if ending in whole else name
        while ending := ending.partition("/")[2]:
            endings[ending] = None if ending in endings else name
    return {**endings, **whole}


def _is_of_other_computer(name: str) -> bool:
    return _ABSOLUTE.match(name) is not None or ".." in re.split(r"[/\\]", name)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _as_written(name: str) -> str:
    return name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


_FORMS = (_as_written, _composed, _plain)


def spellings(name: str) -> Iterator[str]:
    """The name, and as other systems and tools may have meant it."""
    yield name
    plain = _URL_PREFIX.sub("", name).replace("\\", "/")
    parts: list[str] = []
    for part in plain.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    plain = "/".join(parts)
    for spelling in dict.fromkeys((plain, plain.strip(), unquote(plain), unquote(plain).strip())):
        if spelling and spelling != name:
            yield spelling
