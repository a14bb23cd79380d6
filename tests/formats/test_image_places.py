"""Where the images of an annotation file are."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.survey import Survey
from codetr_cli.formats.image_places import ListedImages, count_files, probe_near

NAMES = [f"{index:03d}.jpg" for index in range(20)]


def survey(*folders: str, names: list[str] = NAMES) -> Survey:
    """A listing of folders with the same images."""
    return Survey(Path("set"), sorted(f"{folder}/{name}" if folder else name for folder in folders for name in names))


def folder_of(listed: Survey, annotations: str, split: str | None, names: list[str] = NAMES) -> str | None:
    place = ListedImages(listed, names).place_of(annotations, names, split)
    return None if place is None else place.folder


def test_content_decides_not_the_name() -> None:
    listed = Survey(Path("set"), [*(f"pictures/{name}" for name in NAMES), "images/logo.png", "images/000.jpg"])
    assert folder_of(listed, "train.json", "train") == "pictures"


@pytest.mark.parametrize(
    ("annotations", "split", "folders", "expected"),
    [
        ("train/_annotations.coco.json", "train", ("train", "valid"), "train"),
        ("valid/_annotations.coco.json", "val", ("train", "valid"), "valid"),
        ("annotations/instances_val2014.json", "val", ("train2014", "val2014"), "val2014"),
        ("annotations/val.json", "val", ("images/train", "images/val"), "images/val"),
        ("labels.json", None, ("data", "backup"), "data"),
        ("labels.json", None, ("images/thumbs", "images"), "images"),
        ("a/labels.json", None, ("a/x", "b/images"), "a/x"),
    ],
)
def test_names_decide_between_folders_with_the_same_files(
    annotations: str, split: str | None, folders: tuple[str, ...], expected: str
) -> None:
    assert folder_of(survey(*folders), annotations, split) == expected


def test_a_few_missing_files_do_not_change_the_split() -> None:
    listed = Survey(
        Path("set"), sorted([*(f"train/{name}" for name in NAMES[1:]), *(f"valid/{name}" for name in NAMES)])
    )
    assert folder_of(listed, "annotations/train.json", "train") == "train"


def test_folders_that_fit_equally_are_named() -> None:
    place = ListedImages(survey("a", "b"), NAMES).place_of("labels.json", NAMES, None)
    assert place is not None
    assert (place.folder, place.others) == ("a", ("b",))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/000.jpg", "images"),
        ("images/train/000.jpg", ""),
        ("train\\000.jpg", "images"),
        ("train%2F000.jpg", "images"),
        ("../images/train/000.jpg", "annotations"),
        ("/home/me/set/images/train/000.jpg", "images/train"),
        ("000.JPG", "images/train"),
        ("other.jpg", None),
    ],
)
def test_spellings_of_names(name: str, expected: str | None) -> None:
    assert folder_of(survey("images/train"), "annotations/a.json", None, [name]) == expected


def test_linked_folders_are_probed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    (elsewhere / "train").mkdir(parents=True)
    for name in NAMES:
        (elsewhere / "train" / name).write_bytes(b"")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to(elsewhere)
    listed = Survey.of(tmp_path / "set")
    assert folder_of(listed, "labels.json", None) == "images/train"
    assert folder_of(listed, "labels.json", None, ["train/000.jpg"]) == "images"


def test_folders_near_a_file(tmp_path: Path) -> None:
    for folder in ("set/images/train", "set/images/val", "set/annotations"):
        (tmp_path / folder).mkdir(parents=True)
        for name in NAMES if "images" in folder else ():
            (tmp_path / folder / name).write_bytes(b"")
    path = tmp_path / "set/annotations/mine_val.json"
    assert probe_near(path, NAMES, "val") == ([tmp_path / "set/images/val"], 20)
    assert probe_near(path, ["val/000.jpg"], None) == ([tmp_path / "set/images"], 1)
    assert probe_near(path, ["nowhere.jpg"], None) == ([], 0)
    assert len(probe_near(path, NAMES, None)[0]) == 2


def test_names_that_lead_outside_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"")
    (tmp_path / "set").mkdir()
    assert count_files(tmp_path / "set", ["../secret.jpg", str(tmp_path / "secret.jpg"), "a\0b"]) == 0


def test_paths_of_another_computer_to_several_folders() -> None:
    names = ["/home/me/set/images/a/1.jpg", "/home/me/set/images/b/1.jpg", "/home/me/set/images/b/3.jpg"]
    listed = Survey(Path("set"), ["images/a/1.jpg", "images/b/1.jpg", "images/b/3.jpg"])
    assert folder_of(listed, "a.json", None, names) == "images"
