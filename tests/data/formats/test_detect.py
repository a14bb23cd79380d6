from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.data.formats.detect import find_splits
from codetr_cli.data.formats.layouts import SplitFiles
from codetr_cli.data.formats.link import link_folder
from codetr_cli.data.formats.list_files import read_list, write_list
from codetr_cli.data.image_files import list_images
from codetr_cli.errors import DatasetError


def test_the_right_folder(tiny_coco: Path) -> None:
    train, val = find_splits(tiny_coco)
    assert train.annotations_path == tiny_coco / "annotations/instances_train2017.json"
    assert val.images_dir == tiny_coco / "val2017"


@pytest.mark.parametrize("given", ["train2017", "annotations", ".."])
def test_a_folder_beside_the_right_one_points_to_it(tiny_coco: Path, given: str) -> None:
    with pytest.raises(DatasetError, match=f"run `codetr prepare {tiny_coco}`"):
        find_splits(tiny_coco / given)


def test_a_mistyped_folder_suggests_the_nearest(tiny_coco: Path) -> None:
    with pytest.raises(DatasetError, match=f"did you mean {tiny_coco}\\?"):
        find_splits(tiny_coco.with_name("cocoo"))


def test_a_folder_that_is_not_there_says_what_is(tiny_coco: Path) -> None:
    with pytest.raises(DatasetError, match="contains the folders coco"):
        find_splits(tiny_coco.with_name("elsewhere") / "x")


def test_a_file_or_archive_instead_of_a_folder(tmp_path: Path) -> None:
    archive = tmp_path / "coco.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(DatasetError, match="is a file: unpack it"):
        find_splits(archive)


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "coco"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match="gone, which does not exist"):
        find_splits(link)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/_annotations.coco.json"], "Roboflow export"),
        (["annotations/lvis_v0.5_train.json"], "LVIS v0.5 data set"),
        (["annotations/mine.json", "images/a.jpg"], "contains mine.json, but no instances_train2017.json"),
        (["train2017.zip", "annotations_trainval2017.zip"], "still packed"),
        (["train2017/a.jpg"], "images but no annotations/ folder"),
        (["annotations/readme.md"], "has no annotation file"),
        (["holiday/a.jpg"], "does not have the COCO layout: it contains holiday"),
        ([], "it is empty"),
    ],
)
def test_other_layouts_are_named_with_what_is_expected(tmp_path: Path, files: list[str], words: str) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("names: [a]\ntrain: images/train\n" if path.suffix == ".yaml" else "{}")
    with pytest.raises(DatasetError, match=words) as caught:
        find_splits(root)
    assert "annotations/instances_{train,val}2017.json beside" in str(caught.value)


def test_the_list_is_written_once(tmp_path: Path) -> None:
    split = SplitFiles("train", tmp_path)
    assert write_list(split, ["b.jpg", "sub/a.jpg"]) == "written"
    assert split.list_path.read_text() == "train2017/b.jpg\ntrain2017/sub/a.jpg\n"
    assert write_list(split, ["c.jpg"]) == "present"
    assert read_list(split) == {"b.jpg", "sub/a.jpg"}
    assert [path.name for path in tmp_path.iterdir()] == ["train2017.txt"]


def test_lists_of_other_programs_are_read(tmp_path: Path) -> None:
    split = SplitFiles("val", tmp_path)
    split.list_path.write_text("./images/val2017/a.jpg\n/data/val2017/sub/b.jpg\nc.jpg\n\n")
    assert read_list(split) == {"a.jpg", "sub/b.jpg", "c.jpg"}


def test_a_protected_folder_stays_untouched(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        assert write_list(SplitFiles("train", tmp_path), ["a.jpg"]) == "not written: the folder is write-protected"
        assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o755)


def test_images_of_subfolders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x.JPG", "a/y.png", "a/b/z.webp", "a/notes.txt"):
        (tmp_path / name).write_text("")
    assert sorted(list_images(tmp_path)) == ["a/b/z.webp", "a/y.png", "x.JPG"]


def test_linking_twice_is_linking_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    link = Path("data/coco")
    assert link_folder(Path("set"), link).status == "linked"
    assert link.readlink() == tmp_path / "set"  # absolute, so that it works from anywhere
    assert link_folder(Path("set"), link).status == "present"
    assert link_folder(link, link).status == "present"


def test_whatever_lies_at_the_link_stays(tmp_path: Path) -> None:
    for name in ("one", "two", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text(json.dumps({}))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    made = link_folder(tmp_path / "two", link)
    assert (made.status, made.works) == ("occupied", False)
    assert made.detail == f"is a link to {tmp_path / 'one'}"
    assert link.readlink() == tmp_path / "one"
    assert link_folder(tmp_path / "two", tmp_path / "folder").detail == "is a folder of its own"
    assert link_folder(tmp_path / "two", tmp_path / "file").detail == "is a file"
    assert link_folder(tmp_path / "two", tmp_path / "two").status == "in_place"


def test_systems_without_links_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path, target_is_directory: bool = False) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    made = link_folder(tmp_path, tmp_path / "data" / "coco")
    assert (made.status, made.detail) == ("impossible", "Operation not permitted")
