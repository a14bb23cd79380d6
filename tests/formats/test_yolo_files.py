"""Which label file belongs to an image, and which text files are labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.survey import Survey
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError
from codetr_cli.formats.resolve import find_data
from codetr_cli.formats.yolo_files import LabelFiles, find_almost_label, find_label_file, is_label_text
from tests.data.fakes import write_image
from tests.formats import yolo_exports as exports


def survey(*names: str) -> Survey:
    return Survey(Path("/set"), sorted(names))


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/a.jpg", "labels/a.txt"),
        ("images/x/images/y/a.b.jpg", "images/x/labels/y/a.b.txt"),
        ("images/train_images/a.jpg", "labels/train_images/a.txt"),
        ("train_images/a.jpg", "train_labels/a.txt"),
        ("a.jpg", "a.txt"),
        ("x/a.jpg", "x/a.txt"),
        ("x/a.jpg", "x/labels/a.txt"),
        ("x/a.jpg", "labels/x/a.txt"),
        ("images/a.jpg", "images/a.txt"),
    ],
)
def test_places_of_label_files(image: str, labels: str) -> None:
    files = LabelFiles(survey(image, labels, "other/a.txt"))
    assert files.find_name(image) == labels
    assert files.find(Path("/set") / image) == Path("/set") / labels


def test_no_other_file_is_taken() -> None:
    files = LabelFiles(survey("images/a.jpg", "elsewhere/a.txt", "labels/b.txt", "runs/detect/exp/labels/a.txt"))
    assert files.find_name("images/a.jpg") is None
    files.match_by_stem(["images/a.jpg"])
    assert files.find_name("images/a.jpg") == "elsewhere/a.txt"
    files = LabelFiles(survey("images/a.jpg", "x/a.txt", "y/a.txt"))
    files.match_by_stem(["images/a.jpg"])
    assert files.find_name("images/a.jpg") is None


@pytest.mark.parametrize(
    ("labels", "images", "expected"),
    [
        (["lbls/train/0", "lbls/val/0"], ["imgs/train/0", "imgs/val/0"], ["lbls/train/0", "lbls/val/0"]),
        (["train_txt/0", "val_txt/0"], ["train_imgs/0", "val_imgs/0"], ["train_txt/0", "val_txt/0"]),
        (["lbls/train/0"], ["imgs/val/0"], [None]),
        (["txt/cats/1"], ["photos/dogs/1"], [None]),
        (["txt/1"], ["imgs/x/1", "imgs/y/1"], [None, None]),
        (["txt/1"], ["imgs/x/1"], ["txt/1"]),
        (["all/1", "notes/2"], ["pictures/1"], ["all/1"]),
        (["txt/E\u0301"], ["imgs/\u00e9"], ["txt/E\u0301"]),
    ],
)
def test_folders_that_pair(labels: list[str], images: list[str], expected: list[str | None]) -> None:
    photos = [f"{name}.jpg" for name in images]
    files = LabelFiles(survey(*photos, *(f"{name}.txt" for name in labels)))
    files.match_by_stem(photos)
    assert [files.find_name(name) for name in photos] == [name and f"{name}.txt" for name in expected]


@pytest.mark.parametrize(("image", "label"), [("e\u0301", "\u00e9"), ("\u00e9", "e\u0301")])
def test_accents_as_macos_writes_them(image: str, label: str) -> None:
    files = LabelFiles(survey(f"images/{image}.jpg", f"labels/{label}.txt", f"labels/{label}2.txt"))
    assert files.find_name(f"images/{image}.jpg") == f"labels/{label}.txt"
    assert files.find_name(f"images/{image}3.jpg") is None
    files = LabelFiles(survey(f"images/{image}.jpg", f"labels/{label}.txt", f"labels/{image}.txt"))
    assert files.find_name(f"images/{image}.jpg") == f"labels/{image}.txt"


def test_images_outside(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("")
    files = LabelFiles(survey())
    assert files.find(tmp_path / "images/a.jpg") == tmp_path / "labels/a.txt"
    assert files.find(tmp_path / "images/b.jpg") is None
    assert files.expected(tmp_path / "images/b.jpg") == tmp_path / "labels/b.txt"


@pytest.mark.parametrize(
    ("text", "is_label"),
    [
        ("0 0.5 0.5 0.1 0.1\n", True),
        ("\n12\t.5 .5 1e-1 .1 \n\n3.0 0.5 0.5 0.1 0.1 0.9", True),
        ("0 " + "0.5 0.25 " * 4000, True),
        ("0 0.5 0.5 0.1\n", False),
        ("", False),
        ("cat 0.5 0.5 0.1 0.1\n", False),
        ("0 0.5 0.5 0.1 0.1\nend\n", False),
        ("Car 0.00 0 -1.58 587.01 173.33 614.12 200.12\n", False),
        ("0.7 0.5 0.5 0.1 0.1\n", False),
        ("-1 0.5 0.5 0.1 0.1\n", False),
        ("1,0.5,0.5,0.1,0.1\n", False),
        ("000001 1\n000002 -1\n", False),
        ("0 nan 0.5 0.1 0.1\n", False),
        ("numpy==1.26\ntorch\n", False),
    ],
)
def test_labels_by_content(text: str, is_label: bool) -> None:
    assert is_label_text(text) == is_label


def test_the_first_label_file(tmp_path: Path) -> None:
    for name, text in (
        ("images/a.jpg", ""), ("labels/a.txt", ""), ("images/b.jpg", ""), ("labels/b.txt", "0 1 1 1 1"),
        ("labels/classes.txt", "0 1 1 1 1"),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert find_label_file(Survey.of(tmp_path)) == "labels/b.txt"
    (tmp_path / "labels/b.txt").unlink()
    assert find_label_file(Survey.of(tmp_path)) == "labels/a.txt"  # empty: an image without objects
    (tmp_path / "labels/a.txt").unlink()
    assert find_label_file(Survey.of(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,.5,.5,.2,.2\n", "line 1: '0,.5,.5,.2,.2' is almost .* not separated by blanks"),
        ("\n3; 0.5; 0.5; 0.2; 0.2\n", "line 2: .* not separated by blanks"),
        ("cat .5 .5 .2 .2\n", "the class is not a number"),
        ("traffic light 0.5 0.5 0.2 0.2\n", "the class is not a number"),
        ("0 0,5 0,5 0,2 0,2", "has decimal commas"),
    ],
)
def test_almost_labels_are_explained(tmp_path: Path, text: str, words: str) -> None:
    exports.write(tmp_path, "classes.txt", "cat\n")
    write_image(tmp_path / "images/a.jpg")
    exports.write(tmp_path, "labels/a.txt", text)
    with pytest.raises(DatasetError, match=f"labels/a.txt, .*{words}"):
        find_data(DataConfig(), str(tmp_path), "train")


@pytest.mark.parametrize("text", ["Car 0.00 0 -1.58 587.01 173.33 614.12 200.12\n", "684,8,273,116,0,0,0,0", "a b", ""])
def test_other_texts_are_not_almost_labels(tmp_path: Path, text: str) -> None:
    write_image(tmp_path / "images/a.jpg")
    exports.write(tmp_path, "labels/a.txt", text)
    assert find_almost_label(Survey.of(tmp_path)) == ""


def test_unused_label_files(tmp_path: Path) -> None:
    for name, text in (
        ("labels/a.txt", "0 1 1 1 1"), ("labels/b.txt", "0 1 1 1 1"), ("labels/c.txt", "words"),
        ("notes.txt", "0 1 1 1 1"), ("labels/classes.txt", "0 1 1 1 1"),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert LabelFiles(Survey.of(tmp_path)).unused([tmp_path / "labels/a.txt"]) == ["labels/b.txt"]
