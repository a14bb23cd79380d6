"""Files are replaced as a whole or not at all, and a lock has one owner."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codetr_cli.errors import CheckpointError, ResourceError
from codetr_cli.files import FileLock, cache_dir, is_locked, replace_file, write_text
from codetr_cli.weights.checkpoint import file_sha256

REPOSITORY = Path(__file__).parents[1]
HOLDER = """
import sys
from pathlib import Path
from codetr_cli.files import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


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


def test_names_that_are_not_utf_8_keep_their_bytes(tmp_path: Path):
    write_text(tmp_path / "x", os.fsdecode(b"caf\xe9.jpg"))
    assert (tmp_path / "x").read_bytes() == b"caf\xe9.jpg"


def test_a_lock_has_one_owner(tmp_path: Path):
    path = tmp_path / "lock"
    assert is_locked(path) is False
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert is_locked(path) is True
    lock = FileLock(path)
    assert not lock.acquire()
    holder.communicate(timeout=30)
    assert is_locked(path) is False
    assert lock.acquire()
    lock.release()
    assert path.exists()
    assert lock.acquire()
    lock.release(remove=True)
    assert not path.exists()


def test_a_lock_that_its_owner_deleted_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between opening a file and locking it, the owner may delete it: the lock on that file protects nothing."""
    path = tmp_path / "lock"
    opened = Path.open
    calls = []

    def open_then_delete(self: Path, *arguments: str) -> object:
        file = opened(self, *arguments)
        if not calls:
            self.unlink()
        calls.append(self)
        return file

    monkeypatch.setattr(Path, "open", open_then_delete)
    lock = FileLock(path)
    assert lock.acquire()
    assert len(calls) == 2
    assert path.exists()
    lock.release()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("CODETR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "codetr"
