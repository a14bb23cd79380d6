from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.data.formats.cache import (
    SUMMARY,
    CacheEntry,
    cache_entries,
    cache_folder,
    clear_cache,
    is_cached,
)
from codetr_cli.data.formats.converted import find_converted
from codetr_cli.errors import ResourceError
from tests.data.fakes import write_voc, xml

Convert = Callable[[str], CacheEntry]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Converts a Pascal VOC folder of that name."""

    def convert(name: str) -> CacheEntry:
        write_voc(tmp_path / name, {"a": xml(("ant", 1, 1, 9, 9))}, {"train": "a", "val": "a"})
        assert find_converted(tmp_path / name) is not None
        return next(entry for entry in cache_entries() if entry.sources == (str(tmp_path / name),))

    return convert


def test_without_conversions_the_cache_is_empty(cache: Path) -> None:
    assert cache_entries() == clear_cache() == []
    assert not cache.exists()


def test_entries_have_source_size_and_last_use(convert: Convert, cache: Path, tmp_path: Path) -> None:
    old, new = convert("old"), convert("new")
    assert old.name.startswith("old-")
    assert old.folder.parent == cache
    assert old.size_bytes == sum(path.stat().st_size for path in old.folder.iterdir())
    os.utime(old.folder / SUMMARY, (1, 1))
    assert [entry.name for entry in cache_entries()] == [new.name, old.name]
    assert cache_entries()[1].last_used == 1
    assert find_converted(tmp_path / "old") is not None  # uses it
    assert cache_entries()[0].name == old.name


def test_what_is_cleared_is_converted_again(convert: Convert, cache: Path, tmp_path: Path) -> None:
    entries = [convert("a"), convert("b")]
    (cache / "unfinished").mkdir()
    (cache / "a-1234.lock").touch()  # of an earlier version
    cleared = clear_cache()
    assert {entry.name for entry in cleared} == {"unfinished", *(entry.name for entry in entries)}
    assert list(cache.iterdir()) == []
    converted = find_converted(tmp_path / "a")
    assert converted is not None
    assert converted.splits["train"].annotations_path.is_file()


def test_an_interrupted_deletion_leaves_no_conversion(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = convert("a")

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codetr_cli.data.formats.cache.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clear_cache()
    assert entry.folder.is_dir()
    assert not is_cached(entry.folder)
    assert [left.sources for left in cache_entries()] == [()]


def test_files_that_cannot_be_deleted_are_an_error(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    convert("a")

    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("codetr_cli.data.formats.cache.shutil.rmtree", refused)
    with pytest.raises(ResourceError, match=r"cannot delete .*datasets: Permission denied"):
        clear_cache()
