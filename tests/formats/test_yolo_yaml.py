"""The YAML description of a YOLO dataset."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats.yolo_yaml import MAX_BYTES, find_description, read_description


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [a, 'b, c', \"d\\u0065\"]", ["a", "b, c", "de"]),
        ("names: ['it''s', b] # two", ["it's", "b"]),
        ("names:\n- a\n- b b\n", ["a", "b b"]),
        ("names:\n  - a\n  - 'b#c'\n", ["a", "b#c"]),
        ("names: [\n  a,\n  b,\n]\nother: |\n  names: x\n", ["a", "b"]),
        ("names: {0: a, 1: b}", {"0": "a", "1": "b"}),
        ("names: [it's, don't, 'a#b', c # d\n, e]", ["it's", "don't", "a#b", "c", "e"]),
        ("names: [a#b, 'c,''d''']", ["a#b", "c,'d'"]),
        ("# c\n---\nnames:\n  0: a  # first\n  1: traffic light\nroboflow:\n  workspace: x\n", None),
    ],
)
def test_forms_of_names(tmp_path: Path, text: str, names: object) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    assert read_description(path)["names"] == (names or {"0": "a", "1": "traffic light"})


HOSTILE = (
    "names: [#a]",
    'names: [a, "#]',
    "names: [a, '#]",
    'names: [#"a]',
    "names: [a, #",
    "#",
    "names:\n#",
    "names#:",
)
UNITS = (" ", "a", ",", "#", " #", "'", '"', '\\"', "\\", "''", '" ', " '", "[", "{", "a:", "- a\n", "\n", "names ")


@pytest.mark.parametrize("form", HOSTILE)
def test_time_is_linear(tmp_path: Path, form: str) -> None:
    path = tmp_path / "data.yaml"
    for unit in UNITS:
        path.write_text(form.replace("#", unit * (100_000 // len(unit))) + "\ntrain: x\n")
        start = time.process_time()
        with suppress(DatasetError):
            read_description(path)
        assert time.process_time() - start < 0.5, repr(unit)


def test_what_cannot_be_read_is_named_if_it_is_the_description(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("names: [a]\ntrain: x\n")
    os.mkfifo(tmp_path / "compose.yaml")
    (tmp_path / "big.yaml").write_text("a" * (MAX_BYTES + 1))
    (tmp_path / "broken.yaml").write_text("names: [a\ntrain: x\n")
    assert found(tmp_path) == "other.yaml"
    (tmp_path / "other.yaml").unlink()
    with pytest.raises(DatasetError, match=r"broken.yaml: it is not YAML: .* in line 2"):
        found(tmp_path)
    path = tmp_path / "data.yaml"
    os.mkfifo(path)
    with pytest.raises(DatasetError, match=r"cannot read .*data.yaml: it is a named pipe"):
        found(tmp_path)
    path.unlink()
    path.write_bytes(b"names: [\xe9]")
    with pytest.raises(DatasetError, match=r"data.yaml: its text is not UTF-8 .byte 8 of 10."):
        found(tmp_path)


def found(folder: Path, chosen: str = "") -> str | None:
    survey = Survey.of(folder)
    survey.chosen = chosen
    file = find_description(survey)
    return None if file is None else file.name


def test_which_file_is_the_description(tmp_path: Path) -> None:
    """Data.yaml, else the only other one; those of networks and runs are none, nor are those of parts."""
    (tmp_path / "yolov8n.yaml").write_text("nc: 80\nbackbone:\n  - [-1, 1, Conv, [64, 3, 2]]\n")
    (tmp_path / "args.yaml").write_text("task: detect\nmodel: x.pt\ndata: data.yaml\nval: true\nnames: null\n")
    assert found(tmp_path) in (None, "args.yaml")
    (tmp_path / "args.yaml").unlink()
    assert found(tmp_path) is None
    (tmp_path / "pets.yml").write_text("names: [a]\ntrain: x\n")
    assert found(tmp_path) == "pets.yml"
    (tmp_path / "pets2.yaml").write_text("# the same\nnames:\n- a\ntrain: x\n")
    assert found(tmp_path) == "pets.yml"
    (tmp_path / "pets2.yaml").write_text("names: [b]\ntrain: x\n")
    with pytest.raises(DatasetError, match=r"several descriptions .*: pets.yml, pets2.yaml. .*--data .*pets.yml"):
        found(tmp_path)
    assert found(tmp_path, "pets2.yaml") == "pets2.yaml"
    (tmp_path / "data.yml").write_text("names: [c]\nval: x\n")
    assert found(tmp_path) == "data.yml"


def test_a_description_in_a_folder_of_its_own(tmp_path: Path) -> None:
    for name in ("configs/pets.yaml", "other/data.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("names: [a]\ntrain: ../images\n")
    (tmp_path / "other/1.jpg").write_bytes(b"x")
    assert found(tmp_path) == "configs/pets.yaml"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ('"\\u0000"', "has characters that no name can have"),
        ('"\\ud800"', "is not YAML"),
        ('"a', "is not YAML"),
        ("'a", "is not YAML"),
        ("!!python/object:os.system x", "YAML syntax that is not supported"),
        ("*a", "refers to nothing above"),
        ("&a [*a]", "refers to nothing above"),
        ("'a'\n<<: {b: c}", "<< is YAML syntax that is not supported"),
        ("[" * 30 + "]" * 30, "nested more than 20 levels"),
        ("a\n---\ntrain: b", "has several documents"),
        ("a\nnames: [b]", "names is given twice"),
        ("a\n%TAG ! x", "line starts with %"),
        ("{0: a, 0: b}", "train: 0 is given twice"),
        ("{[a]: b}", "keys is a list"),
    ],
)
def test_texts_that_no_name_can_be(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(f"names: [a]\ntrain: {name}\n")
    with pytest.raises(DatasetError, match=words) as caught:
        read_description(path)
    assert len(str(caught.value)) < 1000


def test_all_scalars_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    words = ["no", "yes", "1", "01", "1.50", "null", "~", "on", "2001-01-01", "0x1F", "1_000", "é猫 🐈", "a: b", "y"]
    lines = "".join(
        f"  {number}: {word!r}\n" if ":" in word else f"  {number}: {word}\n" for number, word in enumerate(words)
    )
    path.write_text(f"names:\n{lines}nc: 14\n", encoding="utf-8")
    assert read_description(path) == {"names": {str(number): word for number, word in enumerate(words)}, "nc": "14"}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("names: [été]\n", "utf-8"),
        ("names: [été]\n", "utf-8-sig"),
        ("names: [été]\n", "utf-16"),
        ("names: [été]\n", "utf-16-le"),
        ("# -*- coding: latin-1 -*-\nnames: [été]\n", "latin-1"),
        ("# encoding=cp1252\r\nnames: [été]\r\n", "cp1252"),
        ("names: [猫, 狗]\n", "gbk"),
    ],
)
def test_encodings(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_bytes(text.encode(encoding))
    assert read_description(path)["names"] in (["été"], ["猫", "狗"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train:\n  - a\n  - [b, c]\n", ["a", ["b", "c"]]),
        ("train: &t images\nval: *t\n", "images"),
        ("train:\nval: a\n", ""),
        ("train: C:\\data\\images\n", "C:\\data\\images"),
        ("train: 'C:\\data\\images' # x\n", "C:\\data\\images"),
        ("\ttrain:\ta\n\tval: b\n", "a"),
        ("%YAML 1.2\n---\ntrain: a\n...\n", "a"),
        ("download: |\n  train: x\n\n  [ {\n# b\ntrain: a\n", "a"),
        ("train: !!str a\n", "a"),
        ("{train: a, names: [b]}", "a"),
        ("train: >-\n  a\n", "a"),
        ("train: a\ntrain: a\n", "a"),
        ("train: a\nother: 1\nother: 2\n", "a"),
    ],
)
def test_forms_of_yaml(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    assert read_description(path)["train"] == value


BOMBS = {
    "levels": "a: " + "[" * 500_000,
    "maps": "{a: " * 200_000,
    "entries": "names:\n" + "- a\n" * 250_000,
    "flow": "names: [" + "a," * 500_000 + "]",
    "pairs": "names: [" + "? a," * 250_000 + "]",
    "documents": "---\n" * 250_000,
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "tags": "".join(f"%TAG !a{number}! b\n" for number in range(60_000)),
    "keys": "".join(f"k{number}: a\n" for number in range(90_000)),
    "line": "a: " + "b" * 1_000_000,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_megabyte_is_read_or_refused_in_a_moment(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(BOMBS[kind])
    start = time.process_time()
    with suppress(DatasetError):
        read_description(path)
    assert time.process_time() - start < 3
