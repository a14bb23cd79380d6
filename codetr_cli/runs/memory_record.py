"""Decisions about a run because of memory use: memory.json in its folder, read by every process at its start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.config.overrides import RENAMED, replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.files import replace_file

RECORD = "memory.json"


@dataclass
class MemoryRecord:
    """What was decided about a run because of memory use.

    Attributes:
        checked: the conditions of the newest memory check.
        fitted: settings that were changed to fit, by name: [value of the command, value used instead].
        parts: number of parts a micro batch is split into since memory ran out in a training of several processes.
        recompute: whether everything is recomputed since then.
        why: what ran out of memory, for the user.
    """

    checked: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, list[Any]] = field(default_factory=dict)
    parts: int = 1
    recompute: bool = False
    why: dict[str, Any] = field(default_factory=dict)


def read_record(run: Path) -> MemoryRecord:
    """The decisions of a run folder; an empty record when there is none, or none that can be read."""
    try:
        record = MemoryRecord(**json.loads((run / RECORD).read_text(encoding="utf-8")))
        record.fitted = {RENAMED.get(key, key): values for key, values in record.fitted.items()}
        return record
    except (OSError, ValueError, TypeError, AttributeError):
        return MemoryRecord()


def write_record(run: Path, record: MemoryRecord) -> None:
    """Replaces the record of a run folder.

    Raises:
        ResourceError: no space left, or the folder cannot be written.
    """
    # Under a name of this process: memory may run out in several at once.
    with replace_file(run / RECORD, parents=True) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def with_fitted(settings: Settings, run: Path) -> Settings:
    """The settings of a command with what was fitted for its run; those that the command changed since stay as given.

    Args:
        settings: of the command.
        run: the run folder; it need not exist.
    """
    values, fitted = flatten(settings.model_dump(mode="json")), read_record(run).fitted
    return replace_settings(settings, {key: new for key, (old, new) in fitted.items() if values.get(key) == old})


def flatten(table: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """The leaves of nested tables by their paths, e.g. all settings by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        below = flatten(value, separator) if isinstance(value, Mapping) else None
        leaves |= {key: value} if below is None else {f"{key}{separator}{name}": leaf for name, leaf in below.items()}
    return leaves
