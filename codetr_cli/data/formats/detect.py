"""Folders of data sets: the published layouts, what to say about any other, the list files, the link `data/coco`.

COCO        annotations/instances_{train,val}2017.json    {train,val}2017/    {train,val}2017.txt
LVIS        annotations/lvis_v1_{train,val}.json          train2017/ and val2017/: either split has images of both
Objects365  annotations/zhiyuan_objv2_{train,val}.json    {train,val}/patch*/; v1: objects365_{train,val}.json
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from codetr_cli.errors import DatasetError

EXPECTED = "annotations/instances_{train,val}2017.json beside the image folders train2017/ and val2017/"
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"))


_PATCH = re.compile(r"(?:images/)?v\d+/(patch\d+/[^/]+)")


def image_name(record: Mapping[str, Any]) -> Any:
    """The file of an image record, relative to the folder of images; whatever stands there if it is no name.

    LVIS has only the address of the image in COCO, of which folder and file count. Objects365 writes
    "images/v1/patch8/name.jpg" for a file that its archives unpack to "patch8/name.jpg".
    """
    name, address = record.get("file_name"), record.get("coco_url")
    if name is None and isinstance(address, str):
        return "/".join(address.split("/")[-2:])
    patch = _PATCH.fullmatch(name) if isinstance(name, str) else None
    return patch.group(1) if patch else name


@dataclass(frozen=True)
class Layout:
    """Where a data set's files lie, relative to its folder.

    Args:
        title: how the data set is called.
        annotations: file names, with {split} for train or val; the first that exists counts.
        images: folder that the names of images are relative to.
        roots: folders that are looked into when none is named; the first that exists.
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
    """The folder of a data set when none is named."""
    roots = [Path(root) for root in LAYOUTS[dataset].roots]
    return next((root for root in roots if root.is_dir()), roots[0])


@dataclass(frozen=True)
class Split:
    """Where one half of a data set lies; nothing here needs to exist.

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
        """How messages call the split's annotations."""
        return str(self.annotations_path.relative_to(self.root))

    @property
    def list_path(self) -> Path:
        """The text file with one image a line, relative to the root."""
        return self.root / f"{self.name}2017.txt"

    @property
    def exists(self) -> bool:
        """Whether any part of the split is there."""
        return self.annotations_path.exists() or self.images_dir.is_dir()


def find_splits(folder: Path, dataset: str = "coco") -> tuple[Split, Split]:
    """The train and val splits of a folder in one of the published layouts.

    Args:
        folder: the data set's.
        dataset: a key of `LAYOUTS`, which counts where the files of several lie.

    Returns:
        both splits; at least one has its annotation file.

    Raises:
        DatasetError: the folder does not exist or has another layout; says which one, and where the right folder is
            when it is near.
    """
    if not folder.is_dir():
        raise DatasetError(_no_folder(folder))
    for kind in (dataset, *LAYOUTS):
        splits = (Split("train", folder, kind), Split("val", folder, kind))
        if any(split.annotations_path.is_file() for split in splits):
            return splits
    near = _near(folder)
    if near is not None:
        raise DatasetError(
            f"{folder} is not the data set's folder, but {near} is (it has {_found(near)}): "
            f"type `codetr prepare {near}`."
        )
    raise DatasetError(_other_layout(folder))


def has_published_layout(folder: Path) -> bool:
    """Whether a folder has an annotation file of one of `LAYOUTS`."""
    return _found(folder) is not None


def _is_root(folder: Path) -> bool:
    return _found(folder) is not None


def _found(folder: Path) -> str | None:
    """The annotation files that make a folder a data set's, in words; None when there are none."""
    for kind in LAYOUTS:
        for name in ("train", "val"):
            path = Split(name, folder, kind).annotations_path
            if path.is_file():
                return str(path.relative_to(folder)).replace(name, "*")
    return None


def _near(folder: Path) -> Path | None:
    """A folder in the right layout one or two levels above or below the one given."""
    above = list(folder.resolve().parents)[:2]
    children = _folders(folder.resolve())
    below = (grandchild for child in islice(children, 50) for grandchild in islice(_folders(child), 50))
    return next((place for place in (*above, *children, *below) if _is_root(place)), None)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


def _no_folder(folder: Path) -> str:
    if folder.is_symlink():
        return f"{folder} is a link to {folder.readlink()}, which does not exist: mend or remove the link."
    if folder.is_file():
        hint = "unpack it and give" if folder.suffix.lower() in (".zip", ".tar", ".gz", ".tgz") else "give"
        return f"{folder} is a file: {hint} the folder that holds {EXPECTED}."
    parent, names = _around(folder)
    close = similar_folder(folder)
    if close:
        hint = f"did you mean {close}?"
    elif names:
        hint = f"{parent} holds the folders {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}."
    else:
        hint = f"{parent} holds no folders."
    return (
        f"there is no folder {folder}: {hint} `codetr prepare` wants the folder that holds {EXPECTED}, or one in the "
        "layout of LVIS, Objects365, Pascal VOC or YOLO."
    )


def similar_folder(folder: Path) -> Path | None:
    """The folder with a name most like that of one that is not there, if any is like it."""
    parent, names = _around(folder)
    close = difflib.get_close_matches(folder.absolute().relative_to(parent).parts[0], names, n=1, cutoff=0.6)
    return parent / close[0] if close else None


def _around(folder: Path) -> tuple[Path, list[str]]:
    """The innermost folder above one that is there, and what folders it holds."""
    parent = next(place for place in folder.absolute().parents if place.is_dir())
    return parent, [child.name for child in _folders(parent)]


def _other_layout(folder: Path) -> str:
    """Says what a folder holds instead of the published layout, and what to do."""
    wanted = f"Expected: {EXPECTED}; or a Pascal VOC or YOLO folder."
    other = recognise(folder)
    if other is not None:
        name, evidence = other
        return (
            f"{folder} is a {name} data set ({evidence}). That layout is recognised but cannot be read yet: "
            f"convert it to COCO's JSON first. {wanted}"
        )
    archives = [p.name for p in islice(folder.glob("*.zip"), 20) if "2017" in p.name]
    if archives:
        return f"{folder} holds {', '.join(archives)} still packed: unpack them there. {wanted}"
    annotations = folder / "annotations"
    if annotations.is_dir():
        files = sorted(path.name for path in islice(annotations.glob("*.json"), 50))
        if files:
            listed = ", ".join(files[:5]) + (" ..." if len(files) > 5 else "")
            return (
                f"{annotations} holds {listed}, but no instances_train2017.json or instances_val2017.json: rename them "
                f"(the image folders likewise), or pass their paths to training with --set data.train_annotations=... "
                f"--set data.train_images=... --set data.val_annotations=... --set data.val_images=... . {wanted}"
            )
        return f"{annotations} has no annotation file: unpack annotations_trainval2017.zip in {folder}. {wanted}"
    if (folder / "train2017").is_dir() or (folder / "val2017").is_dir():
        return (
            f"{folder} has images but no annotations/ folder: unpack annotations_trainval2017.zip there, or put "
            f"your own annotation files into it. {wanted}"
        )
    names = sorted(entry.name for entry in islice(folder.iterdir(), 200))
    found = f"it holds {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}" if names else "it is empty"
    return f"{folder} does not have the COCO layout: {found}. {wanted}"


# ---------------------------------------------------------------------------------------------------- other layouts


def recognise(folder: Path) -> tuple[str, str] | None:
    """Names another well-known layout that cannot be read; Pascal VOC and YOLO can, see `converted`.

    Returns:
        its name and what gave it away, or None.
    """
    for place in (folder, *_folders(folder)[:20]):
        found = _coco_variant(place)
        if found:
            return found
    return None


def _coco_variant(folder: Path) -> tuple[str, str] | None:
    if _has(folder, "_annotations.coco.json"):
        return "COCO with one file a folder (Roboflow export)", f"{folder.name}/_annotations.coco.json"
    for place in ("annotations", "."):
        if _has(folder / place, "lvis_v0*.json"):
            return "LVIS v0.5", f"{Path(place, 'lvis_v0*.json')}; of LVIS, v1 is read"
    return None


def _has(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and next(folder.glob(pattern), None) is not None


# --------------------------------------------------------------------------------------------------------- list files


def list_images(folder: Path) -> Iterator[str]:
    """Names of the image files in a folder and its subfolders, relative to it, with forward slashes."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 (a Path a file is slow)
                    yield prefix + entry.name


def write_list(split: Split, file_names: Iterable[str]) -> str:
    """Writes `<split>2017.txt` with one `<split>2017/<file name>` a line when it is missing.

    Returns:
        "written", "present" or "not written: <reason>"; nothing in codetr needs the file, so that it never fails.
    """
    path = split.list_path
    if path.exists():
        return "present"
    if not path.parent.stat().st_mode & 0o222:
        # The superuser could write here all the same, but whoever protects a folder means it.
        return "not written: the folder is write-protected"
    text = "".join(f"{split.images_dir.name}/{name}\n" for name in file_names)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return f"not written: {error.strerror}"
    return "written"


def read_list(split: Split) -> set[str]:
    """File names relative to the image folder that the split's list names; lines may carry any leading folders.

    Raises:
        OSError: the file cannot be read.
    """
    marker = f"{split.images_dir.name}/"
    lines = split.list_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.strip().rpartition(marker)[2] for line in lines if line.strip()}


# --------------------------------------------------------------------------------------------------------------- link


@dataclass(frozen=True)
class Link:
    """What became of the link that makes a data set the default one.

    Args:
        status: "linked" (made now), "present" (was there), "in_place" (the data set lies there itself), "occupied"
            (something else is there and stays), "impossible" (the system refuses links).
        path: where the link is or would be.
        detail: what is there or why not, a phrase; empty when all is well.
    """

    status: Literal["linked", "present", "in_place", "occupied", "impossible"]
    path: Path
    detail: str = ""

    @property
    def works(self) -> bool:
        """Whether the data set is found at `path` from now on."""
        return self.status in ("linked", "present", "in_place")


def link_folder(folder: Path, link: Path) -> Link:
    """Makes `link` a symbolic link to `folder`; whatever else lies there stays as it is."""
    target = folder.resolve()
    if link.is_symlink():
        if link.resolve() == target:
            # A folder given by way of the link itself is in place as well.
            return Link("present", link)
        gone = "" if link.exists() else ", which does not exist"
        return Link("occupied", link, f"is a link to {link.readlink()}{gone}")
    if link.exists():
        if link.resolve() == target:
            return Link("in_place", link)
        return Link("occupied", link, "is a folder of its own" if link.is_dir() else "is a file")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target, target_is_directory=True)
    except (OSError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Link("impossible", link, reason)
    return Link("linked", link)
