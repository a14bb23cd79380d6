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

from codetr_cli.annotations.data_files import check_length
from codetr_cli.config.data_settings import DatasetName

_PATCH = re.compile(r"(?:images/)?v\d+/(patch\d+/objects365_v\d+_\d+\.\w+)")
"""A name that only Objects365 gives to an image."""


def image_name(record: Mapping[str, Any]) -> Any:
    """The file name of an image record, relative to the image folder; returned unchecked if it is not a string.

    LVIS has only the image's COCO URL, of which folder and file are used. Objects365 writes
    "images/v1/patch8/objects365_v1_00000001.jpg" for a file that its archives unpack to "patch8/...".
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


LAYOUTS: dict[DatasetName, Layout] = {
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


def default_root(dataset: DatasetName) -> Path:
    """The folder of a data set when none is given."""
    roots = [Path(root) for root in LAYOUTS[dataset].roots]
    return next((root for root in roots if root.is_dir()), roots[0])


@dataclass(frozen=True)
class SplitFiles:
    """Where the files of one split are; none of them needs to exist.

    Args:
        name: "train", "val" or "test".
        images_dir: the folder of the split's images.
        annotations_path: the split's annotation file.
        where: the name of the split's annotations in messages.
        dataset: whose rules apply.
        converted: whether the annotation file was converted from another layout.
        part_of: the file whose images and objects were divided, for a part of them; else None.
        shared: whether the folder of images also has those of another split.
    """

    name: str
    images_dir: Path
    annotations_path: Path
    where: str
    dataset: DatasetName = "coco"
    converted: bool = False
    part_of: Path | None = None
    shared: bool = False

    @property
    def list_path(self) -> Path:
        """COCO's text file with one image a line, beside the image folder."""
        return self.images_dir.with_name(f"{self.name}2017.txt")


def published_split(name: str, root: Path, dataset: DatasetName = "coco") -> SplitFiles:
    """One split in a published layout below `root`.

    Raises:
        DatasetError: no folder can have such a long name.
    """
    check_length(root)
    layout = LAYOUTS[dataset]
    paths = [root / pattern.format(split=name) for pattern in layout.annotations]
    path = next((path for path in paths if path.is_file()), paths[0])
    return SplitFiles(name, root / layout.images.format(split=name), path, str(path.relative_to(root)), dataset)


def published_splits(folder: Path) -> list[SplitFiles]:
    """The splits of published layouts whose annotation files are in a folder."""
    splits = [published_split(name, folder, dataset) for dataset in LAYOUTS for name in ("train", "val")]
    return [split for split in splits if split.annotations_path.is_file()]
