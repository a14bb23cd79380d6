"""The licence of weights, as their file says it: by its content, or by its metadata.

Weights are published under the licence that their publisher names. Weights that were trained from others follow those,
see `runs.lineage`. Of weights that were trained from nothing, only those who trained them can name a licence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.class_names import has_control_characters
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import SourceConfig
from codetr_cli.errors import ConfigError, shown
from codetr_cli.weights.checkpoint import file_sha256, read_extra
from codetr_cli.weights.published import published_weights

LICENCE, LICENCE_REASON = "licence", "licence_reason"
"""Keys in `Checkpoint.extra` of a checkpoint whose licence was named or inherited."""
UNKNOWN = "they are not those of a published file, and no checkpoint that they started from is known"
MAX_LICENCE = 100
"""Characters of a licence's name."""


@dataclass(frozen=True)
class Licence:
    """The licence of weights.

    Attributes:
        name: SPDX identifier, e.g. Apache-2.0, or another name; None: unknown.
        reason: why it is this one, or why it is unknown; a part of a sentence.
    """

    name: str | None
    reason: str

    @property
    def as_extra(self) -> dict[str, str]:
        """The entries of `Checkpoint.extra` that keep it."""
        return {} if self.name is None else {LICENCE: self.name, LICENCE_REASON: self.reason}


def stated_licence(name: str) -> Licence:
    """The licence that the user names.

    Args:
        name: an SPDX identifier, e.g. Apache-2.0, or the name of another licence.

    Raises:
        ConfigError: it is empty, too long, or has characters that do not belong into a name.
    """
    name = name.strip()
    if not name or len(name) > MAX_LICENCE or has_control_characters(name):
        raise ConfigError(f"the licence {shown(name)}: give an SPDX identifier, e.g. Apache-2.0, MIT or CC-BY-4.0")
    return Licence(name, "named by those who published it")


def recorded_licence(path: Path) -> Licence:
    """The licence of the weights in a file, from the file alone; unknown rather than guessed.

    Args:
        path: a checkpoint of codetr or a published one.

    Raises:
        CheckpointError: the file cannot be read.
    """
    extra = read_extra(path)
    if extra is None:  # what a conversion would record
        extra = {"source_sha256": file_sha256(path), "source_file": path.name}
    if extra.get(LICENCE):
        return Licence(extra[LICENCE], extra.get(LICENCE_REASON) or "as the checkpoint records it")
    return _licence_of_published(extra) if "source_sha256" in extra else Licence(None, UNKNOWN)


def _licence_of_published(extra: Mapping[str, str]) -> Licence:
    """The licence of a published file that was converted, found by its content: names of files prove nothing."""
    sha256, file = extra["source_sha256"], extra.get("source_file", "another file")
    for name in preset_names():
        preset = load_preset(name)
        remote = published_weights(preset).remote
        digits = preset.source.sha256 or (remote.sha256 if remote else None)
        if digits and preset.source.licence and sha256.startswith(digits):
            return _licence_of_source(preset.source, name)
    return Licence(None, f"the weights were converted from {file}, which is no published file that codetr knows")


def _licence_of_source(source: SourceConfig, preset: str) -> Licence:
    """The licence in a preset, `MIT (the repository's)`: a name, and possibly a remark."""
    found = re.fullmatch(r"([^(]+?)\s*(?:\((.+)\))?", source.licence or "")
    assert found is not None, source.licence  # a test reads those of all presets
    remark = f" ({found[2]})" if found[2] else ""
    return Licence(found[1], f"the published weights of {preset}{remark}")
