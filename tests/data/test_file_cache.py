from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.data.file_cache import FileCache
from codetr_cli.errors import DatasetError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 10)
    return paths


def test_the_files_used_last_stay_within_the_limit(files: list[Path]) -> None:
    cache = FileCache(25)
    first, second, third, _ = files
    assert [cache.read(path)[0] for path in (first, second, first, third)] == [0, 1, 0, 2]
    assert (len(cache), cache.size) == (2, 20)
    for path in files:
        path.unlink()
    assert cache.read(first) == bytes(10)  # used after the second one, which had to go
    assert cache.read(third)[0] == 2
    with pytest.raises(DatasetError, match=r"1\.jpg"):
        cache.read(second)


def test_a_file_larger_than_the_limit_drives_nothing_out(files: list[Path]) -> None:
    cache = FileCache(25)
    cache.read(files[0])
    files[1].write_bytes(bytes(26))
    assert len(cache.read(files[1])) == 26
    assert (len(cache), cache.size) == (1, 10)


def test_by_default_nothing_is_kept(files: list[Path]) -> None:
    cache = FileCache()
    cache.read(files[0])
    files[0].write_bytes(b"new")
    assert cache.read(files[0]) == b"new"
    assert (len(cache), cache.size) == (0, 0)
