"""`codetr cache`: what the caches of converted datasets and of downloads hold; clears them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.errors import ConfigError

EXAMPLES = ("codetr cache", "codetr cache clear", "codetr cache clear --downloads --yes")
DOWNLOADS = ("presets", "backbones", "urls", "converted")
"""Folders of the cache that `weights` fills."""


class _Cache(NamedTuple):
    """One cache: its key in JSON, what it holds, its folder, the entries in it and their size."""

    key: str
    title: str
    folder: Path
    entries: list[Path]
    size_bytes: int


def cache(
    action: Annotated[
        Literal["clear"] | None, typer.Argument(metavar="ACTION", help="clear: remove what the cache holds.")
    ] = None,
    downloads: Annotated[
        bool, opt.flag("--downloads", "With clear: remove downloaded weights, too.", opt.OUTPUT)
    ] = False,
    yes: Annotated[bool, opt.flag("--yes -y", "With clear: do not ask.", opt.OUTPUT)] = False,
    json_output: opt.JsonOption = False,
) -> None:
    """Show or clear the cache of converted datasets.

    Pascal VOC and YOLO datasets are converted to COCO files in the cache, which are made again when needed. The folder
    is CODETR_CACHE, else ~/.cache/codetr; downloaded weights are kept there as well.
    """
    console.set_mode(json=json_output)
    if downloads and action is None:
        raise ConfigError("--downloads is for `codetr cache clear`")
    if json_output and action == "clear" and not yes:
        raise ConfigError("--json asks no questions: add --yes to clear the cache")
    datasets, weights = _caches()
    removed: list[_Cache] = []
    if action is None:
        rows = [[found.title, found.folder, len(found.entries), console.bytes_text(found.size_bytes)]
                for found in (datasets, weights)]  # fmt: skip
        console.table("Cache", ["holds", "folder", "entries", "size"], rows)
    else:
        for found in (datasets, weights) if downloads else (datasets,):
            if _clear(found, ask=not yes):
                removed.append(found)
    console.result_json(
        {
            "caches": {
                found.key: {"folder": found.folder, "entries": len(found.entries), "bytes": found.size_bytes}
                for found in _caches()
            },
            "cleared": [found.key for found in removed],
        }
    )


def _caches() -> tuple[_Cache, _Cache]:
    """The cache of converted datasets, and that of downloads."""
    from codetr_cli.data.formats.cache import cache_entries, cache_folder
    from codetr_cli.files import cache_dir

    converted = cache_entries()
    # Only what codetr made: CODETR_CACHE may name a folder that holds other things.
    fetched = sorted(path for kind in DOWNLOADS for path in (cache_dir() / kind).glob("*"))
    files = (file for entry in fetched for file in (entry, *entry.rglob("*")) if file.is_file())
    return (
        _Cache(
            "datasets",
            "converted datasets",
            cache_folder(),
            [entry.folder for entry in converted],
            sum(entry.size_bytes for entry in converted),
        ),
        _Cache("downloads", "downloaded weights", cache_dir(), fetched, sum(file.lstat().st_size for file in files)),
    )


def _clear(found: _Cache, *, ask: bool) -> bool:
    """Removes the entries of a cache; returns whether it did."""
    from codetr_cli.data.formats.cache import clear_cache

    if not found.entries:
        console.result(f"{found.folder} holds no {found.title}.")
        return False
    size = console.bytes_text(found.size_bytes)
    if ask and not typer.confirm(f"Remove {len(found.entries)} {found.title} ({size}) from {found.folder}?"):
        console.result("Nothing was removed.")
        return False
    if found.key == "datasets":
        clear_cache()
    else:
        for entry in found.entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    console.result(f"Removed {len(found.entries)} {found.title} ({size}) from {found.folder}.")
    return True
