"""Files are replaced as a whole or not at all, and only those that codetr has made."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.files import (
    RECORD_NAME,
    OwnResults,
    ResultRecord,
    cache_dir,
    check_folder,
    folded,
    free_file,
    free_folder,
    make_way,
    numbered,
    real_path,
    refuse_taken,
    replace_file,
    restore_bytes,
    write_result,
    write_text,
)
from codetr_cli.weights.checkpoint import file_sha256


def test_a_file_is_replaced(tmp_path: Path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")
    with replace_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_keeps_the_old_file_and_deletes_the_new_one(tmp_path: Path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")

    def fail() -> None:
        with replace_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_another_kind_keeps_its_kind(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot read"), replace_file(tmp_path / "x"):
        file_sha256(tmp_path / "missing")


def test_a_full_disk_is_recognised_behind_the_errors_of_torch(tmp_path: Path):
    class FullDisk(io.RawIOBase):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ResourceError, match=r"no space left.*5 MB are needed"), replace_file(tmp_path / "x", 5_000_000):
        torch.save({"w": torch.zeros(1000)}, FullDisk())
    assert list(tmp_path.iterdir()) == []


def test_folders_are_created_only_on_request(tmp_path: Path):
    path = tmp_path / "a" / "b"
    with pytest.raises(ResourceError, match=f"cannot write {path}: No such file"):
        write_text(path, "x")
    with replace_file(path, parents=True) as temporary:
        temporary.write_text("x")
    assert path.read_text() == "x"


def test_text_is_utf_8_whatever_names_are_in_it(tmp_path: Path):
    name = os.fsdecode("n\u00e9 ".encode() + b"caf\xe9.jpg")
    write_text(tmp_path / "x", name)
    assert (tmp_path / "x").read_text(encoding="utf-8") == "n\u00e9 caf\\udce9.jpg"
    assert restore_bytes((tmp_path / "x").read_text(encoding="utf-8")) == name
    write_text(tmp_path / "x", name, errors="surrogateescape")  # for a shell
    assert (tmp_path / "x").read_bytes() == os.fsencode(name)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("CODETR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "codetr"


def test_a_file_that_exists_gets_a_number_before_its_suffix(tmp_path: Path):
    file = tmp_path / "detections.json"
    assert free_file(file, force=False) == file
    file.touch()
    (tmp_path / "detections_2.json").touch()
    assert free_file(file, force=False) == tmp_path / "detections_3.json"
    assert free_file(file, force=True) == tmp_path / "detections_3.json"  # neither was written by codetr
    file.unlink()
    with write_result(file, by="eval"):
        pass
    assert free_file(file, force=False) == tmp_path / "detections_3.json"
    assert free_file(file, force=True) == file


def test_a_folder_is_free_without_its_marker(tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert free_folder(folder, "results.json", force=False) == folder
    (folder / "results.json").touch()
    assert free_folder(folder, "results.json", force=False) == tmp_path / "out_2"
    assert free_folder(folder, "results.json", force=True) == tmp_path / "out_2"  # it is the user's
    (folder / "results.json").unlink()
    with write_result(folder / "results.json", by="eval") as temporary:
        temporary.write_text("{}")
    assert free_folder(folder, "results.json", force=True) == folder
    taken = tmp_path / "out_2"
    assert free_folder(folder, "results.json", force=False, taken=lambda path: path == taken) == tmp_path / "out_3"
    (tmp_path / "out_3").mkdir()
    (tmp_path / "out_3/results.json").symlink_to("gone")
    assert free_folder(folder, "results.json", force=False, taken=lambda path: path == taken) == tmp_path / "out_4"


def test_numbered_folders_come_in_their_order(tmp_path: Path):
    for name in ("out_10", "out_2", "out", "out_x", "output", "out_2b"):
        (tmp_path / name).mkdir()
    assert [path.name for path in numbered(tmp_path / "out")] == ["out", "out_2", "out_10"]
    assert numbered(tmp_path / "none" / "out") == []


def test_the_longest_name_and_a_link_in_the_way(tmp_path: Path):
    """The temporary name is not longer than a name may be, and nothing is written through a link."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    path = tmp_path / ("é" * 127 + "x")
    path.symlink_to(outside)
    with replace_file(path) as temporary:
        temporary.unlink()
        temporary.symlink_to(outside)  # as another user may have done before
        name = temporary.name
    with suppress(ResourceError), replace_file(path) as temporary:
        assert temporary.name == name
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert outside.read_text() == "mine"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path):
    path = tmp_path / "big.safetensors"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with replace_file(path) as temporary:
        start, end = temporary.name.rsplit(str(os.getpid()), 1)
    names = {name: tmp_path / name for name in (f"{start}{ended.pid}{end}", f"{start}1{end}", f"{start}x{end}")}
    for leftover in names.values():
        leftover.touch()
    write_text(path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*list(names)[1:], path.name])


def test_what_is_in_the_way_is_deleted_unopened(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").touch()
    places = [tmp_path / name for name in ("file", "folder", "link", "pipe", "nothing")]
    places[0].touch()
    (places[1] / "b").mkdir(parents=True)
    places[2].symlink_to(outside)
    os.mkfifo(places[3])  # opening it would wait
    for place in places:
        make_way(place)
        make_way(place, ignore_errors=True)
        assert not os.path.lexists(place)
    assert (outside / "a").exists()


@pytest.mark.parametrize("verb", [["cache"], ["prepare", "~nosuch/data"]], ids=["cache", "prepare"])
def test_the_home_of_an_unknown_user_is_an_error_of_the_settings(codetr, monkeypatch: pytest.MonkeyPatch, verb):
    monkeypatch.setenv("CODETR_CACHE", "~nosuch/cache")
    ran = codetr(*verb)
    assert (ran.code, "~nosuch" in ran.err) == (2, True)


def test_links_in_a_circle_have_a_real_path(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    assert real_path(tmp_path / "loop" / ".." / "x").name == "x"
    assert real_path(tmp_path / "loop").name == "loop"
    assert numbered(tmp_path / "loop") == [tmp_path / "loop"]


def test_a_folder_that_cannot_be_looked_into_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "out")
    assert free_folder(tmp_path / "out", "x", force=False) == tmp_path / "out_2"
    assert free_folder(tmp_path / "out", "x", force=True) == tmp_path / "out"


def written(path: Path, content: bytes = b"a result", **how: object) -> Path:
    with write_result(path, **{"by": "predict", **how}) as temporary:
        temporary.write_bytes(content)
    return path


def test_own_results_are_replaced_only_with_force(tmp_path: Path):
    path = written(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="already exists: give another name, or replace it with --force"):
        written(path)
    assert written(path, b"new", force=True).read_bytes() == b"new"
    assert ResultRecord(tmp_path).is_own(path)
    assert ResultRecord(tmp_path).is_own(path, quick=True)


@pytest.mark.parametrize("change", ["other", "edited", "link", "moved", "folder", "emptied record", "same size"])
def test_what_codetr_did_not_make_is_never_replaced(tmp_path: Path, change: str):
    path = tmp_path / "a.json"
    if change != "other":
        written(path)
    if change == "link":
        path.rename(tmp_path / "b.json")
        path.symlink_to("b.json")
    elif change == "folder":
        path.unlink()
        path.mkdir()
    elif change == "moved":
        path = path.rename(tmp_path / "b.json")
    elif change == "emptied record":
        (tmp_path / RECORD_NAME).write_bytes(b"")
    else:
        path.write_bytes({"other": b"mine", "edited": b"mine", "same size": b"A RESULT"}[change])
    before = path.is_symlink() or path.is_dir() or path.read_bytes()
    with pytest.raises(ConfigError, match="not as codetr has written it, and is never replaced"):
        written(path, force=True)
    assert (path.is_symlink() or path.is_dir() or path.read_bytes()) == before


def test_a_request_continues_with_its_own_results_only(tmp_path: Path):
    path = written(tmp_path / "a.json", request="r")
    assert written(path, b"newer", request="r").read_bytes() == b"newer"
    with pytest.raises(ConfigError, match="--force"):
        written(path, request="q")
    path.write_bytes(b"edited")
    with pytest.raises(ConfigError, match="never replaced"):
        written(path, request="r")
    refuse_taken([tmp_path / "free.json"], force=False)


def test_threads_write_results_through_one_scratch_folder(tmp_path: Path):
    """Files of one name in several folders, replaced by another request while the record grows."""
    (tmp_path / "scratch").mkdir()
    record = ResultRecord(tmp_path)
    paths = [tmp_path / f"{folder}" / f"{'x' * 240}{name}.bin" for folder in range(8) for name in range(6)]

    def write(task: tuple[Path, str]) -> None:
        path, request = task
        path.parent.mkdir(exist_ok=True)
        how = {"scratch": tmp_path / "scratch", "record": record, "sync": False, "force": True}
        with write_result(path, by="predict", request=request, **how) as temporary:
            temporary.write_bytes(f"{path}{request}".encode() * 50)

    for request in ("first", "second"):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, [(path, request) for path in paths]))
        for path in paths:
            assert path.read_bytes() == f"{path}{request}".encode() * 50
            assert record.is_own(path, request=request)
    assert not list((tmp_path / "scratch").iterdir())
    assert {len(record.of(path.relative_to(tmp_path).as_posix())) for path in paths} == {2}


def test_a_record_that_cannot_be_trusted(tmp_path: Path):
    """Lines that were cut short, that are something else, and a record that is a link or a pipe."""
    path = written(tmp_path / "a.json")
    record = tmp_path / RECORD_NAME
    lines = record.read_bytes()
    record.write_bytes(lines + b'{"name": "b.json", "si')
    other = written(tmp_path / "b.json", b"")
    record.write_bytes(record.read_bytes() + b'[]\n{}\n\xff\n{"name": 1}\n{"name": "c", "size": "1"}\n' + b"[" * 9999)
    assert ResultRecord(tmp_path).is_own(path)
    assert ResultRecord(tmp_path).is_own(other)
    assert not ResultRecord(tmp_path).is_own(tmp_path / "c")
    record.rename(tmp_path / "moved")
    record.symlink_to("moved")
    assert not ResultRecord(tmp_path).is_own(path)
    with pytest.raises(ResourceError, match=r"c\.json"):
        written(tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()
    record.unlink()
    os.mkfifo(record)
    assert not ResultRecord(tmp_path).is_own(path)


def test_names_in_a_record_are_any_bytes(tmp_path: Path):
    path = written(tmp_path / os.fsdecode(b"caf\xe9\n.jpg"))
    (tmp_path / RECORD_NAME).read_bytes().decode("ascii")
    assert ResultRecord(tmp_path).is_own(path)


def test_own_results_in_a_folder_that_is_searched(tmp_path: Path):
    record = ResultRecord(tmp_path / "out")
    for name in ("a.jpg", "deep/b.jpg"):
        written(tmp_path / "out" / name, record=record, parents=True)
    written(tmp_path / "out/tile.jpg", record=record, by="convert-data")
    above = OwnResults(tmp_path)
    assert not above.holds("out/a.jpg")
    above.enter("out/")
    assert [above.holds(f"out/{name}") for name in ("a.jpg", "deep/b.jpg", "tile.jpg", "c.jpg")] == [
        *(True, True, False, False)
    ]
    assert OwnResults(tmp_path / "out").holds("a.jpg")
    assert OwnResults(tmp_path / "out/deep").holds("b.jpg")


def test_names_that_some_file_system_takes_for_one():
    assert folded("A.JPG") == folded("a.jpg")
    assert folded("caf\u00e9") == folded("CAFE\u0301")


@pytest.mark.parametrize("name", ["file", "file/below", "file/below/deep"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"--out .*/{name}: {tmp_path}/file is a file, where a folder is needed"):
        check_folder(tmp_path / name, "--out")


def test_a_folder_to_write_need_not_exist(tmp_path: Path):
    for path in (None, tmp_path, tmp_path / "new/folder"):
        check_folder(path, "--out")


def test_own_results_that_are_read_only_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = written(tmp_path / "out" / "a.json", parents=True)
    path.chmod(0o444)
    with pytest.raises(ConfigError, match="read-only and is not replaced"):
        written(path, b"new", force=True)
    assert ResultRecord(path.parent).is_own(path)  # and thus no input
    assert free_folder(path.parent, path.name, force=True) == tmp_path / "out_2"
    assert "a.json is not as codetr has written it, or read-only, and is kept" in caplog.text
    assert free_file(path, force=True) == path.with_name("a_2.json")


def test_forced_results_elsewhere_are_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = written(tmp_path / "out" / "a.json", parents=True)
    assert free_folder(path.parent, path.name, force=True) == path.parent
    assert not caplog.text
    path.write_bytes(b"edited")
    assert free_folder(path.parent, path.name, force=True) == tmp_path / "out_2"
    assert f"{path} is not as codetr" in caplog.text
    assert str(tmp_path / "out_2") in caplog.text
