from __future__ import annotations

from pathlib import Path

from codetr_cli.data.formats.layouts import published_split
from codetr_cli.data.formats.list_files import read_list, write_list


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
