"""A lock has one owner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from codetr_cli.locks import FileLock, is_locked

REPOSITORY = Path(__file__).parents[1]
HOLDER = """
import sys
from pathlib import Path
from codetr_cli.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


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


@pytest.mark.skipif(os.name != "posix", reason="no named pipes")
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_lock_is_a_regular_file(tmp_path: Path, kind: str):
    path = tmp_path / "lock"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="not a regular file"):
        FileLock(path).acquire()
    assert is_locked(path) is None
    assert not (tmp_path / "elsewhere").exists()
