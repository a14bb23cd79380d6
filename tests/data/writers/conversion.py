"""Converts a folder as the command does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.data.writers.options import WriteOptions
from codetr_cli.data.writers.write import Written, read_content, write_folder
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset


def convert(source: Path, out: Path, layout: Any, *, images: Any = "copy", **more: Any) -> Written:
    """Writes all splits of a folder, in any layout, into another folder."""
    found = open_dataset(source, ReadOptions())
    assert found is not None
    options = WriteOptions(layout=layout, images=images, **more)
    folders = [split.images_dir for split in found.splits.values()]
    content = read_content(found, list(found.splits), NameRule.of(source, *folders), options)
    return write_folder(content, out, options, force=False, made={}, advance=lambda count: None)
