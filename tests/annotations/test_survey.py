"""The list of what is in the folder of a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.survey import Survey, folder_of, stem_of
from codetr_cli.result_files import ResultRecord, write_result


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_files_are_listed_in_order_without_debris(tmp_path):
    folder = touch(
        tmp_path / "set", "b/2.JPG", "a.xml", "b/._2.JPG", ".ipynb_checkpoints/1.jpg", "__MACOSX/x.jpg", "Thumbs.db"
    )
    survey = Survey.of(folder)
    assert survey.names == ["a.xml", "b/2.JPG"]
    assert survey.debris == 4
    assert survey.images == ["b/2.JPG"]
    assert survey.with_suffix(".xml", ".jpg") == ["a.xml", "b/2.JPG"]


def test_linked_folders_are_named_and_not_followed(tmp_path):
    folder = touch(tmp_path / "set", "a.jpg")
    touch(tmp_path / "other", "b.jpg")
    (folder / "more").symlink_to(tmp_path / "other")
    (folder / "loop").symlink_to(folder)
    survey = Survey.of(folder)
    assert (survey.names, survey.linked) == (["a.jpg"], ["loop", "more"])


def test_parts(tmp_path):
    survey = Survey.of(touch(tmp_path, "x/y/1.txt", "x/2.txt", "xy/3.txt", "z.txt"))
    assert survey.subfolders() == ["x", "xy"]
    assert survey.below("x").names == ["2.txt", "y/1.txt"]
    assert survey.below("x").folder == tmp_path / "x"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_heads_are_text_in_any_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(("狗" * 40_000).encode(encoding))
    head = Survey.of(tmp_path).head("a.txt")
    assert set(head) == {"狗"}


def test_what_cannot_be_read_has_no_head(tmp_path):
    (tmp_path / "a.json").symlink_to("nowhere")
    (tmp_path / "b.json").write_bytes(b"\x89PNG\0\xff\0")
    survey = Survey.of(tmp_path)
    assert (survey.head("a.json"), survey.head("b.json")) == ("", "")
    assert survey.first_with_head(survey.names, bool) is None


def test_names():
    assert (folder_of("a/b/c.x"), folder_of("c.x")) == ("a/b", "")
    assert (stem_of("a.b/c.d.x"), stem_of("a.b/c")) == ("a.b/c.d", "a.b/c")


def test_own_results_are_no_data(tmp_path: Path) -> None:
    record = ResultRecord(tmp_path / "predictions")
    for name in ("a.jpg", "b/c.jpg", "predictions.json"):
        with write_result(tmp_path / "predictions" / name, by="predict", record=record, parents=True) as temporary:
            temporary.write_bytes(b"content")
    (tmp_path / "predictions" / "mine.jpg").touch()
    survey = Survey.of(tmp_path)
    assert survey.names == ["predictions/mine.jpg"]
    assert sorted(survey.results) == [f"predictions/{name}" for name in ("a.jpg", "b/c.jpg", "predictions.json")]
