"""The licence of weights: what is known of it, and why. The only place that decides it.

Weights are published under the licence that their publisher names. Weights that were trained from others follow those.
Of weights that were trained from nothing, only those who trained them can name a licence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from codetr_cli.class_names import has_control_characters
from codetr_cli.config.presets import load_preset, preset_names
from codetr_cli.config.schema import SourceConfig
from codetr_cli.errors import CodetrError, ConfigError, shown
from codetr_cli.weights.checkpoint import file_sha256, read_extra
from codetr_cli.weights.published import published_weights

LICENCE, LICENCE_REASON = "licence", "licence_reason"
"""Keys in `Checkpoint.extra` of a checkpoint whose licence was named."""
MAX_LICENCE = 100
"""Characters of a licence's name."""
MAX_CHAIN = 20
"""Trainings that follow each other, each from the weights of the one before."""


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


def licence_of(path: Path, origin_of: Callable[[Path], str | None] = lambda path: None) -> Licence:
    """The licence of the weights in a file; unknown rather than guessed.

    Args:
        path: a checkpoint of codetr or a published one.
        origin_of: returns the file that the training of a checkpoint started from; None: from nothing, or not known.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return _licence_of(path, origin_of, MAX_CHAIN)


def _licence_of(path: Path, origin_of: Callable[[Path], str | None], most: int) -> Licence:
    extra = read_extra(path)
    if extra is None:  # what a conversion would record
        extra = {"source_sha256": file_sha256(path), "source_file": path.name}
    if extra.get(LICENCE):
        return Licence(extra[LICENCE], extra.get(LICENCE_REASON) or "as the checkpoint records it")
    if "source_sha256" in extra:
        return _licence_of_published(extra)
    origin = origin_of(path)
    if origin is None:
        return Licence(
            None, "they are not those of a published file, and no checkpoint that they started from is known"
        )
    if most == 0:
        return Licence(None, f"more than {MAX_CHAIN} trainings follow each other")
    name = Path(origin).name if Path(origin).stem != "model" else origin
    try:
        before = _licence_of(Path(origin), origin_of, most - 1)
    except CodetrError as error:
        return Licence(None, f"fine-tuned from {origin}, which cannot be read: {error}")
    return replace(before, reason=f"fine-tuned from {name}, {before.reason}")


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
