"""The metadata of an exported file, without the library that runs it."""

from __future__ import annotations

import html
import re
from pathlib import Path

from codetr_cli.config.schema import Settings
from codetr_cli.errors import CheckpointError, ConfigError
from codetr_cli.inference.exported.metadata import METADATA_KEY, ExportMetadata, parse_metadata
from codetr_cli.inference.exported.onnx_check import check_onnx
from codetr_cli.inference.exported.openvino import check_files

_IN_XML = re.compile(rf'<{METADATA_KEY} value="([^"<]*)"'.encode())


def read_metadata(path: Path) -> ExportMetadata | None:
    """What a file says of itself; None for formats whose library alone reads it.

    Raises:
        CheckpointError: missing, damaged, or not written by `codetr export`.
    """
    if path.suffix == ".onnx":
        return parse_metadata(check_onnx(path).metadata, str(path))
    if path.suffix == ".xml":
        found = _IN_XML.findall(check_files(path))  # among the last lines of the file
        text = html.unescape(found[-1].decode("utf-8", "replace")) if found else None
        return parse_metadata(text, str(path))
    return None


def settings_of_file(path: Path) -> Settings | None:
    """The settings in an exported file, as they were written; None where they cannot be read."""
    try:
        metadata = read_metadata(path)
        return None if metadata is None else metadata.parsed_settings(str(path))
    except (CheckpointError, ConfigError):
        return None
