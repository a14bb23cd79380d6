"""Data sets of COCO's JSON files under other names than the published ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from codetr_cli import reading
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.annotations.survey import Survey
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError
from codetr_cli.formats import coco_json
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.resolve import find_data
from codetr_cli.result_files import RECORD_NAME
from tests.formats.coco_exports import (
    cvat,
    fiftyone,
    label_studio,
    picture,
    roboflow,
    table,
    write_json,
    write_set,
)

WHOLE = ReadOptions(val_fraction=0.0)


def opened(root: Path, options: ReadOptions = WHOLE) -> FoundDataset:
    found = open_dataset(root, options)
    assert found is not None
    return found


def read(found: FoundDataset) -> dict[str, tuple[int, str]]:
    """The number of images of each split, and their folder; all images are there."""
    result = {}
    for name, split in found.splits.items():
        annotations = read_annotations(split.annotations_path)
        assert all((split.images_dir / file).is_file() for file in annotations.file_names)
        folder = split.images_dir.relative_to(found.folder).as_posix()
        result[name] = (len(annotations.image_ids), folder)
    return result


# ------------------------------------------------------------------------------------------------------------ exporters


def test_roboflow(tmp_path: Path) -> None:
    found = opened(roboflow(tmp_path / "set"))
    assert read(found) == {"train": (4, "train"), "val": (4, "valid"), "test": (4, "test")}
    assert (found.title, found.val_is_test, found.is_published) == ("COCO", False, False)
    assert found.evidence == "train/_annotations.coco.json, as Roboflow exports it"
    assert found.splits["val"].where == "valid/_annotations.coco.json"


def test_roboflow_without_validation_uses_the_test_images(tmp_path: Path) -> None:
    found = opened(roboflow(tmp_path / "set", splits=("train", "test")))
    assert read(found) == {"train": (4, "train"), "val": (4, "test")}
    assert found.val_is_test
    assert any("the test images are used for evaluation" in note for note in found.notes)


@pytest.mark.parametrize("folder", ["images/default", "images"])
def test_cvat(tmp_path: Path, folder: str) -> None:
    found = opened(cvat(tmp_path / "set", folder))
    assert read(found) == {"train": (6, folder)}
    assert found.evidence == "annotations/instances_default.json, as CVAT exports it"
    assert f"the images of annotations/instances_default.json are in {folder}/" in found.notes


def test_fiftyone(tmp_path: Path) -> None:
    found = opened(fiftyone(tmp_path / "set"))
    assert read(found) == {"train": (6, "data")}
    assert found.evidence == "labels.json, as FiftyOne exports it"
    assert read_annotations(found.splits["train"].annotations_path).category_ids == [0, 1]


def test_fiftyone_with_a_pair_in_each_part(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        fiftyone(tmp_path / split)
    assert read(opened(tmp_path)) == {"train": (6, "train/data"), "val": (6, "validation/data")}


def test_label_studio(tmp_path: Path) -> None:
    found = opened(label_studio(tmp_path / "set"))
    assert read(found) == {"train": (6, ".")}
    assert found.evidence == "result.json, as Label Studio exports it"


# ---------------------------------------------------------------------------------------------------------- other names


@pytest.mark.parametrize(
    ("train", "val", "images"),
    [
        ("annotations/instances_train2014.json", "annotations/instances_val2014.json", "{}2014"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "images/{}2017"),
        ("annotations/train.json", "annotations/val.json", "images/{}"),
        ("train.json", "val.json", "{}"),
        ("train/annotations.json", "val/annotations.json", "{}/images"),
        ("train/annotations/instances_default.json", "val/annotations/instances_default.json", "{}/images"),
        ("labels/coco_training.json", "labels/coco_validation.json", "pictures/{}/a"),
    ],
)
def test_two_files_with_a_folder_each(tmp_path: Path, train: str, val: str, images: str) -> None:
    for name, path in (("train", train), ("val", val)):
        # The same names in both: the folders' names decide between them.
        write_set(tmp_path / path, tmp_path / images.format(name), [f"{index}.jpg" for index in range(3)])
    found = opened(tmp_path)
    assert read(found) == {name: (3, images.format(name)) for name in ("train", "val")}
    assert not any(split.shared for split in found.splits.values())


@pytest.mark.parametrize("folder", ["annotations", "."])
def test_one_folder_of_images_for_all(tmp_path: Path, folder: str) -> None:
    for name in ("train", "val", "test"):
        write_set(tmp_path / folder / f"{name}.json", tmp_path / "images", [f"{name}{index}.jpg" for index in range(3)])
    found = opened(tmp_path)
    assert read(found) == dict.fromkeys(("train", "val", "test"), (3, "images"))
    assert all(split.shared for split in found.splits.values())


def test_one_file_with_images_beside_it(tmp_path: Path) -> None:
    write_set(tmp_path / "my dataset.json", tmp_path, [f"{index}.jpg" for index in range(3)])
    assert read(opened(tmp_path)) == {"train": (3, ".")}


def test_a_folder_above_the_data_set(tmp_path: Path) -> None:
    write_set(tmp_path / "a/b/c/d/train.json", tmp_path / "a/b/c/d/images", ["1.jpg"])
    above = open_dataset(tmp_path)
    assert above is not None
    assert above.evidence == "c/d/train.json"
    assert opened(tmp_path / "a/b").splits["train"].where == "c/d/train.json"


@pytest.mark.parametrize("order", [("categories", "images", "annotations"), ("annotations", "images", "categories")])
def test_tables_in_any_order_after_long_texts(tmp_path: Path, order: tuple[str, ...]) -> None:
    write_set(tmp_path / "all.json", tmp_path / "images", ["1.jpg", "2.jpg"])
    plain = table(["1.jpg", "2.jpg"])
    licenses = [{"id": index, "name": "n" * 50, "url": "u" * 50} for index in range(1000)]
    long = {"info": {"description": "d" * 100_000}, "licenses": licenses}
    write_json(tmp_path / "all.json", {**long, **{key: plain[key] for key in order}})
    assert read(opened(tmp_path)) == {"train": (2, "images")}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_any_unicode(tmp_path: Path, encoding: str) -> None:
    write_set(tmp_path / "all.json", tmp_path / "images", ["图.jpg"])
    (tmp_path / "all.json").write_bytes(json.dumps(table(["图.jpg"]), ensure_ascii=False).encode(encoding))
    found = opened(tmp_path)
    assert found.splits["train"].images_dir == tmp_path / "images"


def test_published_files_keep_their_reader(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_set(tmp_path / f"annotations/instances_{name}2017.json", tmp_path / f"{name}2017", [f"{name}.jpg"])
    assert opened(tmp_path).is_published


def test_published_files_without_any_images_are_still_published(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations/instances_train2017.json", table(["1.jpg"]))
    assert opened(tmp_path).is_published


def test_a_folder_of_published_data_sets_is_not_one_data_set(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_set(
            tmp_path / f"coco/annotations/instances_{name}2017.json", tmp_path / f"coco/{name}2017", [f"{name}.jpg"]
        )
    assert open_dataset(tmp_path) is None
    with pytest.raises(DatasetError, match=f"not the data set's folder, but {tmp_path}/coco is"):
        find_data(DataConfig(), str(tmp_path), "train")


def test_training_explains_an_unknown_folder_as_prepare_does(tmp_path: Path) -> None:
    picture(tmp_path / "holiday/1.jpg")
    with pytest.raises(DatasetError, match=r"no train data: .* has images, e.g. holiday/1\.jpg, but no annotations"):
        find_data(DataConfig(), str(tmp_path), "train")


# ----------------------------------------------------------------------------------------------------- files not used


def test_files_without_boxes_are_noted(tmp_path: Path) -> None:
    write_set(tmp_path / "annotations/instances_val2014.json", tmp_path / "val2014", ["1.jpg"])
    plain = table(["1.jpg"])
    people = {**plain["annotations"][0], "keypoints": [1, 2, 2], "num_keypoints": 1}
    write_json(tmp_path / "annotations/person_keypoints_val2014.json", {**plain, "annotations": [people]})
    captions = {"images": plain["images"], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}
    write_json(tmp_path / "annotations/captions_val2014.json", captions)
    found = opened(tmp_path)
    assert read(found) == {"val": (1, "val2014")}
    notes = " ".join(found.notes)
    assert "annotations/captions_val2014.json (captions, no boxes) is not used" in notes
    assert "annotations/person_keypoints_val2014.json (keypoints) is not used, because another file has boxes" in notes


def test_keypoints_alone_are_read_for_their_boxes(tmp_path: Path) -> None:
    write_set(tmp_path / "person_keypoints_default.json", tmp_path / "images", ["1.jpg"])
    plain = table(["1.jpg"])
    plain["annotations"][0]["num_keypoints"] = 1
    write_json(tmp_path / "person_keypoints_default.json", plain)
    assert read(opened(tmp_path)) == {"train": (1, "images")}


def test_captions_alone_are_an_error(tmp_path: Path) -> None:
    write_set(tmp_path / "captions.json", tmp_path / "images", ["1.jpg"])
    write_json(
        tmp_path / "captions.json",
        {"images": table(["1.jpg"])["images"], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]},
    )
    with pytest.raises(DatasetError, match=r"no boxes: captions\.json \(captions, no boxes\)"):
        opened(tmp_path)


def test_a_file_of_all_beside_those_of_the_parts_is_noted(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_set(tmp_path / f"{name}.json", tmp_path / "images", [f"{name}.jpg"])
    for name in ("all", "trainval"):
        write_json(tmp_path / f"{name}.json", table(["train.jpg", "val.jpg"]))
    found = opened(tmp_path)
    assert read(found) == {"train": (1, "images"), "val": (1, "images")}
    assert "all.json is not used, because other files are for training" in found.notes
    assert "trainval.json is not used, because other files have its parts" in found.notes


@pytest.mark.parametrize(("name", "split"), [("annotations.json", "train"), ("trainval.json", "train")])
def test_what_remains_beside_a_test_file_is_for_training(tmp_path: Path, name: str, split: str) -> None:
    write_set(tmp_path / name, tmp_path / "images", ["1.jpg", "2.jpg"])
    write_set(tmp_path / "test.json", tmp_path / "images", ["3.jpg"])
    assert read(opened(tmp_path)) == {split: (2, "images"), "val": (1, "images")}


def test_a_part_without_images_is_noted(tmp_path: Path) -> None:
    write_set(tmp_path / "train.json", tmp_path / "images", ["1.jpg"])
    write_json(tmp_path / "val.json", table(["2.jpg"]))
    found = opened(tmp_path)
    assert list(found.splits) == ["train"]
    assert "val.json is not used, because none of its images is there, e.g. 2.jpg" in found.notes


def test_no_images_at_all_are_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "train.json", table(["1.jpg"]))
    with pytest.raises(DatasetError, match=r"none of the images that train\.json lists is there.*--images DIR"):
        opened(tmp_path)


def test_a_list_of_test_images_is_not_used_for_evaluation(tmp_path: Path) -> None:
    write_set(tmp_path / "train.json", tmp_path / "images", ["1.jpg"])
    write_set(tmp_path / "image_info_test.json", tmp_path / "test", ["2.jpg"])
    write_json(tmp_path / "image_info_test.json", {**table(["2.jpg"]), "annotations": []})
    found = opened(tmp_path)
    assert list(found.splits) == ["train", "test"]
    assert not found.val_is_test


def test_the_images_of_each_object_do_not_make_a_folder_of_labelme_coco(tmp_path: Path) -> None:
    for index in range(30):
        picture(tmp_path / f"{index}.jpg")
        shapes = [{"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}]
        write_json(tmp_path / f"{index}.json", {"shapes": shapes, "imagePath": f"{index}.jpg", "imageData": None})
    assert coco_json.evidence(Survey.of(tmp_path)) == ""
    write_json(tmp_path / "z.json", table([f"{index}.jpg" for index in range(30)]))
    assert coco_json.evidence(Survey.of(tmp_path)) == "z.json"


# -------------------------------------------------------------------------------------------------------------- unclear


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("instances_train2014.json", "instances_train2017.json"), "2 annotation files for train: instances_train2014"),
        (("a.json", "b.json"), "2 annotation files whose names mean neither"),
        (("trainval.json", "val.json"), "2 annotation files that share images"),
    ],
)
def test_files_that_cannot_be_assigned_are_named(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    for file in files:
        write_set(tmp_path / file, tmp_path / "images", ["1.jpg"])
    with pytest.raises(DatasetError, match=words) as caught:
        opened(tmp_path)
    assert "--ann FILE" in str(caught.value)


def test_several_data_sets_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cvat(tmp_path / name)
    with pytest.raises(DatasetError, match=f"--data {tmp_path}/a --data {tmp_path}/b"):
        opened(tmp_path)


def test_folders_with_the_same_images_are_named(tmp_path: Path) -> None:
    write_set(tmp_path / "all.json", tmp_path / "first", ["1.jpg"])
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    with pytest.raises(DatasetError, match=r"in several folders alike: first/, second/\..*--images DIR"):
        opened(tmp_path)


def test_labels_in_two_layouts_are_the_users_choice(tmp_path: Path) -> None:
    write_set(tmp_path / "all.json", tmp_path / "images", ["1.jpg"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/1.txt").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DatasetError, match="--format coco or --format yolo"):
        opened(tmp_path)
    assert read(opened(tmp_path, ReadOptions(format="coco", val_fraction=0.0))) == {"train": (1, "images")}


def test_each_annotation_file_is_opened_at_most_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cvat(tmp_path / "set")
    opens: list[str] = []
    original: Any = reading.open_descriptor
    monkeypatch.setattr(reading, "open_descriptor", lambda path: opens.append(Path(path).name) or original(path))
    opened(root)
    assert [name for name in opens if name != RECORD_NAME] == ["instances_default.json"] * 2


# -------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("splits", [("train", "valid", "test"), ("train", "test"), ("train",)])
def test_every_split_is_found_by_training_and_evaluation(tmp_path: Path, splits: tuple[str, ...]) -> None:
    config = DataConfig(root=str(roboflow(tmp_path / "set", splits=splits)))
    counts = {}
    for split in ("train", "val", "test"):
        try:
            paths = find_data(config, None, split)  # type: ignore[arg-type]
        except DatasetError:
            continue
        counts[split] = len(read_annotations(paths.annotations_path).image_ids)
        assert paths.dataset == "coco"
    expected = {3: {"train": 4, "val": 4, "test": 4}, 2: {"train": 4, "val": 4, "test": 4}, 1: {"train": 3, "val": 1}}
    assert counts == expected[len(splits)]


def test_several_are_merged_by_class_name(tmp_path: Path) -> None:
    roots = [roboflow(tmp_path / "a"), fiftyone(tmp_path / "b"), tmp_path / "c.json"]
    write_set(roots[2], tmp_path / "c", ["1.jpg", "2.jpg"], classes=("dog", "horse"))
    config = DataConfig(root=str(roots[0]), extra_roots=tuple(map(str, roots[1:])))
    annotations = read_annotations(find_data(config, None, "train").annotations_path)
    assert sorted(annotations.class_names) == ["cat", "dog", "horse"]
    assert len(annotations.image_ids) == 4 + 6 + 2
    assert all(Path("/", name).is_file() or (tmp_path / name).is_file() for name in annotations.file_names)
