from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from codetr_cli.annotations.cache import source_of
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.overrides import parse_settings
from codetr_cli.config.schema import Settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.errors import ConfigError, DatasetError
from codetr_cli.formats.merged import common_folder
from codetr_cli.formats.resolve import find_data
from codetr_cli.training.plan import plan_job
from tests.data.fakes import write_voc, xml


def write_coco(root: Path, names: dict[int, str], images: dict[str, list[int]], *, first_id: int = 1) -> Path:
    """A COCO folder; each image of a split has one object of each of the classes, by category id, of its number."""
    for split, categories in images.items():
        (root / f"{split}2017").mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        table: dict[str, Any] = {"images": [], "annotations": []}
        table["categories"] = [{"id": category_id, "name": name} for category_id, name in names.items()]
        for index, category_id in enumerate(categories):
            name, image_id = f"{index}.png", first_id + index
            pixels = np.full((40, 60, 3), 10 * category_id % 256, np.uint8)
            assert cv2.imwrite(str(root / f"{split}2017" / name), pixels)
            table["images"].append({"id": image_id, "file_name": name, "height": 40, "width": 60})
            entry = {"id": index + 1, "image_id": image_id, "category_id": category_id, "bbox": [1, 2, 20, 10]}
            entry |= {"area": 200, "iscrowd": 0, "segmentation": [[1, 2, 21, 2, 21, 12, 1, 12]]}
            table["annotations"].append(entry)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(table))
    return root


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "pets", {7: "Hot Dog", 2: "cat"}, {"train": [7, 2, 2, 2], "val": [2]})


@pytest.fixture
def food(tmp_path: Path) -> Path:
    """Its ids overlap with those of `pets`, it spells a class otherwise, and it has nothing to validate with."""
    return write_coco(tmp_path / "food", {1: "egg", 2: "hot_dog "}, {"train": [1, 2]}, first_id=4)


def settings_of(*roots: Path, **data: Any) -> Settings:
    table = {"root": str(roots[0]), "extra_roots": [str(root) for root in roots[1:]], **data}
    return parse_settings({"name": "x", "data": table}, where="test")


def merged(*roots: Path, split: Any = "train") -> Annotations:
    return read_annotations(find_data(settings_of(*roots).data, None, split).annotations_path, with_outlines=True)


def test_classes_are_the_same_by_name_and_ids_stay_unique(pets: Path, food: Path) -> None:
    table = merged(pets, food)
    # Those of the first set keep their ids; the other's egg, 1 there, comes behind them.
    assert dict(zip(table.category_ids, table.class_names, strict=True)) == {2: "cat", 7: "Hot Dog", 8: "egg"}
    assert len(set(table.image_ids.tolist())) == 6
    objects = {
        (Path(table.file_names[row]).parts[-3], table.class_names[label])
        for row, label in zip(table.image_rows.tolist(), table.labels.tolist(), strict=True)
    }
    assert objects == {("pets", "Hot Dog"), ("pets", "cat"), ("food", "egg"), ("food", "Hot Dog")}
    assert table.outlines is not None
    assert table.outlines.present.all()


def test_ids_that_clash_are_new_and_the_original_is_kept(pets: Path, food: Path) -> None:
    found = find_data(settings_of(pets, food).data, None, "train")
    images = json.loads(found.annotations_path.read_text())["images"]
    assert {(i["dataset"], i["original_id"]): i["id"] for i in images} == {
        **{(0, number): number for number in (1, 2, 3, 4)},
        (1, 4): 6,  # 4 is taken, 5 is the other's own
        (1, 5): 5,
    }
    assert "1 images got new ids" in " ".join(found.notes)


def test_the_largest_ids_leave_room_for_others(tmp_path: Path) -> None:
    last = 2**63 - 1
    first = write_coco(tmp_path / "a", {last: "cat"}, {"train": [last]}, first_id=last)
    second = write_coco(tmp_path / "b", {1: "dog"}, {"train": [1, 1]}, first_id=last - 1)
    paths = find_data(settings_of(first, second, val_fraction=0).data, None, "train")
    table = read_annotations(paths.annotations_path)
    assert sorted(table.image_ids.tolist()) == [1, last - 1, last]
    assert table.category_ids == [1, last]


def test_the_sum_of_the_categories_is_limited_before_a_file_is_written(
    pets: Path, food: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codetr_cli.formats.merged_table.MAX_CATEGORIES", 2)
    with pytest.raises(DatasetError, match=rf"3 categories together, at most 2 .*: {pets} \(2\), {food} \(2\)"):
        merged(pets, food)


def test_names_that_lead_outside_are_those_of_all_folders(pets: Path, food: Path) -> None:
    with pytest.raises(DatasetError, match=f"folder {pets} or {food}: /x.jpg"):
        find_data(settings_of(pets, food).data, None, "train").names.refuse(["/x.jpg"], "t")


def test_folders_that_the_command_replaces_are_named(pets: Path, food: Path) -> None:
    warning = plan_job(settings_of(pets, food), data=[str(pets)]).warnings[0]
    assert f"data.extra_roots ({food}) is not used" in warning
    assert not any(
        "not used" in text for text in plan_job(settings_of(pets, food), data=[str(pets), str(food)]).warnings
    )


def test_images_of_the_sets_take_turns(pets: Path, food: Path) -> None:
    names = [Path(name).parts[-3] for name in merged(pets, food).file_names]
    assert names == ["pets", "food", "pets", "pets", "food", "pets"]
    dataset = build_dataset(settings_of(pets, food, max_images=2), split="train", training=True)
    assert {Path(name).parts[-3] for name in dataset.file_names} == {"pets", "food"}


def test_every_image_is_read_from_its_own_folder(pets: Path, food: Path) -> None:
    dataset = build_dataset(settings_of(pets, food), split="train", training=False)
    for index, name in enumerate(dataset.file_names):
        (label,) = dataset.load_sample(index).labels.tolist()
        here = {"pets": {"Hot Dog": 7, "cat": 2}, "food": {"egg": 1, "Hot Dog": 2}}[Path(name).parts[-3]]
        assert dataset.load_sample(index).image[0, 0].tolist() == [10 * here[dataset.class_names[label]]] * 3


def test_a_set_without_validation_is_used_for_training_only(pets: Path, food: Path) -> None:
    assert len(merged(pets, food, split="val").image_ids) == 1
    notes = " ".join(find_data(settings_of(pets, food).data, None, "val").notes)
    assert f"{food} has no val images and is used for training only" in notes
    job = plan_job(settings_of(pets, food))
    assert job.class_names == ["cat", "Hot Dog", "egg"]
    assert any("used for training only" in note for note in job.notes)
    assert any(f"{food} (COCO): 2 images, 2 objects, 2 classes, only here: egg" in note for note in job.notes)


def test_sets_without_any_validation_reserve_some_each(food: Path) -> None:
    other = write_coco(food.parent / "x", {1: "egg"}, {"train": [1, 1, 1]}, first_id=50)
    assert [len(merged(food, other, split=split).image_ids) for split in ("train", "val")] == [3, 2]
    with pytest.raises(DatasetError, match="no val data"):
        find_data(settings_of(food, other, val_fraction=0).data, None, "val")


def test_a_class_that_a_set_does_not_annotate_is_warned_of(pets: Path, food: Path) -> None:
    cats, eggs = plan_job(settings_of(pets, food)).warnings[:2]
    assert f"{pets} annotates no object of 1 class that other data sets of this train split have: egg" in cats
    assert "in its 4 images count as background" in cats
    assert f"{food} annotates no object of 1 class" in eggs
    assert "cat" in eggs


def test_sets_of_any_layout(pets: Path, tmp_path: Path) -> None:
    files = {"a": xml(("CAT", 1, 1, 9, 9)), "b": xml(("dog", 1, 1, 9, 9))}
    voc = write_voc(tmp_path / "voc", files, {"train": "a", "test": "b"})
    table = merged(pets, voc)
    assert table.class_names == ["cat", "Hot Dog", "dog"]
    assert len(table.image_ids) == 5
    notes = find_data(settings_of(pets, voc).data, None, "train").notes
    assert any("(Pascal VOC): 1 images" in note for note in notes)
    assert any("the test images are used for evaluation" in note for note in notes)
    assert len(merged(voc, pets, split="test").image_ids) == 1


def test_a_merging_is_kept_until_a_file_changes(pets: Path, food: Path) -> None:
    path = find_data(settings_of(pets, food).data, None, "train").annotations_path
    before = path.stat().st_mtime_ns
    assert find_data(settings_of(pets, food).data, None, "train").annotations_path == path
    assert path.stat().st_mtime_ns == before
    assert source_of(path).name == f"{pets} + {food} (train, merged)"
    table = food / "annotations" / "instances_train2017.json"
    table.write_text(table.read_text() + " ")
    assert find_data(settings_of(pets, food).data, None, "train").annotations_path != path


@pytest.mark.parametrize("name", ["summary.json", "instances_train.json"])
def test_a_damaged_merging_is_made_again(pets: Path, food: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = find_data(settings_of(pets, food).data, None, "train").annotations_path
    before = path.read_bytes()
    (path.parent / name).write_text('{"images": []}')
    assert find_data(settings_of(pets, food).data, None, "train").annotations_path.read_bytes() == before
    assert [record.message for record in caplog.records if "is damaged" in record.message] != []
    caplog.clear()
    find_data(settings_of(pets, food).data, None, "val")
    assert not caplog.records


def test_what_cannot_be_merged_is_refused(pets: Path, food: Path) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        find_data(settings_of(pets, food, pets / "." / "annotations" / "..").data, None, "train")
    with pytest.raises(DatasetError, match=r"no train data: .*nowhere"):
        find_data(settings_of(pets, pets.parent / "nowhere").data, None, "train")
    table = pets / "annotations" / "instances_val2017.json"
    table.write_text(table.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(DatasetError, match=f"{pets} has categories among its validation or test images.*: cow"):
        find_data(settings_of(pets, food).data, None, "train")
    table.unlink()
    table = food / "annotations" / "instances_train2017.json"
    table.write_text(table.read_text().replace('"egg"', '"hot dog"'))
    with pytest.raises(DatasetError, match=f"{food} has two categories named 'hot_dog '"):
        find_data(settings_of(pets, food).data, None, "train")


def test_images_in_both_training_and_validation_are_reported(pets: Path, food: Path) -> None:
    table = json.loads((pets / "annotations" / "instances_val2017.json").read_text())
    (food / "val2017").symlink_to(pets / "train2017")
    table["categories"] = [{"id": 1, "name": "egg"}]
    table["annotations"] = []
    (food / "annotations" / "instances_val2017.json").write_text(json.dumps(table))
    warnings = find_data(settings_of(pets, food).data, None, "val").warnings
    assert any("1 of the 2 val images are also training images" in warning for warning in warnings)


def test_lvis_sets_stay_lvis_together_and_not_with_others(pets: Path, tmp_path: Path) -> None:
    roots = []
    for number, (name, frequency) in enumerate((("owl", "r"), ("elk", "c"))):
        root = write_coco(tmp_path / name, {5: name, 6: "cat"}, {"train": [5, 6]}, first_id=1 + number)
        path = root / "annotations" / "instances_train2017.json"
        table = json.loads(path.read_text())
        for image in table["images"]:
            image |= {"neg_category_ids": [6], "not_exhaustive_category_ids": [5]}
            image["file_name"] = f"train2017/{image['file_name']}"
        table["categories"][0]["frequency"] = frequency
        (root / "annotations" / "lvis_v1_train.json").write_text(json.dumps(table))
        path.unlink()
        roots.append(root)
    table = merged(*roots)
    assert table.is_lvis
    assert dict(zip(table.class_names, table.frequencies, strict=True)) == {"owl": "r", "cat": "f", "elk": "c"}
    elk = table.category_ids[table.class_names.index("elk")]
    row = [Path(name).parts[-3] for name in table.file_names].index("elk")
    assert (table.neg_category_ids[row], table.not_exhaustive_category_ids[row]) == ([6], [elk])
    assert plan_job(settings_of(*roots), evaluate=False).settings.data.dataset == "lvis"
    job = plan_job(settings_of(pets, *roots), evaluate=False)
    assert job.settings.data.dataset == "coco"
    assert any("scored by COCO's rules" in warning for warning in job.warnings)


def test_one_set_is_never_merged(pets: Path) -> None:
    found = find_data(DataConfig(root=str(pets)), None, "train")
    assert found.annotations_path == pets / "annotations" / "instances_train2017.json"
    assert (found.notes, found.warnings) == ((), ())


def test_sets_without_a_common_folder_get_one_all_the_same() -> None:
    assert common_folder(["/a/b", "/a/c"]) == "/a"
    assert common_folder(["/a/b", "c"]) == "/a/b"  # as two drives of Windows: no common one
