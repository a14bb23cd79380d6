"""Which part of a data set the names of files and folders mean: training, validation or test. One rule for all layouts.

A name means the part that one of its words does (`WORDS`), where words end at other characters than letters, at digits
and before capitals, perhaps with a word for images after them: `train2017`, `my-val`, `TestSet`, `testimages`, `testA`.
A name with words for training and validation is both; one with words for test and validation, such as `test-dev`, is a
test; one with words for training and test is neither. Folders that are set aside for evaluation, such as `eval` or
`holdout`, are validation.

The outermost folder with such a name counts, so that a class may be called `test`. One that all files share, such as
that of an archive, does not count if the folders in it divide them into training and another part.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from typing import Literal, TypeAlias

SplitName: TypeAlias = Literal["train", "val", "test", "trainval"]

WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "holdout": "val",
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
}
"""Words of names, in lower case -> the part that they mean."""

_LETTERS = re.compile(r"[^\W\d_]+")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_LONG = re.compile(rf"({'|'.join(WORDS)})(?:sets?|data|images?|imgs?|split|part|[a-f])")
"""Words without a capital where the next begins: trainset, valdata, testa."""


@functools.lru_cache(maxsize=100_000)
def split_in(name: str) -> SplitName | None:
    """The part that a single name means, of a file or folder; None if it means none, or training and test."""
    found: set[SplitName] = set()
    for letters in _LETTERS.findall(re.sub(r"(?i)hold[-_ ]out", "holdout", name)):
        whole = _meaning(letters)
        words = [whole] if whole else map(_meaning, _WORD.findall(letters) if letters.isascii() else ())
        found.update(word for word in words if word is not None)
    if "train" in found and "test" not in found and len(found) > 1:
        return "trainval"
    if found == {"test", "val"}:
        return "test"
    return found.pop() if len(found) == 1 else None


def _meaning(word: str) -> SplitName | None:
    word = word.lower()
    match = _LONG.fullmatch(word)
    return WORDS.get(match[1] if match else word)


def split_of_folder(folder: str) -> SplitName | None:
    """The part that a folder's path means, by its outermost name that means one."""
    return next((found for part in folder.split("/") if (found := split_in(part))), None)


def split_of(name: str) -> SplitName | None:
    """The part that a file of annotations is for: by its own name, else by its folders."""
    folder, _, base = name.rpartition("/")
    return split_in(base) or split_of_folder(folder)


def splits_of_folders(folders: Iterable[str]) -> dict[str, SplitName | None]:
    """The part that each folder of a data set means, where one that all share may be the data set's own."""
    known = dict.fromkeys(folders)
    shared = os.path.commonpath(known) if known and "" not in known else ""
    if shared:
        below = {folder: split_of_folder(folder[len(shared) + 1 :]) for folder in known}
        found = set(below.values())
        if found & {"train", "trainval"} and found & {"val", "test"}:
            return below
    return {folder: split_of_folder(folder) for folder in known}


def splits_of_files(names: Iterable[str]) -> dict[str, SplitName | None]:
    """The part that each file of annotations is for, as `split_of` and `splits_of_folders`."""
    known = list(names)
    folders = splits_of_folders(name.rpartition("/")[0] for name in known)
    return {name: split_in(name.rpartition("/")[2]) or folders[name.rpartition("/")[0]] for name in known}
