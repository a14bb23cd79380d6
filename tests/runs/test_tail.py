from __future__ import annotations

import os
from pathlib import Path

import pytest

from codetr_cli.runs import tail
from codetr_cli.runs.metrics_log import MAX_LINE_BYTES
from codetr_cli.runs.tail import FileTail, NewLines


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_only_what_is_new_is_read(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    add(path, "a\nb\n")
    ours = FileTail(path)
    assert ours.read() == NewLines([b"a", b"b"])
    assert ours.read() == NewLines()
    add(path, "c\n")
    assert ours.read() == NewLines([b"c"])


def test_a_line_is_read_once_it_is_complete(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    add(path, "a\nhal")
    ours = FileTail(path)
    assert ours.read().lines == [b"a"]
    add(path, "f")
    assert ours.read().lines == []
    add(path, " line\nb")
    assert ours.read().lines == [b"half line"]


def test_a_file_that_comes_later_and_is_gone_for_a_while(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    ours = FileTail(path)
    with pytest.raises(FileNotFoundError):
        ours.read()
    add(path, "a\n")
    assert ours.read().lines == [b"a"]
    path.rename(tmp_path / "aside")
    with pytest.raises(FileNotFoundError):
        ours.read()
    (tmp_path / "aside").rename(path)
    add(path, "b\n")
    assert ours.read() == NewLines([b"b"])


def test_a_copy_with_the_same_beginning_continues(tmp_path: Path):
    """As rsync makes it: a new file gets the name of the old one."""
    path, copy = tmp_path / "metrics.jsonl", tmp_path / "copy"
    add(path, "a\nb\n")
    ours = FileTail(path)
    ours.read()
    copy.write_text("a\nb\nc\n")
    copy.replace(path)
    assert ours.read() == NewLines([b"c"])


@pytest.mark.parametrize("text", ["a\n", "x\ny\n", "a\nB\nc\nd\n", ""])
def test_a_file_that_was_written_again_is_read_from_its_beginning(tmp_path: Path, text: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text("a\nb\n")
    ours = FileTail(path)
    ours.read()
    path.write_text(text)
    os.utime(path, (1, 1))  # a disk with coarse times could show no change of one with the same size
    assert ours.read() == NewLines([line.encode() for line in text.splitlines()], is_restart=True)
    add(path, "e\n")
    assert ours.read() == NewLines([b"e"])


def test_of_a_long_file_the_end_is_read(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"line {number:04d}\n" for number in range(1000)))
    ours = FileTail(path, limit=1005)
    new = ours.read()
    assert new.is_cut
    assert new.lines == [f"line {number:04d}".encode() for number in range(900, 1000)]
    add(path, "line 1000\n")
    assert ours.read() == NewLines([b"line 1000"])


def test_a_line_without_end_is_given_up(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * (MAX_LINE_BYTES + 1))
    ours = FileTail(path)
    ours.read()
    add(path, "\na\n")
    assert ours.read().lines[-1] == b"a"


def test_other_things_than_files_are_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="named pipe"):
        FileTail(tmp_path / "metrics.jsonl").read()
    assert tail.READ_BYTES > MAX_LINE_BYTES
