"""How many of some images a checkpoint was trained on, as far as its settings and run folder say where these were.

Images are compared by the files that they are: a checkpoint that has learned from them repeats errors of annotation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import CodetrError
from codetr_cli.formats.resolve import DataPaths, find_data
from codetr_cli.inference.exported.engine import is_exported
from codetr_cli.inference.exported.read import settings_of_file
from codetr_cli.weights.checkpoint import stored_settings

logger = logging.getLogger(__name__)


def count_trained(checkpoint: Path, paths: DataPaths, file_names: Sequence[str]) -> int | None:
    """The number of images that a checkpoint was trained on.

    Args:
        checkpoint: a file.
        paths: of the images.
        file_names: of the images, relative to their folder.

    Returns:
        None if nothing says what it was trained on, or that is not on this machine.
    """
    trained = _trained_files(checkpoint)
    if trained is None:
        return None
    folder = os.path.realpath(paths.images_dir)
    return sum(os.path.normpath(os.path.join(folder, name)) in trained for name in file_names)  # noqa: PTH118


def _trained_files(checkpoint: Path) -> set[str] | None:
    """The image files of a checkpoint's training."""
    try:
        settings = settings_of_file(checkpoint) if is_exported(checkpoint) else stored_settings(checkpoint)
        if settings is None or not _names_data(settings.data):
            return None
        found = find_data(settings.data, None, "train", any_dataset=True)
        names = read_annotations(found.annotations_path).file_names[: settings.data.max_images]
    except (CodetrError, OSError) as error:
        logger.debug("the images that %s was trained on are not known: %s", checkpoint, error)
        return None
    folder = os.path.realpath(found.images_dir)
    return {os.path.normpath(os.path.join(folder, name)) for name in names}  # noqa: PTH118


def _names_data(config: DataConfig) -> bool:
    """Whether settings say where the training images are; published ones do not."""
    return bool(config.root or config.annotations or (config.train_images and config.train_annotations))
