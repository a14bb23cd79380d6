"""Names of files as other systems and tools write them: one rule for prepare, training and evaluation."""

from __future__ import annotations

import json
import os
import unicodedata
from copy import copy
from pathlib import Path

import pytest

from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.image_folder import ImageFolder
from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.errors import DatasetError
from tests.data.checks.fakes import check, found

FILE = "a b.jpg"
SPELLINGS = [
    "a%20b.jpg",
    "a b.jpg ",
    " a b.jpg",
    "A B.JPG",
    "./x/a b.jpg",
    "images\\a b.jpg",
    "..\\..\\media\\upload\\4\\a b.jpg",
    "../../media/a b.jpg",
    "C:\\Users\\me\\a b.jpg",
    "/home/me/a b.jpg",
    "https://example.org/a%20b.jpg",
]


def rename(root: Path, name: str, file: str = FILE) -> None:
    """The first image has the file `file`, and the annotation file calls it `name`."""
    path = root / "annotations" / "instances_train2017.json"
    table = json.loads(path.read_text())
    (root / "train2017" / table["images"][0]["file_name"]).rename(root / "train2017" / file)
    table["images"][0]["file_name"] = name
    path.write_text(json.dumps(table))
    (root / "train2017.txt").unlink()


@pytest.mark.parametrize("name", SPELLINGS)
def test_prepare_and_training_find_the_same_file(tiny_coco: Path, tiny_settings: Settings, name: str) -> None:
    rename(tiny_coco, name)
    report = check(tiny_coco)
    assert report.errors == 0
    assert found(report)["renamed_file"].first == [f"{name} (on disk it is {FILE})"]
    assert "unlisted_file" not in found(report)
    dataset = build_dataset(apply_overrides(tiny_settings, [f'data.root="{tiny_coco}"']), split="train", training=True)
    assert dataset.load_sample(0).size == (96, 128)
    assert dataset.image_path(0).name == FILE


def test_the_form_of_accents_does_not_matter(tiny_coco: Path) -> None:
    rename(tiny_coco, unicodedata.normalize("NFD", "K\u00e4se.jpg"), unicodedata.normalize("NFC", "K\u00e4se.jpg"))
    assert check(tiny_coco).errors == 0


def test_a_file_that_another_entry_names_is_not_taken(tiny_coco: Path, tiny_settings: Settings) -> None:
    rename(tiny_coco, "other/000000000101.jpg")
    report = check(tiny_coco)
    assert found(report)["missing_file"].first == ["other/000000000101.jpg"]
    dataset = build_dataset(apply_overrides(tiny_settings, [f'data.root="{tiny_coco}"']), split="train", training=True)
    with pytest.raises(DatasetError, match="no such file"):
        dataset.load_sample(0)


def test_training_gives_the_hint_of_prepare(tiny_coco: Path, tiny_settings: Settings) -> None:
    rename(tiny_coco, "a b.png")
    assert found(check(tiny_coco))["missing_file"].first == [f"a b.png (on disk it is {FILE})"]
    dataset = build_dataset(apply_overrides(tiny_settings, [f'data.root="{tiny_coco}"']), split="train", training=True)
    with pytest.raises(DatasetError, match=r"no such file \(on disk it is a b.jpg\)"):
        dataset.load_sample(0)


def test_files_outside_are_never_opened(tiny_coco: Path, tiny_settings: Settings) -> None:
    (tiny_coco.parent / "secret.jpg").write_bytes(b"x")
    rename(tiny_coco, "../../secret.jpg")
    assert set(found(check(tiny_coco))) >= {"outside_file"}
    settings = apply_overrides(tiny_settings, [f'data.root="{tiny_coco}"'])
    with pytest.raises(DatasetError, match="leads out of the data set's folder"):
        build_dataset(settings, split="train", training=True)


def test_exact_names_cost_one_opening_and_no_listing(
    tiny_coco: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = build_dataset(apply_overrides(tiny_settings, [f'data.root="{tiny_coco}"']), split="train", training=True)
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *args, **more: opened.append(str(path)) or real(path, *args, **more))
    monkeypatch.setattr("codetr_cli.annotations.image_folder.list_images", lambda folder: pytest.fail("listed"))
    for index in range(len(dataset)):
        dataset.load_sample(index)
    assert sorted(opened) == sorted(str(dataset.image_path(index)) for index in range(len(dataset)))


def test_the_listing_stays_in_its_process(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    folder = ImageFolder(tmp_path, ["A.jpg"], NameRule.of(tmp_path))
    assert folder.find("A.jpg") == "a.jpg"
    assert copy(folder)._others is None  # as pickle does it
    assert copy(folder).find("A.jpg") == "a.jpg"
    assert folder.find("x/" * 3000 + "a.jpg") is None  # takes no time


def test_a_missing_file_is_no_namesake_of_another_folder(tmp_path: Path) -> None:
    for name in ("cats/2.jpg", "dogs/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    assert ImageFolder(tmp_path, ["cats/1.jpg", "cats/2.jpg"], NameRule.of(tmp_path)).find("cats/1.jpg") is None


def test_a_file_that_two_entries_mean_is_neither_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    names = ["x/a.jpg", "y/a.jpg"]
    folder = ImageFolder(tmp_path, names, NameRule.of(tmp_path))
    assert [folder.find(name) for name in names] == [None, None]
    assert ImageFolder(tmp_path, names[:1], NameRule.of(tmp_path)).find(names[0]) == "a.jpg"
