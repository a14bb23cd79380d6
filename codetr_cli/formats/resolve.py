"""Where the images and annotations of a split are, in one folder or in several that are merged."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.layouts import LAYOUTS, default_root, published_split
from codetr_cli.config.data_settings import DataConfig, DatasetName
from codetr_cli.errors import ConfigError, DatasetError, listed
from codetr_cli.files import real_path
from codetr_cli.formats.detect import similar_folder, why_unknown
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.merged import find_merged
from codetr_cli.formats.merged_table import Part
from codetr_cli.formats.one_file import check_annotations_file
from codetr_cli.formats.open import DESCRIPTIONS, open_dataset
from codetr_cli.reading import open_file

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class DataPaths:
    """Folder of the images and file of the annotations of one split.

    Args:
        names: what the names of images may lead to.
        dataset: whose rules apply; None where only paths were given.
    """

    images_dir: Path
    annotations_path: Path
    names: NameRule
    notes: tuple[str, ...] = ()
    dataset: DatasetName | None = None
    warnings: tuple[str, ...] = ()


def find_data(
    config: DataConfig,
    data: str | None,
    split: Split,
    *,
    any_dataset: bool = False,
    whole: bool = False,
    needs_images: bool = True,
) -> DataPaths:
    """Finds one split of a data set in a published layout, see `annotations.layouts`, or in VOC's or YOLO's.

    The folder is `data`, else `config.root`, else the environment's CODETR_DATA, else data/coco (or data/lvis_v1,
    data/objects365). `config.annotations`, a single file, replaces it: a part of it is reserved for validation or, with
    `whole`, all of it is every split. Paths of `config` for the split's images or annotations take precedence over its
    content. The data sets of `config.extra_roots` are merged with it, each in its own layout. With `any_dataset`,
    another known data set is used if the folder does not contain `config.dataset`. Without `needs_images` the folder of
    the images may be absent.

    Raises:
        ConfigError: a folder is given twice.
        DatasetError: the image folder or the annotation file is missing, or belongs to another data set.
    """
    root = data_root(config, data)
    if config.extra_roots:
        return _find_several(config, [root, *map(Path, config.extra_roots)], split)
    location = _locate(config, root, split, any_dataset=any_dataset, whole=whole)
    _check_present(config, root, location, split, needs_images=needs_images)
    return location.paths


def without_images(config: DataConfig, annotations: Path) -> DataPaths:
    """All of an annotation file whose images are not found: names count from the current folder."""
    return DataPaths(Path(), annotations, NameRule.of(Path(), allow_outside=config.allow_outside))


def data_root(config: DataConfig, data: str | None = None) -> Path:
    """The folder or the annotation file of the data set, see `find_data`.

    Raises:
        ConfigError: the annotation file is a folder, or both it and other data sets are given.
        DatasetError: it does not exist.
    """
    if config.annotations is None:
        named = data or config.root or os.environ.get("CODETR_DATA")
        return Path(named) if named else default_root(config.dataset)
    if data or config.extra_roots:
        other = data or config.extra_roots[0]
        raise ConfigError(
            f"both the annotation file {config.annotations} and the data set {other} are given: give one of them, or "
            "both with --data, which are merged"
        )
    return check_annotations_file(Path(config.annotations))


def is_single_file(root: Path) -> bool:
    """Whether a data set is given as one annotation file, not as a folder or its description."""
    return root.is_file() and root.suffix.lower() not in DESCRIPTIONS


def unused_roots(config: DataConfig, folders: Sequence[str]) -> tuple[str, ...]:
    """A warning if `data.extra_roots` has folders that are not among those of the command line, which replace them."""
    unused = [root for root in config.extra_roots if Path(root).absolute() not in [Path(f).absolute() for f in folders]]
    if not unused:
        return ()
    return (f"data.extra_roots ({listed(unused)}) is not used, because the command names the data: name all folders",)


@dataclass(frozen=True)
class _Location:
    """Where a split should be.

    Args:
        other: a known data set whose files are in the folder, while those of the requested one are not.
        absent: why a converted folder does not have the split; empty otherwise.
        is_unknown: whether the folder has no known layout.
    """

    paths: DataPaths
    dataset: DatasetName
    title: str
    other: DatasetName | None = None
    absent: str = ""
    is_unknown: bool = False


def _locate(config: DataConfig, root: Path, split: Split, *, any_dataset: bool, whole: bool = False) -> _Location:
    images, annotations = {
        "train": (config.train_images, config.train_annotations),
        "val": (config.val_images, config.val_annotations),
        "test": (None, None),
    }[split]
    files = published_split(split, root, config.dataset)
    title, other, absent = LAYOUTS[files.dataset].title, None, ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    folders: list[Path] = []
    options = ReadOptions.of(config)
    if whole:
        options = replace(options, val_fraction=0.0)
    found = None if images and annotations else open_dataset(root, options, config.dataset)
    if found is not None:
        folders += [] if is_single_file(root) else [root, found.folder]
        has = found.splits["train"] if whole and is_single_file(root) else found.find(split)
        kind = next(iter(found.splits.values())).dataset
        differs = kind != config.dataset and not (config.dataset == "lvis" and _names_absent_classes(found))
        if differs and found.is_published and not (any_dataset and not annotations):
            other = kind
        elif has is not None:
            title, files, notes, warnings = found.title, has, found.sentences(), found.warnings()
            if is_single_file(root):
                files = replace(files, dataset=config.dataset)
        elif not found.is_published:
            title = found.title
            absent = (
                f"{root} ({title}) has no {split} images, only {', '.join(found.splits)}. Add a list or folder of "
                "them, or choose another split"
            )
        else:
            title, files = found.title, published_split(split, root, kind)
    images_dir = Path(images or files.images_dir)
    paths = DataPaths(
        images_dir=images_dir,
        annotations_path=Path(annotations or files.annotations_path),
        names=NameRule.of(*folders, images_dir, allow_outside=config.allow_outside),
        notes=notes,
        dataset=files.dataset,
        warnings=warnings,
    )
    is_unknown = found is None and not (images or annotations)
    return _Location(paths, files.dataset, title, other, absent, is_unknown)


def _names_absent_classes(found: FoundDataset) -> bool:
    """Whether an annotation file with COCO's name has what only LVIS has, to judge by its text."""
    for split in found.splits.values():
        try:
            with (
                open_file(split.annotations_path) as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
            ):
                if text.find(b'"neg_category_ids"') >= 0:
                    return True
        except (OSError, ValueError):  # unreadable or empty, which its reader reports
            continue
    return False


def _check_present(
    config: DataConfig, root: Path, location: _Location, split: Split, *, needs_images: bool = True
) -> None:
    if location.absent:
        raise DatasetError(location.absent)
    paths = location.paths
    missing = [f"the folder {paths.images_dir}"] if needs_images and not paths.images_dir.is_dir() else []
    missing += [f"the file {paths.annotations_path}"] if not paths.annotations_path.is_file() else []
    if not missing:
        return
    if location.is_unknown and root.is_dir():
        raise DatasetError(f"no {split} data: {why_unknown(root, config.format)}")
    layout = LAYOUTS[location.dataset]
    others = ", or in any other that `codetr prepare` knows," if layout is LAYOUTS["coco"] else ""
    hint = ""
    if not root.exists() and len(missing) == 1 + needs_images:
        missing = [f"the folder {root}"]
        close = similar_folder(root)
        hint = f"Did you mean {close}? " if close else ""
    if location.other is not None and location.dataset == config.dataset:
        hint = (
            f"{root} has {LAYOUTS[location.other].title} annotations, but the settings are for {layout.title}: use a "
            f"preset for {LAYOUTS[location.other].title}, or --set data.dataset={location.other}. "
        )
    raise DatasetError(
        f"no {split} data: {' and '.join(missing)} not found. {hint}Give a folder in {layout.title}'s layout{others} "
        f"with --data or CODETR_DATA, or link it permanently as {layout.roots[0]} with `codetr prepare FOLDER`"
    )


def _find_several(config: DataConfig, roots: list[Path], split: Split) -> DataPaths:
    """One split of several data sets, merged.

    A data set without validation images is used for training only, unless none has any: then each reserves some.
    """
    for index, root in enumerate(roots):
        if real_path(root) in [real_path(before) for before in roots[:index]]:
            raise ConfigError(f"the data set {root} is given twice: give each folder once")
    whole = config.model_copy(update={"val_fraction": 0.0})
    if any(_has_validation(_own(whole, index), root) for index, root in enumerate(roots)):
        config = whole
    parts: list[Part] = []
    required: list[tuple[DataConfig, Path, _Location]] = []
    datasets: set[DatasetName] = set()
    folders: list[str] = []
    for index, root in enumerate(roots):
        own = _own(config, index)
        locations = {name: _locate(own, root, name, any_dataset=True) for name in SPLITS}
        present = {
            name: location.paths
            for name, location in locations.items()
            if not location.absent and location.paths.annotations_path.is_file()
        }
        if split in present or split == "train":
            required.append((own, root, locations[split]))
        datasets.add(locations[split].dataset)
        folders += [folder for paths in present.values() for folder in paths.names.folders]
        parts.append(
            Part(
                folder=root,
                title=locations["train"].title,
                splits={name: (paths.images_dir, paths.annotations_path) for name, paths in present.items()},
                notes=next((paths.notes for paths in present.values()), ()),
            )
        )
    if not required:
        required = [(config, roots[0], _locate(config, roots[0], split, any_dataset=True))]
    for own, root, location in required:
        _check_present(own, root, location, split)
    folder, summary = find_merged(parts)
    return DataPaths(
        images_dir=Path(summary["images_dir"]),
        annotations_path=folder / f"instances_{split}.json",
        names=NameRule(tuple(dict.fromkeys(folders)), config.allow_outside, tuple(map(str, roots))),
        notes=tuple(summary["notes"].get(split, ())),
        dataset=datasets.pop() if len(datasets) == 1 else "coco",
        warnings=(
            *(text for _, _, location in required for text in location.paths.warnings),
            *summary["warnings"].get(split, ()),
        ),
    )


def _own(config: DataConfig, index: int) -> DataConfig:
    """The settings of one of several data sets: paths of images and annotations are those of the first."""
    return config if index == 0 else config.model_copy(update=dict.fromkeys(_PATHS))


def _has_validation(config: DataConfig, root: Path) -> bool:
    location = _locate(config, root, "val", any_dataset=True)
    return not location.absent and location.paths.annotations_path.is_file()


_PATHS = ("images", "train_images", "train_annotations", "val_images", "val_annotations")
