from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.data.annotations import read_annotations
from tests.conftest import Ran
from tests.data.fakes import write_voc, xml

Command = Callable[..., Ran]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    files = {name: xml(("ant", 1, 1, 9, 9), ("bee", 5, 5, 30, 30)) for name in "abc"}
    return write_voc(tmp_path / "voc", files, {"train": "a\nb", "test": "c"})


def test_a_file_a_split(codetr: Command, voc: Path, tmp_path: Path) -> None:
    ran = codetr("convert-data", voc, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["layout"] == "Pascal VOC"
    assert {name: entry["boxes"] for name, entry in ran.json["splits"].items()} == {"train": 4, "val": 2}
    assert "the test images are used for evaluation" in ran.json["notes"][0]
    table = json.loads((tmp_path / "out" / "instances_train.json").read_text())
    assert table["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]
    assert table["annotations"][0]["bbox"] == [0, 0, 9, 9]
    assert (Path(ran.json["images_dir"]) / table["images"][0]["file_name"]).is_file()


def test_one_file(codetr: Command, voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    assert codetr("convert-data", voc, "--out", out, "--split", "train").code == 0
    assert len(read_annotations(out).image_ids) == 2
    again = codetr("convert-data", voc, "--out", out)
    assert again.code == 2
    assert "already exists" in again.err
    assert codetr("convert-data", voc, "--out", out, "--force").code == 0
    assert len(read_annotations(out).image_ids) == 1
    wrong = codetr("convert-data", voc, "--out", out, "--split", "holdout", "--force")
    assert wrong.code == 2
    assert "the folder has train, val" in wrong.err


def test_other_folders_are_refused(codetr: Command, tiny_coco: Path, tmp_path: Path) -> None:
    ran = codetr("convert-data", tiny_coco, "--out", tmp_path / "o")
    assert ran.code == 3
    assert "neither a Pascal VOC folder" in ran.err
    assert not (tmp_path / "o").exists()
    assert codetr("convert-data", tmp_path / "gone", "--out", tmp_path / "o").code == 3


def test_prepare_tells_the_layout_and_its_choices(
    codetr: Command, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = codetr("prepare", voc, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["dataset"]["layout"] == "Pascal VOC"
    assert ran.json["dataset"]["notes"] == [
        "there is no list of validation images: the test images are used for evaluation."
    ]
    assert ran.json["link"]["status"] == "linked"
    assert ran.json["next"] == "codetr train --preset co_dino_tiny"
    planned = codetr(
        "train", "--preset", "co_dino_tiny", "--device", "cpu", "--dry-run", "--json", "--set", "data.min_side=16"
    )
    assert planned.code == 0, planned.err
    assert planned.json["class_names"] == ["ant", "bee"]


def test_the_real_set(codetr: Command, shared_dir: Path, tmp_path: Path) -> None:
    root = shared_dir / "data" / "bccd"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    ran = codetr("convert-data", root, "--out", tmp_path, "--json")
    assert {name: entry["images"] for name, entry in ran.json["splits"].items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }
