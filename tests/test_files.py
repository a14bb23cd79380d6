"""Files are replaced as a whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from codetr_cli.errors import CheckpointError, ConfigError, ResourceError
from codetr_cli.files import cache_dir, check_folder, make_way, real_path, replace_file, restore_bytes, write_text
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


@pytest.mark.parametrize("name", ["file", "file/below", "file/below/deep"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"--out .*/{name}: {tmp_path}/file is a file, where a folder is needed"):
        check_folder(tmp_path / name, "--out")


def test_a_folder_to_write_need_not_exist(tmp_path: Path):
    for path in (None, tmp_path, tmp_path / "new/folder"):
        check_folder(path, "--out")
