"""Which layout a folder has; for any other folder, an error that names its content and the right folder."""

from __future__ import annotations

import difflib
from itertools import islice
from pathlib import Path
from types import ModuleType

from codetr_cli.config.schema import DatasetName
from codetr_cli.data.formats import voc, yolo
from codetr_cli.data.formats.intermediate import SHOWN
from codetr_cli.data.formats.layouts import SplitFiles, published_split, published_splits
from codetr_cli.errors import DatasetError, listed

EXPECTED = "annotations/instances_{train,val}2017.json beside the image folders train2017/ and val2017/"
PARSERS = (voc, yolo)
"""Modules of one layout each: its `TITLE`, whether a folder `matches` it, the `files_read`, and `read` itself."""


def find_splits(folder: Path, dataset: DatasetName = "coco") -> tuple[SplitFiles, SplitFiles]:
    """The train and val splits of a folder in one of the published layouts; at least one has its annotation file.

    `dataset`, a key of `LAYOUTS`, is preferred where the folder has the files of several.

    Raises:
        DatasetError: the folder does not exist or has another layout; the error names it, and the right folder if
            it is nearby.
    """
    if not folder.is_dir():
        raise DatasetError(_no_folder(folder))
    present = [split.dataset for split in published_splits(folder)]
    if present:
        chosen = dataset if dataset in present else present[0]
        return published_split("train", folder, chosen), published_split("val", folder, chosen)
    nearby = _nearby_root(folder)
    if nearby is not None:
        first = published_splits(nearby)[0]
        raise DatasetError(
            f"{folder} is not the data set's folder, but {nearby} is (it has {first.where.replace(first.name, '*')}): "
            f"run `codetr prepare {nearby}`."
        )
    raise DatasetError(_other_layout(folder))


def find_parser(folder: Path) -> tuple[ModuleType, Path] | None:
    """The parser that can read a folder or one inside it, and that folder."""
    if not folder.is_dir():
        return None
    for parser in PARSERS:
        if parser.matches(folder):
            return parser, folder
    places = [place for depth in ("*", "*/VOC*") for place in islice(sorted(folder.glob(depth)), 50)]
    inner = [(parser, place) for place in places for parser in PARSERS if place.is_dir() and parser.matches(place)]
    if len(inner) > 1:
        names = listed([place for _, place in inner], SHOWN)
        raise DatasetError(f"{folder} contains several data sets: {names}. Give the folder of one of them")
    return inner[0] if inner else None


def similar_folder(folder: Path) -> Path | None:
    """The existing folder with the name closest to that of a missing one, if any is close."""
    parent, names = _existing_parent(folder)
    close = difflib.get_close_matches(folder.absolute().relative_to(parent).parts[0], names, n=1, cutoff=0.6)
    return parent / close[0] if close else None


def _nearby_root(folder: Path) -> Path | None:
    """A folder in a published layout one or two levels above or below the given one."""
    above = list(folder.resolve().parents)[:2]
    children = _folders(folder.resolve())
    below = (grandchild for child in islice(children, 50) for grandchild in islice(_folders(child), 50))
    return next((place for place in (*above, *children, *below) if published_splits(place)), None)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


def _no_folder(folder: Path) -> str:
    if folder.is_symlink():
        return f"{folder} is a link to {folder.readlink()}, which does not exist: fix or remove the link."
    if folder.is_file():
        hint = "unpack it and give" if folder.suffix.lower() in (".zip", ".tar", ".gz", ".tgz") else "give"
        return f"{folder} is a file: {hint} the folder that holds {EXPECTED}."
    parent, names = _existing_parent(folder)
    close = similar_folder(folder)
    if close:
        hint = f"did you mean {close}?"
    elif names:
        hint = f"{parent} contains the folders {listed(names, 6)}."
    else:
        hint = f"{parent} contains no folders."
    return (
        f"there is no folder {folder}: {hint} `codetr prepare` needs the folder that holds {EXPECTED}, or one in the "
        "layout of LVIS, Objects365, Pascal VOC or YOLO."
    )


def _existing_parent(folder: Path) -> tuple[Path, list[str]]:
    """The innermost existing folder above a missing one, and the names of its folders."""
    parent = next(place for place in folder.absolute().parents if place.is_dir())
    return parent, [child.name for child in _folders(parent)]


def _other_layout(folder: Path) -> str:
    """What a folder holds instead of a supported layout, and what to do."""
    expected = f"Expected: {EXPECTED}; or a Pascal VOC or YOLO folder."
    other = _unsupported_layout(folder)
    if other is not None:
        name, evidence = other
        return (
            f"{folder} is a {name} data set ({evidence}). That layout is recognised but cannot be read yet: "
            f"convert it to COCO's JSON first. {expected}"
        )
    archives = [p.name for p in islice(folder.glob("*.zip"), 20) if "2017" in p.name]
    if archives:
        return f"{folder} contains {', '.join(archives)}, still packed: unpack them there. {expected}"
    annotations = folder / "annotations"
    if annotations.is_dir():
        names = sorted(path.name for path in islice(annotations.glob("*.json"), 50))
        if names:
            return (
                f"{annotations} contains {listed(names, 5)}, but no instances_train2017.json or "
                "instances_val2017.json: rename them (the image folders likewise), or pass their paths to training "
                "with --set data.train_annotations=... --set data.train_images=... --set data.val_annotations=... "
                f"--set data.val_images=... . {expected}"
            )
        return f"{annotations} has no annotation file: unpack annotations_trainval2017.zip in {folder}. {expected}"
    if (folder / "train2017").is_dir() or (folder / "val2017").is_dir():
        return (
            f"{folder} has images but no annotations/ folder: unpack annotations_trainval2017.zip there, or put "
            f"your own annotation files into it. {expected}"
        )
    names = sorted(entry.name for entry in islice(folder.iterdir(), 200))
    content = f"it contains {listed(names, 6)}" if names else "it is empty"
    return f"{folder} does not have the COCO layout: {content}. {expected}"


def _unsupported_layout(folder: Path) -> tuple[str, str] | None:
    """The name of a well-known layout that cannot be read, and the file that shows it; None for any other."""
    for place in (folder, *_folders(folder)[:20]):
        if _has(place, "_annotations.coco.json"):
            return "COCO with one file a folder (Roboflow export)", f"{place.name}/_annotations.coco.json"
        for parent in ("annotations", "."):
            if _has(place / parent, "lvis_v0*.json"):
                return "LVIS v0.5", f"{Path(parent, 'lvis_v0*.json')}; only LVIS v1 is supported"
    return None


def _has(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and next(folder.glob(pattern), None) is not None
