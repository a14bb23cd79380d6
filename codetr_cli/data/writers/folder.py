"""Folders that converted data sets are written into: which may be replaced, by the rule of `result_files`.

A folder is replaced as a whole, with `--force`, if everything in it is as codetr has written it: files as their record
says, links as the receipt says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from codetr_cli.errors import ConfigError, listed
from codetr_cli.files import real_path
from codetr_cli.reading import parse_json, read_bytes
from codetr_cli.result_files import RECORD_NAME, ResultRecord

VERB = "convert-data"
RECEIPT = ".codetr.json"
"""What was converted, which images got other names, and links; hidden, so that no reader takes it for data."""
MAX_RECEIPT_BYTES = 1 << 28
SHOWN = 5


def check_outside(out: Path, source: Path) -> None:
    """Raises a ConfigError for an output in the folder that is read: the next reading would find both."""
    target, folder = real_path(out), real_path(source)
    if target == folder or target.is_relative_to(folder):
        beside = folder.with_name(f"{folder.name}_converted")
        raise ConfigError(
            f"{out} is in the folder of the data set, {source}, where it would be read as a part of it: write beside "
            f"it, e.g. --out {beside}"
        )


def check_replaceable(out: Path, *, force: bool, besides: Collection[str] = ()) -> None:
    """Checks that a folder does not exist, is empty or, with `force`, is as it was written.

    Args:
        out: the folder.
        force: replace what was written.
        besides: folders in it that do not matter.

    Raises:
        ConfigError: it is something else.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is there and is no folder: choose another path")
    names = [name for name in _names(out) if name.partition("/")[0] not in besides]
    if not names and all(path.name in besides for path in out.iterdir()):
        return
    if not os.path.lexists(out / RECEIPT):
        raise ConfigError(f"{out} has other files in it: choose a folder that is empty or does not exist")
    if not force:
        raise ConfigError(f"{out} already exists: choose another path, or replace it with --force")
    record, links = ResultRecord(out), _links(out)
    others = [name for name in names if name != RECORD_NAME and not _is_own(out / name, name, record, links)]
    if others:
        raise ConfigError(
            f"{out} has {len(others):,} files that are not as codetr has written them: "
            f"{listed(sorted(others), SHOWN)}. Move them away, or choose another path"
        )


def record_folder(
    folder: Path, made: Mapping[str, Any], *, by: str = VERB, request: str = "", digests: bool = True
) -> None:
    """Lists everything in a new folder, with what made it.

    Args:
        folder: the folder.
        made: what made it, for the receipt.
        by: the verb.
        request: see `result_files.Result`.
        digests: see `result_files.ResultRecord.add`.

    Raises:
        OSError: it cannot be written.
    """
    names = sorted(_names(folder))
    links = {name: str((folder / name).readlink()) for name in names if (folder / name).is_symlink()}
    receipt = folder / RECEIPT
    receipt.write_text(json.dumps({"made_by": by, **made, "links": links}, indent=1), encoding="utf-8")
    record = ResultRecord(folder)
    for name in (*names, RECEIPT):
        if name not in links:
            record.add(folder / name, folder / name, by=by, request=request, digest=digests)


def _names(folder: Path) -> Iterator[str]:
    """All files and links below a folder, relative to it; links to folders, too."""
    for place, folders, found in os.walk(folder):
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH118
        for name in (*found, *linked):
            yield os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")  # noqa: PTH118


def _is_own(path: Path, name: str, record: ResultRecord, links: Mapping[str, Any]) -> bool:
    if path.is_symlink():
        return links.get(name) == str(path.readlink())
    return record.is_own(path, quick=True)


def _links(out: Path) -> Mapping[str, Any]:
    """The links of a receipt; none if it cannot be read."""
    links = receipt_of(out).get("links")
    return links if isinstance(links, dict) else {}


def receipt_of(out: Path) -> Mapping[str, Any]:
    """What made a folder; empty if nothing says so."""
    try:
        table = parse_json(read_bytes(out / RECEIPT, MAX_RECEIPT_BYTES))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
