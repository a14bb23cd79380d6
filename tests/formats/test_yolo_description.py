"""Where class names and images of a YOLO dataset come from, and what they may not lead to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats import yolo_description, yolo_names
from codetr_cli.formats.yolo_description import Description, describe
from tests.data.fakes import write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an image in images/train and one in images/val; beside it a folder `other` with the same."""
    for name in ("set/images/train/a", "set/images/val/b", "other/images/train/a", "other/images/val/b"):
        write_image(tmp_path / f"{name}.jpg")
    return tmp_path / "set"


def found(root: Path, text: str, *, allowed: bool = False, given: Path | None = None) -> Description:
    (root / "data.yaml").write_text(text + "\nnames: [disc]\n")
    return describe(Survey.of(root), NameRule.of(given or root, root, allow_outside=allowed))


SPLITS = "train: images/train\nval: images/val"


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (SPLITS, 0),
        (f"path: .\n{SPLITS}", 0),
        (f"path: {{root}}\n{SPLITS}", 0),
        (f"path: ../set\n{SPLITS}", 0),
        (f"path: ../datasets/set\n{SPLITS}", 1),
        (f"path: /content/datasets/set\n{SPLITS}", 1),
        (f"path: C:\\datasets\\set\n{SPLITS}", 1),
        (f"path: ../other\n{SPLITS}", 1),
        ("train: ../images/train\nval: ../../images/val", 0),
        ("train: {root}/images/train\nval: [images/val, ./images/val, images/../images/val]", 0),
    ],
)
def test_folders_that_stay_inside(root: Path, text: str, notes: int) -> None:
    description = found(root, text.replace("{root}", str(root)))
    assert description.images == {"train": [root / "images/train/a.jpg"], "val": [root / "images/val/b.jpg"]}
    assert len(description.notes) == notes
    assert all("leads out of the data set's folder and is not used" in note for note in description.notes)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("path: ../other\ntrain: images/train/../nothing\nval: images/val", 2),
        ("train: ../other/images/train\nval: images/val", 1),
        ("train: [../other/images/train, ../other/images/val]\nval: images/val", 2),
        ("train: {root}/../other/images/train\nval: /", 2),
        ("train: /proc\nval: images/val", 1),
    ],
)
def test_folders_outside_are_refused_unless_allowed(root: Path, text: str, count: int) -> None:
    text = text.replace("{root}", str(root))
    with pytest.raises(DatasetError, match=rf"data.yaml: {count} names? leads? out of .*allow_outside=true"):
        found(root, text)
    if "/proc" not in text and "val: /" not in text and "nothing" not in text:
        description = found(root, text, allowed=True)
        assert description.images["train"][0] == root.parent / "other/images/train/a.jpg"
        assert not description.notes


def test_folders_that_overlap_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (root / f"link{number}").symlink_to("images")
        os.link(root / "images/train/a.jpg", root / f"images/train/{number}.jpg")
    entries = ["images/train", *(f"link{number}/train" for number in range(20)), "images/.", "link3", "images/val"]
    images = found(root, f"train: [{', '.join(entries)}]\nval: images/val").images
    assert len(images["train"]) == 22
    assert images["train"][-1] == root / "images/val/b.jpg"
    lists = [root / f"{number}.txt" for number in range(20)]
    for path in lists:
        path.write_text("images/train/a.jpg\nimages/val/b.jpg\n")
    text = f"train: [{', '.join(path.name for path in lists)}]"
    assert len(found(root, text).images["train"]) == 2
    (root / "images/train/val.txt").write_text("images/val/b.jpg\n")
    assert len(found(root, "train: [images/train, images/train/val.txt]").images["train"]) == 22
    monkeypatch.setattr(yolo_description, "MAX_IMAGES", 30)
    with pytest.raises(DatasetError, match="leads to more than 30 images, the limit"):
        found(root, text)


def test_the_folder_that_was_given_may_be_above(root: Path) -> None:
    text = "path: ../other\ntrain: images/train\nval: ../set/images/val"
    description = found(root, text, given=root.parent)
    assert description.images["train"] == [root.parent / "other/images/train/a.jpg"]
    assert description.images["val"] == [root / "images/val/b.jpg"]


def test_lists_name_images_inside(root: Path) -> None:
    (root / "lists").mkdir()
    path = root / "lists" / "train.txt"
    lines = ["../images/train/a.jpg", "images/train/a.jpg", str(root / "images/train/a.jpg"), "images/val/b.jpg"]
    path.write_text("\n".join(lines))
    assert found(root, "train: lists/train.txt").images["train"] == [
        root / "images/train/a.jpg",
        root / "images/val/b.jpg",
    ]
    lines += ["../../other/images/train/a.jpg", "/etc/passwd"]
    path.write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"train.txt: 2 names lead out of .*: ../../other/images/train/a.jpg, /etc/"):
        found(root, "train: lists/train.txt")
    path.write_text("\n".join(lines[:-1]))
    assert len(found(root, "train: lists/train.txt", allowed=True).images["train"]) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: data.yaml", "data.yaml lists . images that are missing: "),
        ("train: list.txt", r"list.txt lists 2 images that are missing: x\.jpg"),
        ("train: pipe.txt", r"pipe.txt: it is a named pipe"),
        ("train: zero.txt", "zero.txt: it is a device"),
        ("train: binary.txt", "binary.txt is not UTF-8 text"),
        ("train: {}/x".format("a" * 5000), "does not exist"),
        ("train: {0: images/train}", "train must be a path or a list of paths"),
        ("train: [{}]".format(", ".join(f"f{number}" for number in range(2000))), "has 2,000 entries"),
        ("train: ''", "lists no image"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_odd_entries_are_named(root: Path, text: str, words: str) -> None:
    (root / "list.txt").write_text("x.jpg\nlist2.txt\n" + "y" * 5000 + "\n")
    (root / "list2.txt").write_text("list.txt\n")
    os.mkfifo(root / "pipe.txt")
    (root / "zero.txt").symlink_to("/dev/zero")
    (root / "binary.txt").write_bytes(bytes(range(256)))
    with pytest.raises(DatasetError, match=words) as caught:
        found(root, text)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "names",
    [
        "names: {0: a, 1000000000000000000: b}",
        "names: {0: a, ²: b}",
        "names: {0: a, 00: b}",
        "names: {0: a, -1: b}",
        "names: {0: a, " + "9" * 10**5 + ": b}",
        "names: 5",
        "names: []",
        "names: [" + "a" * 1001 + "]",
    ],
    ids=lambda text: text[:30],
)
def test_class_names_that_are_none(root: Path, names: str) -> None:
    (root / "data.yaml").write_text(f"{SPLITS}\n{names}\n")
    with pytest.raises(
        DatasetError, match=r"it is not YAML|keys of names must be|has no class names|are possible"
    ) as caught:
        describe(Survey.of(root), NameRule.of(root))
    assert len(str(caught.value)) < 1000


def test_too_many_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yolo_names, "MAX_CLASSES", 2)
    (root / "data.yaml").write_text(f"{SPLITS}\nnames: [a, b, c]\n")
    with pytest.raises(DatasetError, match="has 3 class names of up to 1 letters"):
        describe(Survey.of(root), NameRule.of(root))


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
def test_class_files_that_are_pipes(root: Path, name: str) -> None:
    os.mkfifo(root / name)
    with pytest.raises(DatasetError, match=rf"{name}: it is a named pipe"):
        describe(Survey.of(root), NameRule.of(root))


def test_a_long_list_of_missing_images_ends_early(root: Path) -> None:
    (root / "train.txt").write_text("\n".join(f"images/{number}.jpg" for number in range(300_000)))
    start = time.process_time()
    with pytest.raises(DatasetError, match=r"lists 10,000 or more images that are missing: images/0.jpg"):
        found(root, "train: train.txt")
    assert time.process_time() - start < 2
