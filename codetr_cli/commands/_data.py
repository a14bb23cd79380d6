"""The data set that a verb is about: an argument or an option, the environment, defaults, or the usual folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from codetr_cli import console
from codetr_cli.errors import ConfigError
from codetr_cli.files import user_path

if TYPE_CHECKING:
    from codetr_cli.commands._defaults import Defaults
    from codetr_cli.config.schema import DatasetName


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
