"""The data that a verb is about: the folder, from an argument, defaults or the usual place; images and annotations."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from codetr_cli import console
from codetr_cli.errors import ConfigError
from codetr_cli.files import user_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codetr_cli.commands._defaults import Defaults, Invocation
    from codetr_cli.commands._options import Split
    from codetr_cli.config.data_settings import DataConfig, DatasetName
    from codetr_cli.evaluation.detection_records import MatchedDetections
    from codetr_cli.formats.resolve import DataPaths


def data_folder(named: str | None, dataset: DatasetName, defaults: Defaults, *, verb: str, note: bool) -> Path:
    """The folder of a data set.

    Args:
        named: as the user has given it.
        dataset: whose usual folder is looked for.
        defaults: of the user.
        verb: that the error is about.
        note: whether to print which default is used.

    Raises:
        ConfigError: there is no such folder, and none is named.
    """
    from codetr_cli.annotations.layouts import default_root

    if named is not None:
        return user_path(named, "the folder")
    variable = os.environ.get("CODETR_DATA")
    if variable:
        return Path(variable)
    if defaults.data:
        if note:
            console.info(defaults.note("data"))
        return Path(defaults.data[0])
    if default_root(dataset).exists():
        return default_root(dataset)
    raise ConfigError(
        f"which folder? Give the dataset: `codetr {verb} DIR`. To try the program without data of your own: "
        "`codetr prepare --demo demo/data`."
    )


def located(config: DataConfig, named: str | None, invocation: Invocation, *, verb: str, note: bool) -> DataConfig:
    """The settings of the data with the folder that is read, unless they name one annotation file.

    Args:
        config: of the command.
        named: the folder as the user has given it.
        invocation: of the command.
        verb: as for `data_folder`, and so is the next.
        note: whether to print which default is used.
    """
    if config.annotations and named is None:
        return config
    folder = data_folder(named or config.root, config.dataset, invocation.defaults, verb=verb, note=note)
    return config.model_copy(update={"root": str(folder)})


def show_notes(paths: DataPaths) -> None:
    """Prints how data were found, and warnings about them."""
    for note in paths.notes:
        console.info(note)
    for warning in paths.warnings:
        console.warn(warning)


def evaluated_data(
    data: Sequence[str] | None, split: Split | None, overrides: Sequence[str], checkpoint: str | None
) -> tuple[DataPaths, str]:
    """Where images and annotations are, and a name for them; no checkpoint: images are not needed.

    The data that the checkpoint was trained on plays no part, except that the same images are reserved for validation.
    """
    from codetr_cli.evaluation.data_choice import choose_data

    config, chosen, unused = named_data(data, overrides)
    found, name = choose_data(config, chosen, split, checkpoint)
    return replace(found, warnings=(*found.warnings, *unused)), name


def named_data(
    data: Sequence[str] | None, overrides: Sequence[str]
) -> tuple[DataConfig, frozenset[str], tuple[str, ...]]:
    """The settings of the data that a command names, which of them the user chose, and warnings about unused ones."""
    from codetr_cli.evaluation.data_choice import data_config
    from codetr_cli.formats.resolve import unused_roots

    config, chosen = data_config(overrides)
    if not data:
        return config, chosen, ()
    unused = unused_roots(config, data)
    named = {"root": data[0], "extra_roots": tuple(data[1:]), "annotations": None}
    return config.model_copy(update=named), chosen, unused


def show_matching(matched: MatchedDetections) -> None:
    """Prints what was found out while the detections of a file were matched with annotations."""
    for note in matched.notes:
        console.info(f"{note}.")
    for hint in matched.hints:
        console.warn(f"{hint}.")
