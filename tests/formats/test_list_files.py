from __future__ import annotations

import os
from pathlib import Path

import pytest

from codetr_cli.annotations.layouts import published_split
from codetr_cli.errors import DatasetError
from codetr_cli.formats.list_files import read_list, write_list


def test_the_list_is_written_once(tmp_path: Path) -> None:
    split = published_split("train", tmp_path)
    assert write_list(split, ["b.jpg", "sub/a.jpg"]) == "written"
    assert split.list_path.read_text() == "train2017/b.jpg\ntrain2017/sub/a.jpg\n"
    assert write_list(split, ["c.jpg"]) == "present"
    assert read_list(split) == {"b.jpg", "sub/a.jpg"}
    assert [path.name for path in tmp_path.iterdir()] == ["train2017.txt"]


def test_lists_of_other_programs_are_read(tmp_path: Path) -> None:
    split = published_split("val", tmp_path)
    split.list_path.write_text("./images/val2017/a.jpg\n/data/val2017/sub/b.jpg\nc.jpg\n\n")
    assert read_list(split) == {"a.jpg", "sub/b.jpg", "c.jpg"}


def test_a_protected_folder_stays_untouched(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        assert write_list(published_split("train", tmp_path), ["a.jpg"]) == "not written: the folder is write-protected"
        assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o755)


def test_a_pipe_is_no_list(tmp_path: Path) -> None:
    split = published_split("train", tmp_path)
    os.mkfifo(split.list_path)
    assert write_list(split, ["a.jpg"]) == "present"
    with pytest.raises(DatasetError, match="it is a named pipe"):
        read_list(split)
    split.list_path.unlink()
    split.list_path.symlink_to("nothing")
    assert write_list(split, ["a.jpg"]) == "present"


def test_a_name_that_no_file_can_have_is_no_error(tmp_path: Path) -> None:
    split = published_split("train", tmp_path)
    assert write_list(split, ["a\ud800.jpg"]) == "written"
    assert split.list_path.read_text(encoding="utf-8") == "train2017/a\\ud800.jpg\n"
    split.list_path.unlink()
    name = os.fsdecode(b"caf\xe9.jpg")
    assert write_list(split, [name]) == "written"
    assert read_list(split) == {name}
