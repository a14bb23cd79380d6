"""The published layouts: where annotation files and images are, relative to the data set's folder.

COCO        annotations/instances_{train,val}2017.json    {train,val}2017/    {train,val}2017.txt
LVIS        annotations/lvis_v1_{train,val}.json          train2017/ and val2017/: either split has images of both
Objects365  annotations/zhiyuan_objv2_{train,val}.json    {train,val}/patch*/; v1: objects365_{train,val}.json
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATCH = re.compile(r"(?:images/)?v\d+/(patch\d+/[^/]+)")


def image_name(record: Mapping[str, Any]) -> Any:
    """The file name of an image record, relative to the image folder; returned unchecked if it is not a string.

    LVIS has only the image's COCO URL, of which folder and file are used. Objects365 writes
    "images/v1/patch8/name.jpg" for a file that its archives unpack to "patch8/name.jpg".
    """
    name, url = record.get("file_name"), record.get("coco_url")
    if name is None and isinstance(url, str):
        return "/".join(url.split("/")[-2:])
    patch = _PATCH.fullmatch(name) if isinstance(name, str) else None
    return patch.group(1) if patch else name


@dataclass(frozen=True)
class Layout:
    """Where a data set's files are, relative to its folder.

    Args:
        title: the data set's name.
        annotations: file names, with {split} for train or val; the first that exists is used.
        images: folder that image names are relative to.
        roots: default folders of the data set; the first that exists is used.
    """

    title: str
    annotations: tuple[str, ...]
    images: str
    roots: tuple[str, ...]


LAYOUTS = {
    "coco": Layout("COCO", ("annotations/instances_{split}2017.json",), "{split}2017", ("data/coco",)),
    "lvis": Layout(
        "LVIS", ("annotations/lvis_v1_{split}.json", "lvis_v1_{split}.json"), ".", ("data/lvis_v1", "data/coco")
    ),
    "objects365": Layout(
        "Objects365",
        ("annotations/zhiyuan_objv2_{split}.json", "zhiyuan_objv2_{split}.json", "annotations/objects365_{split}.json"),
        "{split}",
        ("data/objects365",),
    ),
}


def default_root(dataset: str) -> Path:
    """The folder of a data set when none is given."""
    roots = [Path(root) for root in LAYOUTS[dataset].roots]
    return next((root for root in roots if root.is_dir()), roots[0])


@dataclass(frozen=True)
class SplitFiles:
    """Where the files of one split are in a published layout; none of them needs to exist.

    Args:
        name: "train" or "val".
        root: the data set's folder.
        dataset: a key of `LAYOUTS`.
    """

    name: str
    root: Path
    dataset: str = "coco"

    @property
    def images_dir(self) -> Path:
        """The folder of the split's images."""
        return self.root / LAYOUTS[self.dataset].images.format(split=self.name)

    @property
    def annotations_path(self) -> Path:
        """The split's annotation file."""
        paths = [self.root / pattern.format(split=self.name) for pattern in LAYOUTS[self.dataset].annotations]
        return next((path for path in paths if path.is_file()), paths[0])

    @property
    def where(self) -> str:
        """The name of the split's annotations in messages."""
        return str(self.annotations_path.relative_to(self.root))

    @property
    def list_path(self) -> Path:
        """The text file with one image a line, relative to the root."""
        return self.root / f"{self.name}2017.txt"

    @property
    def exists(self) -> bool:
        """Whether any part of the split exists."""
        return self.annotations_path.exists() or self.images_dir.is_dir()


def published_annotations(folder: Path) -> str | None:
    """The annotation files of a published layout in a folder, as a pattern; None when there are none."""
    for dataset in LAYOUTS:
        for name in ("train", "val"):
            path = SplitFiles(name, folder, dataset).annotations_path
            if path.is_file():
                return str(path.relative_to(folder)).replace(name, "*")
    return None


def has_published_layout(folder: Path) -> bool:
    """Whether a folder has an annotation file of one of `LAYOUTS`."""
    return published_annotations(folder) is not None
