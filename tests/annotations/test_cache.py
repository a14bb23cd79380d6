"""Conversions are found again, damaged ones are made again, and only what codetr wrote is deleted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.annotations.cache import (
    SUMMARY,
    CacheEntry,
    cache_entries,
    cache_folder,
    clear_cache,
    find_conversion,
    has_shape,
    source_of,
)
from codetr_cli.errors import ResourceError
from codetr_cli.formats.open import open_dataset
from tests.conftest import Ran
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
        assert open_dataset(tmp_path / name) is not None
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
    assert open_dataset(tmp_path / "old") is not None  # uses it
    assert cache_entries()[0].name == old.name


def test_what_is_cleared_is_converted_again(convert: Convert, cache: Path, tmp_path: Path) -> None:
    entries = [convert("a"), convert("b")]
    (cache / "unfinished").mkdir()
    (cache / "a-1234.lock").touch()  # of an earlier version
    cleared = clear_cache()
    assert {entry.name for entry in cleared} == {"unfinished", *(entry.name for entry in entries)}
    assert list(cache.iterdir()) == []
    converted = open_dataset(tmp_path / "a")
    assert converted is not None
    assert converted.splits["train"].annotations_path.is_file()


def test_an_interrupted_deletion_leaves_no_conversion(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = convert("a")

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codetr_cli.annotations.cache.delete_conversion", killed)
    with pytest.raises(KeyboardInterrupt):
        clear_cache()
    assert entry.folder.is_dir()
    assert find_conversion(entry.folder, {}) is None
    assert [(left.sources, left.problem) for left in cache_entries()] == [((), "unfinished")]


def test_files_that_cannot_be_deleted_are_an_error(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    convert("a")

    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("codetr_cli.annotations.cache.make_way", refused)
    with pytest.raises(ResourceError, match=r"cannot delete .*datasets: Permission denied"):
        clear_cache()


def test_files_of_others_stay(convert: Convert, cache: Path, tmp_path: Path) -> None:
    entry = convert("a")
    (entry.folder / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / SUMMARY).write_text("mine")
    (cache / "link").symlink_to(tmp_path / "elsewhere")
    (cache / "file.txt").write_text("mine")
    assert [found.name for found in clear_cache()] == [entry.name]
    assert [path.name for path in entry.folder.iterdir()] == ["notes.txt"]
    assert (tmp_path / "elsewhere" / SUMMARY).is_file()
    assert {path.name for path in cache.iterdir()} == {entry.name, "link", "file.txt"}


# ------------------------------------------------------------------------------------------------------------- healing


def replace(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def edit_summary(path: Path, **changes: object) -> None:
    replace(path, json.dumps(json.loads(path.read_text()) | changes))


def in_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Replaces a file by something else."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def change_keeping_size_and_time(path: Path) -> None:
    status = path.stat()
    replace(path, path.read_bytes().replace(b"ant", b"bee"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "empty summary": (SUMMARY, lambda path: replace(path, "{}")),
    "no summary": (SUMMARY, Path.unlink),
    "summary cut": (SUMMARY, lambda path: replace(path, path.read_bytes()[:-9])),
    "summary not text": (SUMMARY, lambda path: replace(path, b"\xff\xfe\x00")),
    "summary nested": (SUMMARY, lambda path: replace(path, "[" * 100_000)),
    "summary of digits": (SUMMARY, lambda path: replace(path, "9" * 100_000)),
    "summary edited": (SUMMARY, lambda path: edit_summary(path, places={"train": "nowhere"})),
    "summary of wrong types": (SUMMARY, lambda path: edit_summary(path, findings=[None], names=7)),
    "summary a folder": (SUMMARY, in_place(Path.mkdir)),
    "summary a pipe": (SUMMARY, in_place(os.mkfifo)),
    "summary a device": (SUMMARY, in_place(lambda path: path.symlink_to("/dev/zero"))),
    "table cut": ("instances_train.json", lambda path: replace(path, path.read_bytes()[:-9])),
    "table empty": ("instances_train.json", lambda path: replace(path, "")),
    "table deleted": ("instances_val.json", Path.unlink),
    "table edited": ("instances_train.json", change_keeping_size_and_time),
    "table a folder": ("instances_train.json", in_place(Path.mkdir)),
    "table a pipe": ("instances_train.json", in_place(os.mkfifo)),
    "folder deleted": (".", shutil.rmtree),
    "folder a file": (".", lambda path: (shutil.rmtree(path), path.write_text(""))),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_conversion_is_made_again_and_named_once(
    convert: Convert, caplog: pytest.LogCaptureFixture, tmp_path: Path, name: str
) -> None:
    entry = convert("a")
    before = {path.name: path.read_bytes() for path in entry.folder.glob("instances_*")}
    file, damage = DAMAGES[name]
    damage(entry.folder / file)
    for _ in range(2):
        assert open_dataset(tmp_path / "a") is not None
        assert {path.name: path.read_bytes() for path in entry.folder.glob("instances_*")} == before
    named = [record.message for record in caplog.records if f"{entry.folder}, is damaged" in record.message]
    assert len(named) == (name not in ("no summary", "folder deleted", "folder a file"))  # others are unfinished
    assert not cache_entries()[0].problem


def test_a_broken_conversion_is_named_to_the_user(convert: Convert, codetr: Callable[..., Ran], tmp_path: Path) -> None:
    entry = convert("a")
    replace(entry.folder / SUMMARY, "{}")
    ran = codetr("prepare", tmp_path / "a", "--no-link", "--set", "data.min_side=1")
    assert ran.code == 0
    assert ran.err.count(f"the conversion in the cache, {entry.folder}, is damaged") == 1


def test_a_conversion_that_was_copied_is_used(convert: Convert, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    entry = convert("a")
    shutil.copytree(entry.folder, tmp_path / "copy")
    shutil.rmtree(entry.folder)
    shutil.copytree(tmp_path / "copy", entry.folder, copy_function=shutil.copyfile)
    before = (entry.folder / "instances_train.json").stat().st_mtime_ns
    assert open_dataset(tmp_path / "a") is not None
    assert (entry.folder / "instances_train.json").stat().st_mtime_ns == before
    assert not caplog.records


def test_images_that_were_deleted_are_not_blamed_on_the_cache(convert: Convert, codetr: Callable[..., Ran], tmp_path):
    convert("a")
    (tmp_path / "a" / "JPEGImages" / "a.jpg").unlink()
    ran = codetr("prepare", tmp_path / "a", "--no-link")
    assert ran.code == 3
    assert "JPEGImages" in ran.err


def test_the_source_of_a_damaged_conversion_is_its_file(convert: Convert) -> None:
    entry = convert("a")
    assert "(Pascal VOC, " in source_of(entry.folder / "instances_train.json").name
    replace(entry.folder / SUMMARY, "{}")
    assert source_of(entry.folder / "instances_train.json").name == str(entry.folder / "instances_train.json")
    assert cache_entries()[0].problem == "summary.json: it is not a summary of this version"


def test_a_cache_that_cannot_be_written_is_named(
    convert: Convert, codetr: Callable[..., Ran], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = convert("a")
    edit_summary(entry.folder / SUMMARY, folders=[])

    def refuse(path: Path, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("codetr_cli.annotations.cache.make_way", refuse)
    ran = codetr("prepare", tmp_path / "a", "--no-link")
    assert ran.code == 5
    assert f"cannot write converted annotations to {cache}: Read-only file system" in ran.err
    monkeypatch.undo()


def test_a_full_disk_is_named_and_leaves_nothing(
    codetr: Callable[..., Ran], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_voc(tmp_path / "a", {"a": xml(("ant", 1, 1, 9, 9))}, {"train": "a", "val": "a"})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ran = codetr("prepare", tmp_path / "a", "--no-link")
    assert ran.code == 5
    assert f"cannot write converted annotations to {cache}: No space left on device" in ran.err
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert codetr("prepare", tmp_path / "a", "--no-link", "--set", "data.min_side=1").code == 0


def test_processes_that_damage_and_convert_at_once_do_not_disturb_each_other(convert: Convert, tmp_path: Path) -> None:
    entry = convert("a")
    code = f"""if True:
        from pathlib import Path
        from codetr_cli.formats.open import open_dataset
        for _ in range(30):
            Path({str(entry.folder / SUMMARY)!r}).write_text("{{}}")
            found = open_dataset(Path({str(tmp_path / "a")!r}))
            assert found.splits["train"].annotations_path.is_file()
    """
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert open_dataset(tmp_path / "a") is not None
    assert not cache_entries()[0].problem


def test_shapes() -> None:
    shape = {"a": [str], "b": {str: int}}
    assert has_shape({"a": ["x"], "b": {"y": 1}, "c": None}, shape)
    assert not has_shape({"a": ["x", 1], "b": {}}, shape)
    assert not has_shape({"a": "x", "b": {}}, shape)
    assert not has_shape({"a": [], "b": {"y": "1"}}, shape)
    assert not has_shape({"a": []}, shape)
    assert not has_shape([], shape)


def test_a_link_in_the_place_of_a_conversion_is_not_written_through(convert: Convert, tmp_path: Path) -> None:
    folder = convert("a").folder
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert open_dataset(tmp_path / "a") is not None
    assert (folder / SUMMARY).is_file()
    assert not folder.is_symlink()
    assert list((tmp_path / "elsewhere").iterdir()) == []
