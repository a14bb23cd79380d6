"""Finds the image and the class that a name means among those of annotations: one rule for all that is compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from codetr_cli.annotations.annotation_json import MAX_FILE_NAME
from codetr_cli.annotations.image_names import ImageNames
from codetr_cli.class_names import plain_class_name
from codetr_cli.images.image_files import IMAGE_SUFFIXES

MAX_PARTS = 64
"""Folders in the name of an image."""
NONE = -1
DIGITS = re.compile(r"(-?[0-9]{1,18})(?:\.0{1,6})?")  # tables turn 12 into 12.0
OTHER_SUFFIXES = (".txt", ".json", ".xml")


def unique_rows(names: Sequence[str]) -> dict[str, int]:
    """The rows by name, `NONE` where several have it."""
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        rows[name] = NONE if name in rows else row
    return rows


def image_finder(rows: Mapping[str, int]) -> Callable[[str], int]:
    """A function that finds the row of an image by any spelling of its file name, with or without suffix or folder.

    Args:
        rows: by name.

    Returns:
        a function from a name to its row; `NONE` if it means no image, or several.
    """
    names = ImageNames(rows)

    def find(text: str) -> int:
        if len(text) > MAX_FILE_NAME or text.count("/") + text.count("\\") > MAX_PARTS:
            return NONE
        stem, dot, suffix = text.replace("\\", "/").strip().rpartition(".")
        found = names.find(text) or names.find_stem(text.replace("\\", "/").strip())
        if found is None and (dot + suffix.lower()) in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES):
            found = names.find_stem(stem)
        return NONE if found is None else rows[found]

    return find


def number_rows(file_names: Sequence[str]) -> dict[int, int]:
    """The rows of the images whose file names are numbers, by number; those that only one image has."""
    rows: dict[int, int] = {}
    for row, name in enumerate(file_names):
        stem = name.rpartition("/")[2].partition(".")[0]
        if DIGITS.fullmatch(stem):
            rows[int(stem)] = NONE if int(stem) in rows else row
    return {number: row for number, row in rows.items() if row != NONE}


def class_finder(exact: Mapping[str, int]) -> Callable[[str], int]:
    """A function that finds the row of a class by any spelling of its name; `NONE` if it means none, or several."""
    plain: dict[str, int] = {}
    for name, label in exact.items():
        plain[plain_class_name(name)] = NONE if plain_class_name(name) in plain else label
    return lambda name: exact.get(name, plain.get(plain_class_name(name[:MAX_FILE_NAME]), NONE))
