"""Text files of a data set, and what only looks like them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.annotations import data_files
from codetr_cli.annotations.data_files import is_file, is_folder, read_lines, read_text, without_file
from codetr_cli.errors import DatasetError


def test_text_of_any_system(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa \r\nb\rc\xe9\n\x0bd\x1ce\n")
    assert read_text(path, 100) == "a \nb\nc\ufffd\n\x0bd\x1ce\n"
    assert read_lines(path) == ["a", "b", os.fsdecode(b"c\xe9"), "d\x1ce", ""]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_as_windows_saves_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("a ü\r\n猫", encoding=encoding, newline="")
    assert read_lines(tmp_path / "a.txt") == ["a ü", "猫"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: os.mkfifo(path), "a.txt: it is a named pipe, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        (lambda path: path.symlink_to("/proc/self/environ"), "it is a file of the kernel"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(bytes(101)), "more than 100 bytes"),
        (lambda path: path.write_bytes(b"a\0b"), "is not UTF-8 text"),
        (lambda path: path.write_bytes(b"\xff\xfea"), "is not UTF-8 text"),
        (lambda path: path.write_text("\n" * 60), "more than 50 lines"),
    ],
)
def test_anything_else_is_named(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "a.txt")
    with pytest.raises(DatasetError, match=words):
        read_lines(tmp_path / "a.txt", limit=100, max_lines=50)


def test_a_line_is_no_longer_than_any_path(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\n" + "b" * 10_001 + "\nc")
    with pytest.raises(DatasetError, match="has a line of 10,001 letters, 10,000 are possible: bbb") as caught:
        read_lines(path)
    assert len(str(caught.value)) < 500


def test_names_that_nothing_can_have(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b", "\ud800", "a/" * 3000):
        assert not is_file(tmp_path / name)
        assert not is_folder(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    assert is_file(tmp_path / "pipe")  # so that reading it names the problem
    (tmp_path / "loop").symlink_to("loop")
    assert not is_file(tmp_path / "loop")
    assert not is_folder(tmp_path / "loop")


def test_the_search_for_missing_files_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "MAX_COUNTED", 3)
    assert without_file("abc", lambda name: name == "b") == (["a", "c"], "2")
    assert without_file("abcdefg", lambda _: False) == (["a", "b", "c"], "3 or more")
