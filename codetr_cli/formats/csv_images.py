"""Which image a row of a CSV file means: by its name, by a path beside it, and by the part of the set of its file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from codetr_cli.annotations.image_names import ImageNames, Stated, spellings
from codetr_cli.annotations.survey import Survey, folder_of, stem_of
from codetr_cli.formats.csv_columns import Columns, find_columns, first_cells, has_scores, is_image_name
from codetr_cli.formats.split_names import split_of, splits_of_folders

MAX_SHOWN = 3


class RowImages:
    """Finds the images of rows, see `ImageNames`.

    A path decides where the name beside it has no folder. In the file of a part of the set (train_labels.csv), a name
    without folder means an image in the folders of this part, if there are such folders.

    Args:
        images: names of all in the data set's folder.
        stated: gives the names in all tables.
    """

    def __init__(self, images: Sequence[str], stated: Stated | None = None) -> None:
        self._images, self._stated = images, stated
        self._all = ImageNames(images, stated)
        self._by_split: dict[str, list[ImageNames]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def find(self, columns: Columns, cells: Sequence[str], table: str, split: str = "") -> str | None:
        """The image of a row; None if there is none.

        Args:
            columns: of the table.
            cells: of the row.
            table: name of the file.
            split: of the row, by a column or by the name of the file.
        """
        image, folder = cells[columns.image].strip(), folder_of(table)
        exact = self._all.find_exactly(image, folder)
        if exact is not None:
            return exact
        path = _cell(cells, columns.path)
        if path and _base(path) == _base(image) != path and image == _base(image):
            found = self._find(path, folder, split, table)
            if found is not None or self._all.has_folder_of(path):
                return found
        return self._find(image, folder, split, table)

    def is_exact(self, columns: Columns, cells: Sequence[str], table: str) -> bool:
        """Whether a row has the name of its image as it is, from the top or from the table's folder."""
        return self._all.find_exactly(cells[columns.image].strip(), folder_of(table)) is not None

    def _find(self, name: str, folder: str, split: str, table: str) -> str | None:
        parts = self._parts(split) if split else []
        for names in parts:
            found = _find(names, name, folder)
            if found is not None:
                return found
        return _find(self._all, name, folder) if not parts or split != split_of(table) else None

    def _parts(self, split: str) -> list[ImageNames]:
        """The images in the folders of a part of the set, and these with those in folders of no part."""
        if split not in self._by_split:
            known = splits_of_folders(map(folder_of, self._images))
            own = [name for name in self._images if known[folder_of(name)] == split]
            more = [name for name in self._images if known[folder_of(name)] in (None, split)]
            parts = [ImageNames(names, self._stated, self._images) for names in (own, more)] if own else []
            self._by_split[split] = parts
        return self._by_split[split]


def same_name(one: str, other: str) -> bool:
    """Whether two names are one in other spellings, with the same folders."""
    return bool({each.casefold() for each in spellings(one)} & {each.casefold() for each in spellings(other)})


def tables_without_images(survey: Survey, names: Iterable[str]) -> str:
    """Which of some CSV files has boxes of images that are not in the folder, a sentence; empty if none has."""
    for name in names:
        head = survey.head(name)
        columns = find_columns(head)
        if columns is None or columns.problem or has_scores(columns, head):
            continue
        wanted = list(islice(dict.fromkeys(cells[columns.image] for cells in first_cells(columns, head)), MAX_SHOWN))
        if wanted:
            alike = _alike(survey.images, wanted)
            return (
                f"{name} has boxes, but its images are not in the folder: {', '.join(each[:200] for each in wanted)}"
                f"{f' ({alike})' if alike else ''}. Copy the images there, or correct their names in {name}"
            )
    return ""


def _alike(images: Sequence[str], wanted: Sequence[str]) -> str:
    """What is there instead of an image: one with another suffix, or with zeros before its number."""
    by_key: dict[str, str] = {}
    for image in images:
        by_key.setdefault(_key(image), image)
    return next((f"{by_key[key]} is there" for name in wanted if (key := _key(name)) in by_key), "")


def _key(name: str) -> str:
    base = _base(name)
    stem = (stem_of(base) if is_image_name(base) else base).casefold()
    return stem.lstrip("0") or stem


def _find(names: ImageNames, image: str, folder: str) -> str | None:
    if not is_image_name(image):  # as Open Images has them
        return names.find_stem(image, folder) or names.find(image, folder)
    return names.find(image, folder)


def _cell(cells: Sequence[str], index: int | None) -> str:
    return cells[index].strip() if index is not None and len(cells) > index else ""


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def stated_names(columns: Columns, cells: Sequence[str], table: str) -> Iterator[tuple[str, str]]:
    """The names of its image in a row, each with the folder that it is relative to."""
    yield cells[columns.image].strip(), folder_of(table)
    if path := _cell(cells, columns.path):
        yield path, folder_of(table)
