"""What the writer of a format is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.inference.exported.metadata import ExportMetadata
from codetr_cli.models.codetr import CoDETR

Step = Callable[[str], None]
"""Takes the name of a slow step that starts now, e.g. "tracing the network"."""


def no_report(step: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class WriteRequest:
    """A file to write.

    Attributes:
        model: in evaluation mode, on the device that the file is for, which is the CPU for most formats.
        metadata: becomes part of the file.
        path: the file, with its final name in a folder of its own; whatever else the writer puts in that folder belongs
            to the exported file, and all of it gets its place at once.
        step: is called when a slow step starts.
    """

    model: CoDETR
    metadata: ExportMetadata
    path: Path
    step: Step = no_report


Writer = Callable[[WriteRequest], None]
"""Writes the files of a format.

Raises:
    ResourceError: a package is not installed, or the disk is full.
    ConfigError: options that the format does not have.
"""
