"""The folder that the file names in annotations are relative to, found by where these files are.

Names of folders decide only between folders that have the same files.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path

from codetr_cli.annotations.image_names import spellings
from codetr_cli.annotations.survey import Survey, folder_of
from codetr_cli.formats.split_names import split_of_folder
from codetr_cli.reading import stays_inside

NEARLY = 0.9
"""Of two folders, one counts as good as the other if it has this share of its files."""
USUAL = ("images", "data", "imgs", "img", "jpegimages")
MAX_LINKED = 20
MAX_PROBED = 40
"""Names that are looked for in each folder whose content is not listed."""
MAX_FOLDERS = 200
"""Folders near an annotation file that are probed."""


@dataclass(frozen=True)
class ImagePlace:
    """A folder with the images of an annotation file.

    Args:
        folder: relative to that of the survey, "" for this one.
        hits: number of the names that are in it.
        tried: number of names.
        others: folders that fit as well, relative likewise.
        is_respelled: whether names are written in another way than those of the files in the folder.
    """

    folder: str
    hits: int
    tried: int
    others: tuple[str, ...] = ()
    is_respelled: bool = False


class ListedImages:
    """Finds the folders of images in the listing of a data set's folder.

    Args:
        survey: the listing.
        names: all names that will be looked for.
    """

    def __init__(self, survey: Survey, names: Iterable[str]) -> None:
        self._survey = survey
        wanted = {_file_part(spelling) for name in names for spelling in (name, *spellings(name))}
        self._by_file: dict[str, list[str]] = {}
        for name in survey.names:
            part = _file_part(name)
            if part in wanted:
                self._by_file.setdefault(part, []).append(name)

    def place_of(self, annotations: str, names: Sequence[str], split: str | None) -> ImagePlace | None:
        """The folder with the images of an annotation file; None if there is none.

        Args:
            annotations: name of the annotation file in the survey.
            names: file names of images in it.
            split: the part of the data set that the file belongs to.
        """
        near = folder_of(annotations)
        folders = self._folders(names, near, exact=True)
        if not folders:
            linked = self._linked_hits(names)
            if linked:
                return _best(linked, near, split, len(names))
            folders = self._folders(names, near, exact=False)
        if not folders:
            return None
        hits = Counter(folder for found, _ in folders for folder in found)
        if max(hits.values()) < NEARLY * len(folders):  # the images of one file are in several folders
            above = posixpath.commonpath([f"/{folder}" for folder in hits]).strip("/")
            return ImagePlace(above, len(folders), len(names), is_respelled=True)
        place = _best(hits, near, split, len(names))
        return replace(place, is_respelled=any(is_other for found, is_other in folders if place.folder in found))

    def _folders(self, names: Sequence[str], near: str, *, exact: bool) -> list[tuple[set[str], bool]]:
        """For each name that is found, the folders with it, and whether it is written in another way.

        Names count as written and in spellings of other systems or, unless `exact`, by their last parts and in any
        case. Names that lead out of their folder (`../images/1.jpg`) are relative to that of the annotations, `near`.
        """
        found = []
        for name in names:
            for spelling in (name, *spellings(name)):
                folders: set[str] = set()
                parts: dict[int, set[str]] = {}
                is_other = spelling != name
                for image in self._by_file.get(_file_part(spelling), ()):
                    if image == spelling:
                        folders.add("")
                    elif spelling.startswith("../") and posixpath.normpath(f"{near}/{spelling}") == image:
                        folders.add(near)
                    elif image.endswith(f"/{spelling}"):
                        folders.add(image[: -len(spelling) - 1])
                    elif not exact:
                        parts.setdefault(_equal_parts(image, spelling), set()).add(folder_of(image))
                if parts:  # of images of one name, those that have most of the folders in the name
                    folders |= parts[max(parts)]
                    is_other = True
                if folders:
                    found.append((folders, is_other))
                    break
        return found

    def _linked_hits(self, names: Sequence[str]) -> Counter[str]:
        """The same of folders that links lead to, and of folders in these, which the listing does not have."""
        hits: Counter[str] = Counter()
        for link in self._survey.linked[:MAX_LINKED]:
            for folder in (link, *(f"{link}/{name}" for name in _subfolders(self._survey.folder / link))):
                count = count_files(self._survey.folder / folder, names)
                if count:
                    hits[folder] = count
        return hits


def _best(hits: Mapping[str, int], near: str, split: str | None, tried: int) -> ImagePlace:
    """The likeliest of the folders with most of the names."""
    most = max(hits.values())
    good = [folder for folder, count in hits.items() if count >= NEARLY * most]
    ranks = {folder: _rank(folder, near, split, hits[folder]) for folder in good}
    best = min(ranks, key=lambda folder: (ranks[folder], folder))
    equal = tuple(sorted(folder for folder in good if ranks[folder] == ranks[best] and folder != best))
    return ImagePlace(best, hits[best], tried, equal)


def _rank(folder: str, near: str, split: str | None, hits: int) -> tuple[int, ...]:
    """What makes a folder with the right files the likeliest: the smallest is chosen.

    In this order: it is named for the split; it is in the annotations' own folder; it has a usual name, or is in a
    folder with one; it is near the top; it has more of the files.
    """
    parts = folder.split("/") if folder else []
    found = split_of_folder(folder)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, near.split("/"), strict=False)))
    return (
        0 if split and found == split else 1 if found is None or split is None else 2,
        -shared,
        0 if any(part.lower() in USUAL for part in parts) or folder == near else 1,
        len(parts),
        -hits,
    )


def count_files(folder: Path, names: Sequence[str]) -> int:
    """How many of the first names are files in a folder, as written or in a spelling of other systems."""
    return sum(
        any(stays_inside(spelling) and os.path.isfile(folder / spelling) for spelling in (name, *spellings(name)))  # noqa: PTH113
        for name in names[:MAX_PROBED]
    )


def has_other_names(folder: Path, names: Sequence[str]) -> bool:
    """Whether most of the first names are no files in a folder, as they are written."""
    tried = names[:MAX_PROBED]
    return sum(os.path.isfile(folder / name) for name in tried) < len(tried) / 2  # noqa: PTH113


def probe_near(annotations: Path, names: Sequence[str], split: str | None) -> tuple[list[Path], int]:
    """The folders near an annotation file that have most of its images, the likeliest first, and how many they have.

    Looked in are the file's folder, the two above it, and folders and their folders in these.
    """
    top = annotations.absolute().parent
    near = top.name
    hits: dict[Path, int] = {}
    for place in (top, *list(top.parents)[:2]):
        for folder in islice(_with_folders(place), MAX_FOLDERS):
            if folder not in hits and (count := count_files(folder, names[:3]) and count_files(folder, names)):
                hits[folder] = count
        if hits and max(hits.values()) >= NEARLY * min(len(names), MAX_PROBED):
            break
    if not hits:
        return [], 0
    most = max(hits.values())
    base = top.parents[1] if len(top.parents) > 1 else top

    def rank(folder: Path) -> tuple[int, ...]:
        relative = folder.relative_to(base).as_posix() if folder.is_relative_to(base) else folder.name
        return _rank(relative, f"{top.parent.name}/{near}", split, hits[folder])

    good = sorted(
        (folder for folder, count in hits.items() if count >= NEARLY * most), key=lambda each: (rank(each), each)
    )
    return [folder for folder in good if rank(folder) == rank(good[0])], hits[good[0]]


def _with_folders(place: Path) -> Iterator[Path]:
    """A folder, those in it, and those in these."""
    yield place
    first = _subfolders(place)
    yield from (place / name for name in first)
    for name in first:
        yield from (place / name / inner for inner in _subfolders(place / name))


def _subfolders(folder: Path, limit: int = 50) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
            return sorted(islice(names, limit))
    except OSError:
        return []


def _file_part(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _equal_parts(one: str, other: str) -> int:
    """The number of last parts in which two names are equal but for case."""
    pairs = zip(reversed(one.lower().split("/")), reversed(other.lower().split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
