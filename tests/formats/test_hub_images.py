"""Images of parquet files in the cache: limits, and what is written where."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from codetr_cli.annotations.cache import cache_entries, cache_folder
from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.formats import hub_images
from tests.formats.hub_exports import cppe, row, write_parquet

pytest.importorskip("pyarrow", exc_type=ImportError, reason="the extra parquet is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


def test_a_row_at_a_time_and_all_names(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_images, "BATCH_ROWS", 1)
    root = cppe(tmp_path / "set")
    files = [("data/train-00000-of-00002.parquet", "train"), ("data/validation-00000-of-00001.parquet", "")]
    images, names, size = hub_images.extract(root, files, "image")
    assert names == {files[0][0]: ["train/1.png", "train/2.png"], files[1][0]: ["all/00000001.png"]}
    assert sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png")) == [
        "all/00000001.png",
        "train/1.png",
        "train/2.png",
    ]
    assert size == sum(path.stat().st_size for path in images.rglob("*.png"))
    (entry,) = cache_entries()
    assert (entry.sources, entry.problem) == ((str(root),), "")
    assert entry.size_bytes > size


def test_an_interrupted_extraction_is_not_used(tmp_path, monkeypatch):
    root = cppe(tmp_path / "set")
    files = [("data/train-00000-of-00002.parquet", "train")]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub_images, "finish_conversion", stop)
        with pytest.raises(KeyboardInterrupt):
            hub_images.extract(root, files, "image")
    assert [entry.problem for entry in cache_entries()] == ["unfinished"]
    images, _, _ = hub_images.extract(root, files, "image")
    assert len(list(images.rglob("*.png"))) == 2


def test_a_disk_without_space_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    root = cppe(tmp_path / "set")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match=r"need about .* GB in the cache, .*choose another folder with the env"):
        hub_images.extract(root, [("data/train-00000-of-00002.parquet", "train")], "image")
    assert list(cache_folder().rglob("*.png")) == []


def test_images_that_grow_without_end_are_refused(tmp_path, monkeypatch):
    """Each of many rows is the same image, which the file has once."""
    monkeypatch.setattr(hub_images, "SPARE_BYTES", 0)
    rows = [row(1)] * 300
    write_parquet(tmp_path / "set/train.parquet", rows, None)
    with pytest.raises(DatasetError, match=r"train.parquet: its images are more than 100 times as large as the file"):
        hub_images.extract(tmp_path / "set", [("train.parquet", "train")], "image")
    assert list(cache_folder().rglob("*.png")) == []


def test_too_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_images, "MAX_ROWS", 1)
    root = cppe(tmp_path / "set")
    with pytest.raises(DatasetError, match="has more than 1 rows, the limit"):
        hub_images.extract(root, [("data/train-00000-of-00002.parquet", "train")], "image")
