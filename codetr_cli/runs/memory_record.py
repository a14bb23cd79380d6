"""Decisions about a run because of memory use: memory.json in its folder, read by every process at its start."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codetr_cli.config.overrides import RENAMED, replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError
from codetr_cli.files import replace_file
from codetr_cli.reading import parse_json, read_bytes

logger = logging.getLogger(__name__)

RECORD = "memory.json"
MAX_RECORD_BYTES = 1 << 20
MAX_PARTS = 1 << 16
FITTED = frozenset(
    (
        *("train.micro_batch", "train.precision", "train.fsdp", "model.encoder_checkpointing"),
        *("model.decoder_checkpointing", "model.aux_checkpointing", "model.backbone.checkpointing"),
    )
)
"""Settings that are changed to save memory; a run folder of somebody else cannot change others."""


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
        table = parse_json(read_bytes(run / RECORD, MAX_RECORD_BYTES))
        record = MemoryRecord(**table)
        record.fitted = {RENAMED.get(key, key): values for key, values in record.fitted.items()}
    except FileNotFoundError:
        return MemoryRecord()
    except (OSError, ValueError, TypeError, AttributeError):
        record = None
    if record is None or not _is_valid(record):
        logger.warning("%s is damaged and is not used: what was fitted to the memory is found again", run / RECORD)
        return MemoryRecord()
    return record


def _is_valid(record: MemoryRecord) -> bool:
    """Whether all values have their types and ranges."""
    return (
        isinstance(record.checked, dict)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in record.fitted.values())
        and type(record.parts) is int
        and 1 <= record.parts <= MAX_PARTS
        and type(record.recompute) is bool
        and isinstance(record.why, dict)
        and ((record.parts, record.recompute) == (1, False) or _has_types(record.why))
    )


def _has_types(why: dict[str, Any]) -> bool:
    types = {"process": int, "images": list, "size": list, "named": str}
    return all(isinstance(why.get(key), kind) for key, kind in types.items())


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
    changes = {key: new for key, (old, new) in fitted.items() if key in FITTED and values.get(key) == old}
    for key in [key for key, value in changes.items() if not _saves_memory(key, values[key], value)]:
        logger.warning("%s is damaged: its value of %s saves no memory and is not used", run / RECORD, key)
        del changes[key]
    try:
        return replace_settings(settings, changes)
    except ConfigError as error:
        logger.warning("%s is damaged and is not used: %s", run / RECORD, error)
        return settings


def _saves_memory(name: str, before: Any, value: Any) -> bool:
    """Whether a value of a setting in `FITTED` needs no more memory than the one before."""
    if name == "train.precision":
        return bool(value == "bf16")
    if type(value) is not type(before):
        return False
    return bool(1 <= value <= before if name == "train.micro_batch" else value >= before)


def flatten(table: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """The leaves of nested tables by their paths, e.g. all settings by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        below = flatten(value, separator) if isinstance(value, Mapping) else None
        leaves |= {key: value} if below is None else {f"{key}{separator}{name}": leaf for name, leaf in below.items()}
    return leaves
