"""COCO's list files, {train,val}2017.txt: one image path a line."""

from __future__ import annotations

import os
from collections.abc import Iterable

from codetr_cli import files
from codetr_cli.annotations.data_files import read_lines
from codetr_cli.annotations.layouts import SplitFiles
from codetr_cli.errors import ResourceError


def write_list(split: SplitFiles, file_names: Iterable[str]) -> str:
    """Writes `<split>2017.txt` with one `<split>2017/<file name>` a line when it is missing.

    Returns:
        "written", "present" or "not written: <reason>". codetr itself never needs the file, so this never fails.
    """
    path = split.list_path
    if os.path.lexists(path):  # a link to nothing, too
        return "present"
    if not path.parent.stat().st_mode & 0o222:
        # The superuser could write here anyway, but the folder is protected on purpose.
        return "not written: the folder is write-protected"
    try:
        files.write_text(path, "".join(f"{split.images_dir.name}/{name}\n" for name in file_names))
    except ResourceError as error:
        cause = files.system_error(error)
        return f"not written: {cause.strerror if cause else error}"
    return "written"


def read_list(split: SplitFiles) -> set[str]:
    """File names relative to the image folder that the split's list names; lines may have any leading folders.

    Raises:
        DatasetError: the file cannot be read, or is too large for a list.
    """
    marker = f"{split.images_dir.name}/"
    lines = map(files.restore_bytes, read_lines(split.list_path))
    return {line.rpartition(marker)[2] for line in lines if line}
