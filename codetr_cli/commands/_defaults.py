"""The user's defaults: `codetr.toml`, or `[tool.codetr]` of `pyproject.toml`, in this folder or the nearest parent.

An option on the command line has precedence over them, and so has the environment variable CODETR_DATA.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_cli.errors import ConfigError, listed, nearest
from codetr_cli.reading import MAX_TOML_BYTES, parse_toml, read_bytes

KEYS = ("data", "device", "loggers")
WITH_DATA = ("train", "eval", "compare")
WITH_DEVICE = ("train", "eval", "compare", "predict", "label", "serve")
BENCHMARKS = ("infer", "train", "ops", "data")  # of `codetr bench`, all with a device
EXCLUDES = {"device": ("--gpus", "--procs"), "data": ("--ann", "--images", "--demo")}
"""Default -> options beside which it is not used."""


@dataclass(frozen=True)
class Defaults:
    """What a file sets.

    Attributes:
        file: where; None when there is no such file.
        data: dataset folders, relative to the folder of the file.
        device: as for --device, None when not set.
        loggers: as for the setting train.loggers, None when not set.
    """

    file: Path | None = None
    data: tuple[str, ...] = ()
    device: str | None = None
    loggers: tuple[str, ...] | None = None

    def note(self, *keys: str) -> str:
        """A line for the user: values of defaults and their file."""
        values = {key: getattr(self, key) for key in keys}
        texts = {key: value if isinstance(value, str) else ", ".join(value) or "none" for key, value in values.items()}
        return f"defaults from {self.file}: {', '.join(f'{key} = {text}' for key, text in texts.items())}"

    def setting(self, overrides: Sequence[str]) -> list[str]:
        """The loggers as an override of the settings, unless the user overrides them."""
        if self.loggers is None or any(override.partition("=")[0].strip() == "train.loggers" for override in overrides):
            return []
        return [f"train.loggers={json.dumps(self.loggers)}"]

    def for_options(self, words: Sequence[str]) -> dict[str, Any]:
        """Verb -> option -> value, for Typer's `default_map`; the words are those after `codetr`."""
        given = {word.partition("=")[0] for word in words}
        options: dict[str, dict[str, Any]] = {}
        if self.device and given.isdisjoint(EXCLUDES["device"]):
            options = {verb: {"device": self.device} for verb in WITH_DEVICE}
            options["bench"] = {kind: {"device": self.device} for kind in BENCHMARKS}
        if self.data and given.isdisjoint(EXCLUDES["data"]):
            for verb in WITH_DATA:
                options.setdefault(verb, {})["data"] = list(self.data)
        return options


@dataclass(frozen=True)
class Invocation:
    """One call of the program: its words after `codetr`, and the user's defaults. It is `typer.Context.obj`."""

    words: list[str]
    defaults: Defaults

    @property
    def command(self) -> str:
        """The call for a page or a file: it can be given again, unless credentials in a URL were hidden."""
        from codetr_cli.report.facts import command_text

        return command_text(self.words)


def find_defaults(folder: Path) -> Defaults:
    """The defaults of the file that is nearest to the folder, `codetr.toml` before `pyproject.toml`.

    Raises:
        ConfigError: the file is not TOML, or has an unknown key or a value of a wrong type.
    """
    for parent in (folder, *folder.parents):
        for file in (parent / "codetr.toml", parent / "pyproject.toml"):
            table = _read(file)
            if table is not None:
                return _parse(table, file)
    return Defaults()


def _read(file: Path) -> dict[str, Any] | None:
    """The table of defaults in a file, None when there is none."""
    try:
        text = read_bytes(file, MAX_TOML_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None
    own = file.name == "codetr.toml"
    if not own and "tool.codetr" not in text:
        return None
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}. Fix it, or remove the defaults of codetr") from error
    if own:
        return table
    tools = table.get("tool")
    found = tools.get("codetr") if isinstance(tools, dict) else None
    if not isinstance(found, dict | None):
        raise ConfigError(f"[tool.codetr] of {file} must be a table, not {found!r:.100}")
    return found


def _parse(table: dict[str, Any], file: Path) -> Defaults:
    where = str(file) if file.name == "codetr.toml" else f"[tool.codetr] of {file}"
    unknown = next((key for key in table if key not in KEYS), None)
    if unknown is not None:
        raise ConfigError(f"{where} has the unknown key {unknown!r}: {nearest(unknown, list(KEYS))}")
    data = _texts(table.get("data", []), f"data in {where}")
    device = table.get("device")
    if not isinstance(device, str | None):
        raise ConfigError(f'device in {where} must be a string, e.g. device = "cuda:1", not {device!r:.100}')
    try:
        folders = tuple(str(file.parent / Path(folder).expanduser()) for folder in data)
    except RuntimeError as error:
        raise ConfigError(f"data in {where} names the folder of an unknown user: {listed(data)}") from error
    return Defaults(
        file=file,
        data=() if os.environ.get("CODETR_DATA") else folders,
        device=device,
        loggers=tuple(_texts(table["loggers"], f"loggers in {where}")) if "loggers" in table else None,
    )


def _texts(value: Any, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{where} must be a string or a list of strings, not {value!r:.100}")
    return texts
