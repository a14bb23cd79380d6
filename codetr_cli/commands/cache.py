"""`codetr cache`: what the caches of converted datasets and of downloads hold; clears them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from codetr_cli import console
from codetr_cli.commands import _options as opt
from codetr_cli.errors import ConfigError
from codetr_cli.number_text import bytes_text

if TYPE_CHECKING:
    from codetr_cli.weights.cached_files import CachedFile

EXAMPLES = ("codetr cache", "codetr cache clear", "codetr cache clear --downloads --yes")


class _Cache(NamedTuple):
    """One cache: its key in JSON, what it holds, its folder, and its files; `damaged` has the reason by path.

    Leftovers are files of killed processes and unfinished downloads.
    """

    key: str
    title: str
    folder: Path
    entries: list[Path]
    size_bytes: int
    damaged: dict[Path, str]
    leftovers: dict[Path, str]
    files: list[CachedFile]

    def as_json(self) -> dict[str, Any]:
        """Plain values, under the keys of `--json`."""
        return {
            "folder": self.folder,
            "entries": len(self.entries),
            "bytes": self.size_bytes,
            "damaged": [{"path": path, "problem": problem} for path, problem in self.damaged.items()],
            "leftovers": [{"path": path, "problem": problem} for path, problem in self.leftovers.items()],
        }


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

    Datasets in other layouts are converted to COCO files in the cache, and images inside parquet files are written to
    it; both are made again when needed. The folder is CODETR_CACHE, else ~/.cache/codetr; downloaded weights,
    measurements of GPU kernels and compiled code are there, too. Damaged files and what killed processes left are
    shown, and removed by clear.
    """
    console.set_mode(json=json_output)
    if downloads and action is None:
        raise ConfigError("--downloads is for `codetr cache clear`")
    if json_output and action == "clear" and not yes:
        raise ConfigError("--json asks no questions: add --yes to clear the cache")
    found = _caches()
    cleared: list[str] = []
    if action is None:
        _show(found)
    else:
        for each in found:
            whole = each.key != "downloads" or downloads
            if _clear(each, ask=not yes, whole=whole) and whole:
                cleared.append(each.key)
    after = _caches()
    console.result_json({"caches": {each.key: each.as_json() for each in after}, "cleared": cleared})


def _show(caches: tuple[_Cache, ...]) -> None:
    rows = [
        [each.title, each.folder, len(each.entries), bytes_text(each.size_bytes)]
        for each in caches
        if each.entries or each.key != "kernels"
    ]
    console.table("Cache", ["holds", "folder", "entries", "size"], rows)
    problems = {path: problem for each in caches for path, problem in {**each.damaged, **each.leftovers}.items()}
    for path, problem in problems.items():
        console.warn(f"{path}: {problem}")
    if problems:
        console.info("`codetr cache clear` removes these. Damaged files are not used, and made or fetched again.")


def _caches() -> tuple[_Cache, ...]:
    """The cache of converted datasets, and those of downloads and of measurements."""
    from codetr_cli.annotations.cache import cache_entries, cache_folder
    from codetr_cli.files import cache_dir
    from codetr_cli.weights.cached_files import KERNEL_FOLDER, find_cached_files

    conversions = cache_entries()
    datasets = _Cache(
        "datasets",
        "converted datasets",
        cache_folder(),
        [entry.folder for entry in conversions],
        sum(entry.size_bytes for entry in conversions),
        {entry.folder: entry.problem for entry in conversions if entry.problem},
        {},
        [],
    )
    files = find_cached_files()
    kernels = [file for file in files if file.kind == "kernels" or file.path.parent == cache_dir() / KERNEL_FOLDER]
    weights = [file for file in files if file not in kernels]
    return (
        datasets,
        _of_files("downloads", "downloaded weights", cache_dir(), weights),
        _of_files("kernels", "measured and compiled kernels", cache_dir(), kernels),
    )


def _of_files(key: str, title: str, folder: Path, files: list[CachedFile]) -> _Cache:
    entries = [file for file in files if file.kind != "leftover"]
    return _Cache(
        key,
        title,
        folder,
        [file.path for file in entries],
        sum(file.size_bytes for file in files),
        {file.path: file.problem for file in entries if file.problem},
        {file.path: file.problem for file in files if file.kind == "leftover"},
        files,
    )


def _clear(found: _Cache, *, ask: bool, whole: bool) -> bool:
    """Removes the entries of a cache, or only damaged ones and leftovers; returns whether it did."""
    from codetr_cli.annotations.cache import clear_cache
    from codetr_cli.weights.cached_files import delete_cached_files

    files = [file for file in found.files if whole or file.problem]
    count = len(found.entries) if found.key == "datasets" else len(files)
    if not count:
        if found.key == "datasets" or (whole and found.key == "downloads"):
            console.result(f"{found.folder} holds no {found.title}.")
        return False
    size = bytes_text(sum(file.size_bytes for file in files) if files else found.size_bytes)
    what = f"{count} {found.title}" if whole else f"{count} damaged or unfinished files of {found.title}"
    if ask and not typer.confirm(f"Remove {what} ({size}) from {found.folder}?"):
        console.result("Nothing was removed.")
        return False
    if found.key == "datasets":
        clear_cache()
    else:
        delete_cached_files(files)
    console.result(f"Removed {what} ({size}) from {found.folder}.")
    return True
