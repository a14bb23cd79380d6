"""The splits of a data set, in any layout, as `codetr prepare` finds them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from codetr_cli.analysis.data.splits import read_splits
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError
from tests.data.fakes import mixed_content, write_split


def coco(root: Path, *splits: str) -> DataConfig:
    for split in splits:
        write_split(root, split, mixed_content())
    return DataConfig(root=str(root))


def test_all_splits_are_read_training_images_first(tmp_path: Path) -> None:
    found = read_splits(coco(tmp_path, "val", "train"))
    assert [each.name for each in found] == ["train", "val"]
    files = found[0].image_files()
    assert len(files) == len(found[0].annotations.file_names) == 5
    assert all(file.is_file() for file in files)


def test_one_split_is_read(tmp_path: Path) -> None:
    config = coco(tmp_path, "train", "val")
    assert [each.name for each in read_splits(config, only="val")] == ["val"]
    with pytest.raises(DatasetError, match="no test data"):
        read_splits(config, only="test")


def test_a_part_of_the_images_is_val_where_no_folder_is(tmp_path: Path) -> None:
    found = read_splits(coco(tmp_path, "train").model_copy(update={"val_fraction": 0.4}))
    assert {each.name: len(each.annotations.image_ids) for each in found}.keys() == {"train", "val"}
    whole = read_splits(DataConfig(root=str(tmp_path), val_fraction=0.0))
    assert [each.name for each in whole] == ["train"]


def test_a_folder_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        read_splits(DataConfig(root=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no train data"):
        read_splits(DataConfig(root=str(tmp_path / "empty")))


def test_broken_annotations_are_the_errors_of_their_reader(tmp_path: Path) -> None:
    config = coco(tmp_path, "train", "val")
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(DatasetError, match="truncated"):
        read_splits(config)


def test_names_that_lead_out_of_the_data_set_are_refused_when_images_are_read(tmp_path: Path) -> None:
    config = coco(tmp_path, "train", "val")
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "../../../etc/passwd"
    file.write_text(json.dumps(content))
    found = read_splits(config)
    with pytest.raises(DatasetError, match="out of the data set's folder"):
        found[0].image_files()


def test_images_may_be_absent_where_they_are_not_needed(tmp_path: Path) -> None:
    data = tmp_path / "a" / "b"  # deep enough that images are not looked for in the folders of other tests
    config = coco(data, "train", "val")
    for folder in data.glob("*2017"):
        shutil.rmtree(folder)
    found = read_splits(config, needs_images=False)
    assert [each.name for each in found] == ["train", "val"]
    with pytest.raises(DatasetError, match="train2017 not found"):
        read_splits(config)
    alone = DataConfig(annotations=str(found[0].paths.annotations_path))
    (whole,) = read_splits(alone, needs_images=False)
    assert len(whole.annotations.image_ids) == len(found[0].annotations.image_ids)
    assert "all of them are one split" in whole.paths.notes[0]
    for others in ({"needs_images": True}, {"needs_images": False, "only": "val"}):
        with pytest.raises(DatasetError, match="--images DIR"):
            read_splits(alone, **others)  # type: ignore[arg-type]
