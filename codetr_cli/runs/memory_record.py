"""Decisions about a run because of memory: memory.json in its folder, read by every process at its start."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.files import replace_file

RECORD = "memory.json"


@dataclass
class MemoryRecord:
    """What was decided about a run because of memory.

    Attributes:
        checked: what the newest preflight was for.
        fitted: settings that were changed to fit, by name: what the command says, and what is used instead.
        parts: that the images of a forward pass are split into since memory ran out in a training of several processes.
        recompute: everything is recomputed since then.
        why: what ran out of memory, for the person.
    """

    checked: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, list[Any]] = field(default_factory=dict)
    parts: int = 1
    recompute: bool = False
    why: dict[str, Any] = field(default_factory=dict)


def read_record(run: Path) -> MemoryRecord:
    """The decisions of a run folder; those of a run without any when there are none, or none that can be read."""
    try:
        return MemoryRecord(**json.loads((run / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return MemoryRecord()


def write_record(run: Path, record: MemoryRecord) -> None:
    """Writes the decisions of a run folder, as a whole.

    Raises:
        ResourceError: no space left, or the folder cannot be written.
    """
    with replace_file(
        run / RECORD, parents=True
    ) as temporary:  # under a name of this process: memory may run out in several at once
        temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def with_fitted(settings: Settings, run: Path) -> Settings:
    """The settings of a command as its run was fitted before; what the command now says otherwise stays so.

    Args:
        settings: of the command.
        run: the folder; it need not hold a run.
    """
    table = settings.model_dump(mode="json")
    changed = {}
    for key, (before, after) in read_record(run).fitted.items():
        value: Any = table
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value == before:
            changed[key] = after
    return replace_settings(settings, changed)
