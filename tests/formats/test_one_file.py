"""A single annotation file as a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.resolve import find_data
from tests.formats.coco_exports import picture, table, write_json, write_set

NAMES = [f"{index}.jpg" for index in range(5)]


@pytest.mark.parametrize(
    ("file", "images"),
    [("mine.json", "."), ("mine.json", "pictures"), ("annotations/mine.json", "a/b"), ("x/annotations/mine.json", "c")],
)
def test_images_are_found_near_the_file(tmp_path: Path, file: str, images: str) -> None:
    write_set(tmp_path / file, tmp_path / images, NAMES)
    found = open_dataset(tmp_path / file)
    assert found is not None
    assert found.splits["train"].images_dir.resolve() == (tmp_path / images).resolve()


def test_the_folder_of_the_images_can_be_given(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_set(tmp_path / "mine.json", tmp_path / folder, NAMES)
    with pytest.raises(DatasetError, match=r"in several folders alike: .*/a, .*/b\. Choose one with --images"):
        open_dataset(tmp_path / "mine.json")
    found = open_dataset(tmp_path / "mine.json", ReadOptions(images=tmp_path / "b"))
    assert found is not None
    assert found.splits["train"].images_dir == tmp_path / "b"


def test_settings_name_a_file_and_a_folder(tmp_path: Path) -> None:
    write_set(tmp_path / "mine.json", tmp_path / "a", NAMES)
    config = DataConfig(annotations=str(tmp_path / "mine.json"), images=str(tmp_path / "a"))
    paths = find_data(config, None, "val", whole=True)
    assert paths.images_dir == tmp_path / "a"
    assert len(read_annotations(paths.annotations_path).image_ids) == 5


def test_other_annotations_for_validation_leave_the_file_whole(tmp_path: Path) -> None:
    write_set(tmp_path / "mine.json", tmp_path / "a", NAMES)
    write_set(tmp_path / "other.json", tmp_path / "c", ["x.jpg"])
    config = DataConfig(
        annotations=str(tmp_path / "mine.json"),
        images=str(tmp_path / "a"),
        val_annotations=str(tmp_path / "other.json"),
        val_images=str(tmp_path / "c"),
    )
    counts = {
        split: len(read_annotations(find_data(config, None, split).annotations_path).image_ids)
        for split in ("train", "val")
    }
    assert counts == {"train": 5, "val": 1}


@pytest.mark.parametrize(
    ("annotations", "images", "error", "words"),
    [
        ("no.json", None, DatasetError, "no such file: .*no.json. --ann is the annotation file"),
        ("a", None, ConfigError, "--ann .*/a is a folder: give the annotation file, or the folder .* with --data"),
        ("mine.json", "mine.json", ConfigError, "--images .*mine.json is a file: give the folder"),
        ("mine.json", "no", DatasetError, "no such folder: .*/no. --images is the folder"),
        ("far.json", None, DatasetError, "the images of .*far.json, e.g. far.jpg, are neither"),
        ("notes.txt", None, DatasetError, "no annotation file of COCO's kind"),
        ("captions.json", None, DatasetError, "captions.json has captions, no boxes"),
        ("set.zip", None, DatasetError, "set.zip is a file: unpack it"),
    ],
)
def test_wrong_paths_are_named(
    tmp_path: Path, annotations: str, images: str | None, error: type[Exception], words: str
) -> None:
    write_set(tmp_path / "mine.json", tmp_path / "a", NAMES)
    write_json(tmp_path / "far.json", table(["far.jpg"]))
    (tmp_path / "notes.txt").write_text("[]")
    captions = [{"id": 1, "image_id": 1, "caption": "a cat"}]
    write_json(tmp_path / "captions.json", {"images": table(NAMES)["images"], "annotations": captions})
    (tmp_path / "set.zip").write_bytes(b"PK")
    config = DataConfig(
        annotations=str(tmp_path / annotations), images=None if images is None else str(tmp_path / images)
    )
    with pytest.raises(error, match=words):
        find_data(config, None, "train")


def test_a_folder_of_images_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--images .* needs the annotations of these images: give --ann FILE"):
        find_data(DataConfig(root=str(tmp_path), images=str(tmp_path)), None, "train")


def test_a_file_and_a_folder_exclude_each_other(tmp_path: Path) -> None:
    write_set(tmp_path / "mine.json", tmp_path, NAMES)
    with pytest.raises(ConfigError, match="both the annotation file"):
        find_data(DataConfig(annotations=str(tmp_path / "mine.json")), str(tmp_path), "train")


def test_files_given_as_data_sets(tmp_path: Path) -> None:
    write_set(tmp_path / "mine.json", tmp_path / "a", NAMES)
    (tmp_path / "yolo/labels").mkdir(parents=True)
    for index in range(5):
        picture(tmp_path / f"yolo/images/{index}.jpg")
        (tmp_path / f"yolo/labels/{index}.txt").write_text("0 .5 .5 .1 .1\n")
    description = tmp_path / "yolo/data.yaml"
    description.write_text("train: images\nval: images\nnames: [cat]\n")
    for file, count in ((tmp_path / "mine.json", 5), (description, 5)):
        paths = find_data(DataConfig(val_fraction=0.0), str(file), "train")
        assert len(read_annotations(paths.annotations_path).image_ids) == count
    merged = find_data(DataConfig(root=str(tmp_path / "mine.json"), extra_roots=(str(description),)), None, "train")
    assert "cat" in read_annotations(merged.annotations_path).class_names


def test_what_is_wrong_in_a_json_file_is_reported_by_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    write_json(path, [{"image_id": 1, "score": 0.5}])
    paths = find_data(DataConfig(annotations=str(path)), None, "train")
    with pytest.raises(DatasetError, match="looks like a file of detections"):
        read_annotations(paths.annotations_path)
