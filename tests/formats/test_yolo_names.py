"""Class names of YOLO data sets: in descriptions, in files of names, and in Label Studio's notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats import yolo_names
from codetr_cli.formats.yolo_names import find_names, is_names_file, names_of
from codetr_cli.formats.yolo_yaml import read_description


def described(folder: Path, text: str) -> tuple[list[str], str, list[str]]:
    path = folder / "data.yaml"
    path.write_text(text, encoding="utf-8")
    notes: list[str] = []
    names, file = names_of(read_description(path), path, Survey.of(folder), notes)
    return names, file.name, notes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: ['no', yes, 1]", ["no", "yes", "1"]),
        ("names: {1: b, 0: a}", ["a", "b"]),
        ("names: {'0': a, \"1\": b}", ["a", "b"]),
        ("nc: 2\nnames:\n  0: a\n  1: b", ["a", "b"]),
        ("names: ['a',\n        'b',\n]\nnc: 2", ["a", "b"]),
        ("names:\n- 'it''s'\n- \"a: #b\"\n- ünï 猫", ["it's", "a: #b", "ünï 猫"]),
    ],
)
def test_forms_of_names(tmp_path: Path, text: str, names: list[str]) -> None:
    assert described(tmp_path, text) == (names, "data.yaml", [])


def test_only_the_number_of_classes(tmp_path: Path) -> None:
    names, file, notes = described(tmp_path, "nc: 3\ntrain: x\n")
    assert (names, file) == (["class_0", "class_1", "class_2"], "data.yaml")
    assert "the 3 classes are called class_0" in notes[0]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert described(tmp_path, "nc: 3\ntrain: x\n")[0] == names
    assert described(tmp_path, "nc: 2\ntrain: x\n")[:2] == (["a", "b"], "classes.txt")


def test_a_number_that_disagrees_is_noted(tmp_path: Path) -> None:
    assert described(tmp_path, "nc: 80\nnames: [a]\n")[2] == [
        "data.yaml says nc: 80, but names 1 classes: the names are used"
    ]


def test_other_names_in_a_file_are_noted(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("b\na\n")
    names, _, notes = described(tmp_path, "names: [a, b]\n")
    assert names == ["a", "b"]
    assert notes == ["the class names are those of data.yaml; classes.txt has others, which are not used"]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert described(tmp_path, "names: [a, b]\n")[2] == []
    (tmp_path / "classes.txt").write_text("a\n\nb\n")
    assert "classes.txt, line 2, is empty" in described(tmp_path, "names: [a, b]\n")[2][0]


def test_names_that_are_a_file(tmp_path: Path) -> None:
    (tmp_path / "coco.names").write_text("a\nb\n")
    assert described(tmp_path, "names: data/coco.names\n")[:2] == (["a", "b"], "coco.names")
    with pytest.raises(DatasetError, match="has no class names"):
        described(tmp_path, "names: other.names\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
@pytest.mark.parametrize(
    "name", ["classes.txt", "labels/classes.txt", "data/obj.names", "names.txt", "train/coco.names"]
)
def test_files_of_names(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes("猫狗\r\n traffic light \r\n\r\n".encode(encoding))
    assert find_names(Survey.of(tmp_path)) == (["猫狗", "traffic light"], tmp_path / name)
    assert is_names_file(name)


def test_files_that_disagree(tmp_path: Path) -> None:
    for folder, text in (("train", "a\nb\n"), ("val", "a\nb")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "classes.txt").write_text(text)
    assert find_names(Survey.of(tmp_path)) == (["a", "b"], tmp_path / "train/classes.txt")
    (tmp_path / "val" / "classes.txt").write_text("b\na\n")
    with pytest.raises(DatasetError, match=r"train/classes.txt and val/classes.txt have different class names"):
        find_names(Survey.of(tmp_path))


def test_an_empty_line_between_names(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\n\nb\n")
    with pytest.raises(DatasetError, match=r"classes.txt, line 2, is empty"):
        find_names(Survey.of(tmp_path))


@pytest.mark.parametrize("text", ["", "\n", "\0", "a" * 1001])
def test_files_without_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DatasetError, match=r"classes.txt.*(no class names|zero bytes|letters)"):
        find_names(Survey.of(tmp_path))


def test_notes_of_label_studio(tmp_path: Path) -> None:
    assert find_names(Survey.of(tmp_path)) is None
    path = tmp_path / "notes.json"
    path.write_text('{"categories": [{"id": 1, "name": "b"}, {"id": 0, "name": "a"}], "info": {}}')
    assert find_names(Survey.of(tmp_path)) == (["a", "b"], path)
    for text in ('{"categories": [{"id": 1, "name": "b"}]}', "[]", "{", '{"categories": [{"id": [], "name": 1}]}'):
        path.write_text(text)
        with pytest.raises(DatasetError, match=r"notes.json does not have categories .*classes.txt"):
            find_names(Survey.of(tmp_path))


def test_too_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yolo_names, "MAX_CLASSES", 2)
    with pytest.raises(DatasetError, match="has 3 class names"):
        described(tmp_path, "nc: 3\n")
