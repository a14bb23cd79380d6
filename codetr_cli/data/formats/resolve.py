"""Where the images and annotations of a split lie, in one folder or in several that are merged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from codetr_cli.config.schema import DataConfig
from codetr_cli.data.formats.converted import find_converted
from codetr_cli.data.formats.detect import LAYOUTS, default_root, has_published_layout, similar_folder
from codetr_cli.data.formats.detect import Split as SplitPlace
from codetr_cli.data.formats.merged import Part, find_merged
from codetr_cli.errors import ConfigError, DatasetError

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Kind: TypeAlias = Literal["coco", "lvis", "objects365"]


@dataclass(frozen=True)
class DataPaths:
    """Folder of the images and file of the annotations of one split.

    Args:
        images_dir: what the names of images are relative to.
        annotations_path: COCO's JSON.
        notes: sentences about choices that were made in finding them.
        dataset: whose rules they go by; None where only paths were given.
        warnings: sentences about what may go wrong.
    """

    images_dir: Path
    annotations_path: Path
    notes: tuple[str, ...] = ()
    dataset: Kind | None = None
    warnings: tuple[str, ...] = ()


def find_data(config: DataConfig, data: str | None, split: Split, *, any_dataset: bool = False) -> DataPaths:
    """Finds one split of a data set in its published layout, see `data.formats.detect`, or in VOC's or YOLO's.

    The folder is `data`, else `config.root`, else the environment's CODETR_DATA, else data/coco (or data/lvis_v1,
    data/objects365); paths of `config` for the split's images or annotations override what lies in it. The sets of
    `config.extra_roots` are merged with it, each read as whatever it is.

    Args:
        config: names the data set, and perhaps the paths.
        data: folder given on the command line.
        split: which images.
        any_dataset: if the folder does not hold `config.dataset` but another known data set, take that.

    Raises:
        ConfigError: a folder is given twice.
        DatasetError: the folder of images or the annotation file is not there; or those of another data set are.
    """
    root = _root(config, data)
    if config.extra_roots:
        return _find_several(config, [root, *map(Path, config.extra_roots)], split)
    place = _locate(config, root, split, any_dataset=any_dataset)
    if place.absent:
        raise DatasetError(place.absent)
    _check_present(config, root, place, split)
    return place.paths


@dataclass(frozen=True)
class _Place:
    """Where a split should lie; `absent` says why it has no place in a folder that is converted.

    `other` is a known data set whose files lie there while those that were asked for do not.
    """

    paths: DataPaths
    kind: str
    title: str
    other: str | None = None
    absent: str = ""


def _root(config: DataConfig, data: str | None) -> Path:
    named = data or config.root or os.environ.get("CODETR_DATA")
    return Path(named) if named else default_root(config.dataset)


def _locate(config: DataConfig, root: Path, split: Split, *, any_dataset: bool) -> _Place:
    images, annotations = {
        "train": (config.train_images, config.train_annotations),
        "val": (config.val_images, config.val_annotations),
        "test": (None, None),
    }[split]
    place = SplitPlace(split, root, config.dataset)
    other = None if place.annotations_path.is_file() else _other_dataset(root, config.dataset)
    if any_dataset and other is not None and not annotations:
        place = SplitPlace(split, root, other)
    title, absent, kind = LAYOUTS[place.dataset].title, "", place.dataset
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    if not (images and annotations) and not has_published_layout(root):
        converted = find_converted(root, skip_bad=config.bad_files == "skip")
        if converted is not None:
            title, found = converted.title, converted.find(split)
            if found is None:
                absent = (
                    f"{root} ({title}) has no {split} images, but those of {', '.join(converted.splits)}. Add a list "
                    "or folder of them, or choose another split"
                )
            else:
                place, notes, kind = found, converted.sentences(), "coco"
                warnings = converted.warnings()
    paths = DataPaths(
        images_dir=Path(images or place.images_dir),
        annotations_path=Path(annotations or place.annotations_path),
        notes=notes,
        dataset=_known(kind),
        warnings=warnings,
    )
    return _Place(paths, kind, title, other, absent)


def _known(kind: str) -> Kind:
    return "lvis" if kind == "lvis" else "objects365" if kind == "objects365" else "coco"


def _check_present(config: DataConfig, root: Path, place: _Place, split: Split) -> None:
    """Refuses a split of which a part is missing.

    Raises:
        DatasetError: names it, and what lies there instead.
    """
    paths = place.paths
    missing = [f"the folder {paths.images_dir}"] if not paths.images_dir.is_dir() else []
    missing += [f"the file {paths.annotations_path}"] if not paths.annotations_path.is_file() else []
    if not missing:
        return
    layout = LAYOUTS[place.kind]
    others = ", or in Pascal VOC's or YOLO's," if layout is LAYOUTS["coco"] else ""
    hint = ""
    if not root.exists() and len(missing) == 2:
        missing = [f"the folder {root}"]
        close = similar_folder(root)
        hint = f"Did you mean {close}? " if close else ""
    if place.other is not None and place.kind == config.dataset:
        hint = (
            f"{root} holds {LAYOUTS[place.other].title} annotations, but the settings are for {layout.title}: take a "
            f"preset for {LAYOUTS[place.other].title}, or say --set data.dataset={place.other}. "
        )
    raise DatasetError(
        f"no {split} data: {' and '.join(missing)} not found. {hint}Name a folder in {layout.title}'s layout{others} "
        f"with --data or CODETR_DATA, or link it as {layout.roots[0]} once and for all with `codetr prepare FOLDER`"
    )


def _other_dataset(root: Path, dataset: str) -> str | None:
    """Which other known data set the folder holds, if any."""
    places = [SplitPlace(name, root, kind) for kind in LAYOUTS if kind != dataset for name in ("train", "val")]
    return next((place.dataset for place in places if place.annotations_path.is_file()), None)


# ------------------------------------------------------------------------------------------------- several data sets


def _find_several(config: DataConfig, roots: list[Path], split: Split) -> DataPaths:
    """One split of several sets, merged; a set that has no such images is left out of all but training.

    Raises:
        ConfigError: a folder is given twice.
        DatasetError: a part is missing.
    """
    for index, root in enumerate(roots):
        if root.resolve() in [before.resolve() for before in roots[:index]]:
            raise ConfigError(f"the data set {root} is given twice: name each folder once")
    parts: list[Part] = []
    wanted: list[tuple[DataConfig, Path, _Place]] = []
    kinds: set[str] = set()
    for index, root in enumerate(roots):
        own = config if index == 0 else config.model_copy(update=dict.fromkeys(_PATHS))
        places = {name: _locate(own, root, name, any_dataset=True) for name in SPLITS}
        present = {
            name: place.paths
            for name, place in places.items()
            if not place.absent and place.paths.annotations_path.is_file()
        }
        if split in present or split == "train":
            wanted.append((own, root, places[split]))
        kinds.add(places[split].kind)
        parts.append(
            Part(
                folder=root,
                title=places["train"].title,
                splits={name: (paths.images_dir, paths.annotations_path) for name, paths in present.items()},
                notes=next((paths.notes for paths in present.values()), ()),
            )
        )
    if not wanted:
        wanted = [(config, roots[0], _locate(config, roots[0], split, any_dataset=True))]
    for own, root, place in wanted:
        if place.absent:
            raise DatasetError(place.absent)
        _check_present(own, root, place, split)
    merged = find_merged(parts)
    return DataPaths(
        images_dir=merged.images_dir,
        annotations_path=merged.tables[split],
        notes=tuple(merged.notes[split]),
        dataset=_known(kinds.pop()) if len(kinds) == 1 else "coco",
        warnings=(*(text for _, _, place in wanted for text in place.paths.warnings), *merged.warnings[split]),
    )


_PATHS = ("train_images", "train_annotations", "val_images", "val_annotations")
