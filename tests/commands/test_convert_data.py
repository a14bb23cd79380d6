from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.formats.resolve import find_data
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
    assert "not checked" in codetr("convert-data", voc, "--out", tmp_path / "said").out
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
    again = codetr("convert-data", voc, "--out", out, "--split", "val")
    assert again.code == 2
    assert "already exists" in again.err
    several = codetr("convert-data", voc, "--out", out, "--force")
    assert several.code == 2
    assert "choose one with --split train|val" in several.err
    assert codetr("convert-data", voc, "--out", out, "--split", "val", "--force").code == 0
    assert len(read_annotations(out).image_ids) == 1
    wrong = codetr("convert-data", voc, "--out", out, "--split", "holdout", "--force")
    assert wrong.code == 2
    assert "the folder has train, val" in wrong.err


def test_one_file_of_a_set_without_parts_has_all_images(codetr: Command, tmp_path: Path) -> None:
    files = {f"i{number}": xml(("ant", 1, 1, 9, 9)) for number in range(10)}
    source = write_voc(tmp_path / "undivided", files, {"trainval": "\n".join(files)})
    words = ("convert-data", source, "--out")
    ran = codetr(*words, tmp_path / "all.json", "--json")
    assert ran.code == 0, ran.err
    assert {name: entry["images"] for name, entry in ran.json["splits"].items()} == {"train": 10}
    assert len(read_annotations(tmp_path / "all.json").image_ids) == 10
    # a part of them on request
    for more in (("--val-fraction", "0.3"), ("--set", "data.val_fraction=0.3")):
        ran = codetr(*words, tmp_path / "part.json", *more)
        assert ran.code == 2
        assert "--split train|val" in ran.err
    ran = codetr(*words, tmp_path / "part.json", "--split", "val", "--json")
    part = {name: entry["images"] for name, entry in ran.json["splits"].items()}
    assert 0 < part["val"] < 10
    # folders have both parts
    ran = codetr(*words, tmp_path / "parts", "--json")
    parts = {name: entry["images"] for name, entry in ran.json["splits"].items()}
    assert parts == {"train": 10 - part["val"], **part}
    assert "are reserved for validation" in ran.json["notes"][0]


def test_files_are_completed_but_never_replaced(codetr: Command, voc: Path, tmp_path: Path) -> None:
    words = ("convert-data", voc, "--out", tmp_path / "out")
    assert codetr(*words).code == 0
    train, val = (tmp_path / "out" / f"instances_{name}.json" for name in ("train", "val"))
    before = train.read_bytes()
    val.unlink()  # as a kill between the two
    assert codetr(*words).code == 0
    assert train.read_bytes() == before
    val.unlink()
    train.write_text("mine")
    ran = codetr(*words)
    assert ran.code == 2
    assert str(train) in ran.err
    assert not val.exists()
    train.unlink()
    train.symlink_to(tmp_path / "outside.json")
    for more in ((), ("--force",)):
        ran = codetr(*words, *more)
        assert ran.code == 2
        assert "never replaced" in ran.err
    assert not (tmp_path / "outside.json").exists()


def test_a_folder_that_cannot_be_written_is_not_left_empty(
    codetr: Command, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from codetr_cli.data.writers.coco import CocoWriter

    def full(self: CocoWriter) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(CocoWriter, "finish", full)
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "mine"):
        ran = codetr("convert-data", voc, "--out", out)
        assert ran.code == 5
        assert "larger than a file may be, by `ulimit -f`" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["mine", "voc"]


def test_other_folders_are_refused(codetr: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = codetr("convert-data", tmp_path / "empty", "--out", tmp_path / "o")
    assert ran.code == 3
    assert not (tmp_path / "o").exists()
    assert codetr("convert-data", tmp_path / "gone", "--out", tmp_path / "o").code == 3


def test_published_coco_keeps_all_that_its_records_have(codetr: Command, tiny_coco: Path, tmp_path: Path) -> None:
    source = json.loads((tiny_coco / "annotations" / "instances_val2017.json").read_text())
    source["info"] = {"year": 2017}
    source["annotations"][0] |= {"attributes": {"occluded": True}, "segmentation": [[1.5, 2, 8, 2.25, 8, 9e0]]}
    source["annotations"][1] |= {"segmentation": {"counts": [0, 3, 2], "size": [5, 1]}, "iscrowd": 1}
    source["annotations"][2]["segmentation"] = []
    (tiny_coco / "annotations" / "instances_val2017.json").write_text(json.dumps(source))
    ran = codetr("convert-data", tiny_coco, "--out", tmp_path / "o", "--split", "val", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["splits"]["val"]["images_dir"] == str(tiny_coco / "val2017")
    table = json.loads((tmp_path / "o" / "instances_val.json").read_text())
    by_image = {image["id"]: row for row, image in enumerate(source["images"])}
    known = [entry for entry in source["annotations"] if entry["image_id"] in by_image]
    assert table.pop("annotations") == sorted(known, key=lambda entry: by_image[entry["image_id"]])
    assert table == {key: value for key, value in source.items() if key != "annotations"}


def test_one_annotation_file(codetr: Command, tiny_coco: Path, tmp_path: Path) -> None:
    file, images = tmp_path / "any name.json", tmp_path / "photos"
    (tiny_coco / "annotations" / "instances_val2017.json").rename(file)
    (tiny_coco / "val2017").rename(images)
    words = ("convert-data", "--ann", file, "--images", images, "--val-fraction", "0", "--to", "yolo")
    ran = codetr(*words, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert list(ran.json["splits"]) == ["train"]
    names = [path.name for path in (tmp_path / "out" / "images" / "train").iterdir()]
    assert sorted(names) == sorted(image["file_name"] for image in json.loads(file.read_text())["images"])
    ran = codetr(*words, "--out", images / "out")
    assert ran.code == 2
    assert "photos_converted" in ran.err


def test_usage_errors_say_what_to_type(codetr: Command, voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, advice in (
        (("--to", "yolo", "--out", tmp_path / "x.json"), "give a folder"),
        (("--out", tmp_path / "x.json", "--slice", "8x8"), "give a folder"),
        (("--out", out, "--slice", "8by8"), "--slice 1024x1024"),
        (("--out", out, "--slice", "0x8"), "--slice 1024x1024"),
        (("--out", out, "--slice", "8", "--save-images", "link"), "cannot be combined with --save-images link"),
        (("--out", out, "--classes", "Ant"), "did you mean 'ant'"),
        (("--out", out, "--split", "train,holdout"), "the folder has train, val"),
        (("--out", out, "--ann", "x.json"), "give one of them"),
        (("--out", voc / "out"), "voc_converted"),
        (("--out", voc), "voc_converted"),
    ):
        ran = codetr("convert-data", voc, *words)
        assert ran.code == 2, (words, ran.out, ran.err)
        assert advice in ran.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["voc"]


def test_folders_are_replaced_only_if_they_are_our_own(codetr: Command, voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("convert-data", voc, "--to", "yolo", "--out", out)
    assert codetr(*words).code == 0
    assert codetr(*words).code == 2
    (out / "labels" / "train" / "a.txt").unlink()
    assert codetr(*words, "--force").code == 0
    assert len((out / "labels" / "train" / "a.txt").read_text().splitlines()) == 2
    for name in ("notes.txt", "labels/train/a.txt"):
        (out / name).write_text("mine")
        ran = codetr(*words, "--force")
        assert ran.code == 2
        assert name in ran.err
        assert (out / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_an_interrupted_command_leaves_nothing(
    codetr: Command, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from codetr_cli.data.writers import image_files

    copied = []

    def interrupted(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 2:
            raise KeyboardInterrupt
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(image_files, "copy_file", interrupted)
    ran = codetr("convert-data", voc, "--to", "voc", "--out", tmp_path / "new" / "out")
    assert ran.code == 130
    assert len(copied) >= 2
    assert list((tmp_path / "new").iterdir()) == []


def test_parts_of_a_data_set(codetr: Command, voc: Path, tmp_path: Path) -> None:
    def converted(name: str, *words: object) -> dict[str, Any]:
        ran = codetr("convert-data", voc, "--out", tmp_path / name, "--json", *words)
        assert ran.code == 0, ran.err
        return ran.json

    result = converted("bees", "--classes", "bee", "--split", "train")
    assert list(result["splits"]) == ["train"]
    assert result["splits"]["train"]["boxes"] == 2
    assert result["counts"]["other_class"] == 2
    table = json.loads((tmp_path / "bees" / "instances_train.json").read_text())
    assert table["categories"] == [{"id": 2, "name": "bee"}]
    sample = converted("two", "--sample", "2", "--to", "labelme")
    assert [entry["images"] for entry in sample["splits"].values()] == [1, 1]
    tiles = converted("tiles", "--slice", "20x20", "--overlap", "0", "--min-visible", "0.3")
    assert tiles["splits"]["val"]["images"] == 4
    assert tiles["images_dir"] == str(tmp_path / "tiles")


def test_training_finds_what_prepare_has_linked(
    codetr: Command, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = codetr("prepare", voc, "--json", "--set", "data.min_side=1")
    assert ran.code == 0, ran.err
    assert ran.json["dataset"]["layout"] == "Pascal VOC"
    assert ran.json["dataset"]["notes"] == [
        "there is no list of validation images: the test images are used for evaluation."
    ]
    assert ran.json["link"]["status"] == "linked"
    assert ran.json["next"] == "codetr train --preset co_dino_tiny"
    found = find_data(DataConfig(), None, "train")
    assert read_annotations(found.annotations_path).class_names == ["ant", "bee"]


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
