"""Lists of images, as other computers and systems write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats.yolo_lists import ListReader, lists_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("set/images/a.jpg", "set/images/b c.jpg", "set/images/ü.png", "set/other/a.jpg", "out.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "set"


def read(root: Path, text: str | bytes) -> tuple[list[str], list[str]]:
    path = root / "train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    reader = ListReader(Survey.of(root), NameRule.of(root))
    return [found.relative_to(root).as_posix() for found in reader.read(path, [str(root)])], reader.notes


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("images/a.jpg", "images/a.jpg"),
        ("./images/a.jpg\r", "images/a.jpg"),
        ("  images/b c.jpg  ", "images/b c.jpg"),
        ("images\\b c.jpg", "images/b c.jpg"),
        ("/home/me/set/images/a.jpg", "images/a.jpg"),
        ("C:\\data\\set\\images\\a.jpg", "images/a.jpg"),
        ("../images/a.jpg", "images/a.jpg"),
        ("../../datasets/set/images/a.jpg", "images/a.jpg"),
        ("data/images/b%20c.jpg", "images/b c.jpg"),
        ("images/U\u0308.PNG", "images/ü.png"),
        ("https://example.org/images/a.jpg", "images/a.jpg"),
    ],
)
def test_lines(root: Path, line: str, name: str) -> None:
    names, notes = read(root, f"{line}\nimages/ü.png\n")
    assert names == list(dict.fromkeys([name, "images/ü.png"]))
    assert len(notes) == (not (root / line.strip()).is_file())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_encodings(root: Path, encoding: str) -> None:
    assert read(root, "images/ü.png\nimages/a.jpg".encode(encoding))[0] == ["images/ü.png", "images/a.jpg"]


def test_names_in_gbk(root: Path) -> None:
    (root / "images" / "猫狗.jpg").write_bytes(b"x")
    assert read(root, "images/猫狗.jpg".encode("gbk"))[0] == ["images/猫狗.jpg"]


def test_repeated_lines_are_counted(root: Path) -> None:
    assert read(root, "images/a.jpg\n" * 3) == (["images/a.jpg"], ["train.txt repeats 2 lines, which are read once"])


@pytest.mark.parametrize("line", ["images/gone.jpg", "/home/me/gone.jpg", "/elsewhere/a.jpg"])
def test_images_that_are_missing_or_several(root: Path, line: str) -> None:
    with pytest.raises(DatasetError, match=r"train.txt lists 1 image that is missing: .*(gone|a).jpg"):
        read(root, line)


@pytest.mark.parametrize("line", ["../out.jpg", "{}/out.jpg", "images/../../out.jpg"])
def test_what_is_there_but_outside_is_refused(root: Path, line: str) -> None:
    with pytest.raises(DatasetError, match=r"train.txt: 1 name leads out of .*allow_outside"):
        read(root, line.format(root.parent))


def test_what_a_list_is(tmp_path: Path) -> None:
    for name, text in (
        ("a", "x/1.jpg\ny.PNG\n\n"),
        ("b", "0 .5 .5 .1 .1\n"),
        ("c", "see a.jpg\nand more\n"),
        ("d", ""),
    ):
        (tmp_path / f"{name}.txt").write_text(text)
    survey = Survey.of(tmp_path)
    assert [lists_images(survey, f"{name}.txt") for name in "abcd"] == [True, False, False, False]


def test_a_missing_image_is_no_namesake_of_another_folder(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"lists 1 image that is missing: other/b c.jpg"):
        read(root, "other/b c.jpg\nother/a.jpg\n")
