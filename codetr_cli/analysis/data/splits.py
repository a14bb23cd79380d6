"""All splits of a data set that have annotations, read as `codetr prepare` finds them, in any layout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from codetr_cli.annotations.cache import source_of
from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError
from codetr_cli.formats.coco_json import sample_of
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.resolve import SPLITS, DataPaths, Split, data_root, find_data, is_single_file, without_images

Progress: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress display for a description and a total; yields the function that advances it."""


@dataclass(frozen=True, eq=False)
class DataSplit:
    """One split: its name, where it is, and what is in it."""

    name: Split
    paths: DataPaths
    annotations: Annotations

    def image_files(self) -> list[Path]:
        """The file of each image; it may not be there.

        Raises:
            DatasetError: names lead out of the data set, which is not allowed.
        """
        names = self.annotations.file_names
        folder = ImageFolder(self.paths.images_dir, names, self.paths.names)
        inside, _ = folder.inside(names, source_of(self.paths.annotations_path).name)
        meant = folder.meant()
        return [self.paths.images_dir / (meant.get(name) or name) for name in inside]


def split_names(config: DataConfig) -> list[Split]:
    """The splits of a data set that have annotations, training images first; none if the folder has no known layout.

    Args:
        config: where the data are and how they are read.

    Raises:
        ConfigError: the annotation file is a folder, or both it and other data are given.
        DatasetError: there is no such annotation file, or the data set is broken.
    """
    found = open_dataset(data_root(config), ReadOptions.of(config), config.dataset)
    if found is None:
        return []
    names = [name for name in SPLITS if name in found.splits]
    return [name for name in names if _has_objects(name, found.splits[name].annotations_path)]


def read_splits(
    config: DataConfig,
    *,
    only: Split | None = None,
    with_outlines: bool = False,
    needs_images: bool = True,
    progress: Progress | None = None,
) -> list[DataSplit]:
    """The splits of a data set that have annotations, training images first.

    Args:
        config: where the data are and how they are read.
        only: the one that is read; None: all.
        with_outlines: of objects.
        needs_images: whether their folders must be there. Without them, all images of a single file are one split.
        progress: displays the progress.

    Raises:
        ConfigError: the annotation file is a folder, or both it and other data are given.
        DatasetError: there is no such data set or split, or its annotations are broken.
    """
    splits = []
    for name, paths in _split_paths(config, only, needs_images=needs_images):
        if progress is None:
            annotations = read_annotations(paths.annotations_path, with_outlines=with_outlines)
        else:
            with progress(f"reading {source_of(paths.annotations_path).name}", 1) as advance:
                annotations = read_annotations(paths.annotations_path, with_outlines=with_outlines)
                advance(1)
        splits.append(DataSplit(name, paths, annotations))
    return splits


def _split_paths(config: DataConfig, only: Split | None, *, needs_images: bool) -> list[tuple[Split, DataPaths]]:
    try:
        # A split that is not there is an error that says where it was looked for.
        names: list[Split] = [only] if only is not None else split_names(config) or ["train"]
        return [(name, find_data(config, None, name, any_dataset=True, needs_images=needs_images)) for name in names]
    except DatasetError:
        root = data_root(config)
        if needs_images or config.images is not None or only is not None or not is_single_file(root):
            raise
        note = f"the images of {root.name} are not found: all of them are one split"
        return [("train", replace(without_images(config, root), notes=(note,)))]


def _has_objects(name: Split, path: Path) -> bool:
    """Whether the annotations of a split are more than a list of test images."""
    return name != "test" or sample_of(path).kind != "images"
