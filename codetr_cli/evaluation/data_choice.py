"""Which images an evaluation uses: a split of a data set, or a single annotation file, all of it or its reserved part.

A checkpoint that was trained on a part of a single file must not be evaluated on that part without notice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from codetr_cli.annotations.cache import source_of
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.overrides import apply_overrides, user_set
from codetr_cli.config.schema import Settings
from codetr_cli.errors import CodetrError, DatasetError
from codetr_cli.files import real_path
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.resolve import DataPaths, Split, data_root, find_data, is_single_file, without_images
from codetr_cli.inference.exported.engine import is_exported
from codetr_cli.inference.exported.read import settings_of_file
from codetr_cli.inference.loading import find_checkpoint
from codetr_cli.weights.checkpoint import stored_settings

MAX_DEPTH = 3
"""Folders between a data set and an annotation file of it."""


def data_config(overrides: Sequence[str]) -> tuple[DataConfig, frozenset[str]]:
    """The data settings of the command line, and the dotted names of those that it sets.

    Raises:
        ConfigError: an invalid override.
    """
    relevant = [override for override in overrides if override.strip().startswith("data.")]
    settings = apply_overrides(Settings(name="eval"), relevant)
    return settings.data, frozenset(user_set(settings))


def choose_data(
    config: DataConfig, chosen: Collection[str], split: Split | None, checkpoint: str | None
) -> tuple[DataPaths, str]:
    """Where the images and annotations of an evaluation are.

    Args:
        config: the data settings of the command.
        chosen: dotted names of the settings that the user set.
        split: the part that the user chose; None: "val" of a data set. Of a single file all images, or its reserved
            part if the checkpoint was trained on the others.
        checkpoint: a file, run folder, URL or preset; None: detections are scored, which needs no images. Those of a
            single file are used if they are found.

    Returns:
        the paths, and a name for them.

    Raises:
        ConfigError: options that exclude each other.
        DatasetError: images or annotations are not found.
    """
    trained = _trained_on(checkpoint)
    if trained is not None and "data.val_fraction" not in chosen:
        config = config.model_copy(update={"val_fraction": trained.val_fraction})
    any_dataset = "data.dataset" not in chosen
    root = data_root(config)
    if config.extra_roots or not is_single_file(root):
        part = split or "val"
        return find_data(config, None, part, any_dataset=any_dataset, needs_images=checkpoint is not None), part
    if split is not None:
        return find_data(config, None, split, any_dataset=any_dataset), f"{root.stem}_{split}"
    used = _part(trained, root) if trained is not None else None
    if used == "reserved":
        found = find_data(config, None, "val", any_dataset=any_dataset)
        note = (
            f"the checkpoint was trained on a part of {root}: only the images that were reserved for validation are "
            "evaluated; --split train evaluates the others."
        )
        return replace(found, notes=(*found.notes, note)), f"{root.stem}_val"
    try:
        found = find_data(config, None, "val", any_dataset=any_dataset, whole=True)
    except DatasetError:
        if checkpoint is not None or config.images is not None:
            raise
        return without_images(config, root), root.stem
    if used == "all":
        warning = f"the checkpoint was trained on the images of {root}: their scores are not representative"
        found = replace(found, warnings=(*found.warnings, warning))
    return found, root.stem


def choose_reviewed(
    config: DataConfig, chosen: Collection[str], split: Split | None, *, default: Split, needs_images: bool
) -> tuple[DataPaths, str]:
    """Where the images and annotations of a review are that no checkpoint plays a part in.

    Args:
        config: the data settings of the command.
        chosen: dotted names of the settings that the user set.
        split: the part that the user chose; None: of a single file all images, else `default`.
        default: see `split`.
        needs_images: whether images must be there; else they are used if they are.

    Returns:
        the paths, and a name for them.

    Raises:
        ConfigError: options that exclude each other.
        DatasetError: images or annotations are not found.
    """
    any_dataset = "data.dataset" not in chosen
    root = data_root(config)
    if config.extra_roots or not is_single_file(root):
        part = split or default
        return find_data(config, None, part, any_dataset=any_dataset, needs_images=needs_images), part
    if split is not None:
        return find_data(config, None, split, any_dataset=any_dataset), f"{root.stem}_{split}"
    if not needs_images:
        return choose_data(config, chosen, split, None)
    return find_data(config, None, "val", any_dataset=any_dataset, whole=True), root.stem


def _trained_on(checkpoint: str | None) -> DataConfig | None:
    """The data settings of a checkpoint's training; None for weights of others, and for presets."""
    path = find_checkpoint(checkpoint) if checkpoint is not None else None
    if path is None:
        return None
    settings = settings_of_file(path) if is_exported(path) else stored_settings(path)
    return None if settings is None else settings.data


def _part(trained: DataConfig, annotations: Path) -> Literal["reserved", "all"] | None:
    """Whether a training used a part of an annotation file, or all of it; None: neither, as far as is known."""
    if trained.extra_roots:
        return None
    path = real_path(annotations)
    place = Path(trained.annotations or trained.root or "")
    try:
        if not place.is_absolute() or not (place.is_file() or _is_near(path, real_path(place))):
            return None
        found = open_dataset(place, ReadOptions.of(trained), trained.dataset)
    except (CodetrError, OSError):
        return None
    train = found.splits.get("train") if found is not None else None
    if train is None or path != _original(train.part_of or train.annotations_path):
        return None
    return "reserved" if train.part_of is not None else "all"


def _is_near(path: Path, folder: Path) -> bool:
    return folder in path.parents[: MAX_DEPTH + 1]


def _original(path: Path) -> Path:
    """The file that a copy in the cache was made of, or the file itself."""
    return real_path(Path(source_of(path).name))
