"""Where the images and annotations of a split are, in one folder or in several that are merged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from codetr_cli.config.schema import DataConfig, DatasetName
from codetr_cli.data.formats.cache import read_summary
from codetr_cli.data.formats.converted import Converted, find_converted
from codetr_cli.data.formats.detect import similar_folder
from codetr_cli.data.formats.layouts import LAYOUTS, default_root, published_split, published_splits
from codetr_cli.data.formats.merged import find_merged
from codetr_cli.data.formats.merged_table import Part
from codetr_cli.errors import ConfigError, DatasetError

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class DataPaths:
    """Folder of the images and file of the annotations of one split.

    Args:
        dataset: whose rules apply; None where only paths were given.
    """

    images_dir: Path
    annotations_path: Path
    notes: tuple[str, ...] = ()
    dataset: DatasetName | None = None
    warnings: tuple[str, ...] = ()


def find_data(config: DataConfig, data: str | None, split: Split, *, any_dataset: bool = False) -> DataPaths:
    """Finds one split of a data set in a published layout, see `data.formats.layouts`, or in VOC's or YOLO's.

    The folder is `data`, else `config.root`, else the environment's CODETR_DATA, else data/coco (or data/lvis_v1,
    data/objects365); paths of `config` for the split's images or annotations take precedence over its content. The
    data sets of `config.extra_roots` are merged with it, each in its own layout. With `any_dataset`, another known data
    set is used if the folder does not contain `config.dataset`.

    Raises:
        ConfigError: a folder is given twice.
        DatasetError: the image folder or the annotation file is missing, or belongs to another data set.
    """
    named = data or config.root or os.environ.get("CODETR_DATA")
    root = Path(named) if named else default_root(config.dataset)
    if config.extra_roots:
        return _find_several(config, [root, *map(Path, config.extra_roots)], split)
    location = _locate(config, root, split, any_dataset=any_dataset)
    _check_present(config, root, location, split)
    return location.paths


def convert_unpublished(folder: Path, *, skip_bad: bool = False) -> Converted | None:
    """The result of `find_converted`; None if the folder has a published layout, which takes precedence."""
    return None if published_splits(folder) else find_converted(folder, skip_bad=skip_bad)


@dataclass(frozen=True)
class _Location:
    """Where a split should be.

    Args:
        other: a known data set whose files are in the folder, while those of the requested one are not.
        absent: why a converted folder does not have the split; empty otherwise.
    """

    paths: DataPaths
    dataset: DatasetName
    title: str
    other: DatasetName | None = None
    absent: str = ""


def _locate(config: DataConfig, root: Path, split: Split, *, any_dataset: bool) -> _Location:
    images, annotations = {
        "train": (config.train_images, config.train_annotations),
        "val": (config.val_images, config.val_annotations),
        "test": (None, None),
    }[split]
    files = published_split(split, root, config.dataset)
    others = (found.dataset for found in published_splits(root) if found.dataset != config.dataset)
    other = None if files.annotations_path.is_file() else next(others, None)
    if any_dataset and other is not None and not annotations:
        files = published_split(split, root, other)
    title, absent = LAYOUTS[files.dataset].title, ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    if not (images and annotations):
        converted = convert_unpublished(root, skip_bad=config.bad_files == "skip")
        if converted is not None:
            title, converted_split = converted.title, converted.find(split)
            if converted_split is None:
                absent = (
                    f"{root} ({title}) has no {split} images, only {', '.join(converted.splits)}. Add a list or folder "
                    "of them, or choose another split"
                )
            else:
                files, notes = converted_split, converted.sentences()
                warnings = converted.warnings()
    paths = DataPaths(
        images_dir=Path(images or files.images_dir),
        annotations_path=Path(annotations or files.annotations_path),
        notes=notes,
        dataset=files.dataset,
        warnings=warnings,
    )
    return _Location(paths, files.dataset, title, other, absent)


def _check_present(config: DataConfig, root: Path, location: _Location, split: Split) -> None:
    if location.absent:
        raise DatasetError(location.absent)
    paths = location.paths
    missing = [f"the folder {paths.images_dir}"] if not paths.images_dir.is_dir() else []
    missing += [f"the file {paths.annotations_path}"] if not paths.annotations_path.is_file() else []
    if not missing:
        return
    layout = LAYOUTS[location.dataset]
    others = ", or in Pascal VOC's or YOLO's," if layout is LAYOUTS["coco"] else ""
    hint = ""
    if not root.exists() and len(missing) == 2:
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
    """One split of several data sets, merged; a data set without that split is used for training only."""
    for index, root in enumerate(roots):
        if root.resolve() in [before.resolve() for before in roots[:index]]:
            raise ConfigError(f"the data set {root} is given twice: give each folder once")
    parts: list[Part] = []
    required: list[tuple[DataConfig, Path, _Location]] = []
    datasets: set[DatasetName] = set()
    for index, root in enumerate(roots):
        own = config if index == 0 else config.model_copy(update=dict.fromkeys(_PATHS))
        locations = {name: _locate(own, root, name, any_dataset=True) for name in SPLITS}
        present = {
            name: location.paths
            for name, location in locations.items()
            if not location.absent and location.paths.annotations_path.is_file()
        }
        if split in present or split == "train":
            required.append((own, root, locations[split]))
        datasets.add(locations[split].dataset)
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
    folder = find_merged(parts)
    summary = read_summary(folder)
    return DataPaths(
        images_dir=Path(summary["images_dir"]),
        annotations_path=folder / f"instances_{split}.json",
        notes=tuple(summary["notes"][split]),
        dataset=datasets.pop() if len(datasets) == 1 else "coco",
        warnings=(
            *(text for _, _, location in required for text in location.paths.warnings),
            *summary["warnings"][split],
        ),
    )


_PATHS = ("train_images", "train_annotations", "val_images", "val_annotations")
