"""What the names of folders and lists say about the files in them: their split, and their kind."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from codetr_cli.formats.split_names import split_in

_KINDS = frozenset(
    ("annotations", "annotation", "annots", "annot", "anns", "ann", "annos", "anno", "xml", "xmls", "labels", "label",
     "lbls", "lbl", "txt", "txts", "labelled", "labeled", "bndbox", "bndboxes", "bbox", "bboxes", "box", "boxes",
     "bounding", "gt", "voc", "pascal", "pascalvoc", "outputs", "images", "image", "imgs", "img", "jpegimages",
     "jpegimage", "jpeg", "jpegs", "jpg", "jpgs", "png", "pngs", "bmp", "tif", "tiff", "photos", "photo", "pictures",
     "picture", "pics", "pic", "frames", "data")
)  # fmt: skip
"""Words for the kind of files that a folder has, annotations or images, not for which."""
_BETWEEN = re.compile(r"[\W_]+")

Name = TypeVar("Name", str, int)


def split_folder(folder: str) -> str:
    """The part of a folder's path that ends with the name of its split; empty if none does."""
    parts = folder.split("/")
    return next(("/".join(parts[: end + 1]) for end, part in enumerate(parts) if split_in(part)), "")


@functools.lru_cache(maxsize=100_000)
def place_of(folder: str) -> str:
    """A folder without words for the kind of its files, so that those of images and annotations become the same.

    `train/Annotations` and `train/JPEGImages` are `train`, and so are `train_xml` and `images/train`.
    """
    parts = []
    for part in folder.split("/"):
        words = [word for word in _BETWEEN.split(part.lower()) if word]
        others = [word for word in words if word not in _KINDS]
        if len(others) == len(words):
            parts.append(part.lower())
        elif others:
            parts.append("_".join(others))
    return "/".join(part for part in parts if part)


def by_split(names: Iterable[Name], folders: Mapping[Name, str | None]) -> tuple[dict[str, list[Name]], list[Name]]:
    """The names of each split, and those of none.

    Where some are in folders for validation or tests, and none in one for training, those of no split are for training.
    Where some are in folders for training, and none in one for validation or tests, the folders of splits do not count
    unless they hold all names.

    Args:
        names: of files, or their numbers.
        folders: the split of each, None for those in no folder of a split.
    """
    splits: dict[str, list[Name]] = {}
    others: list[Name] = []
    for name in names:
        split = folders[name]
        if split is None:
            others.append(name)
        else:
            splits.setdefault(split, []).append(name)
    trains, evaluates = splits.keys() & {"train", "trainval"}, splits.keys() & {"val", "test"}
    if others and not trains and evaluates:
        return {"train": others, **splits}, []
    if others and not evaluates:
        return {"all": sorted(sum(splits.values(), others))}, []
    return splits, others
