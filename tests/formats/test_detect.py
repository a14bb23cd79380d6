from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.formats.detect import find_splits
from tests.formats.annotated_folders import annotated


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


def test_a_missing_folder_lists_the_existing_ones(tiny_coco: Path) -> None:
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
        (["annotations/lvis_v0.5_train.json"], "LVIS v0.5 data set"),
        (["annotations/mine.json", "images/a.jpg"], "mine.json, but no JSON file there has COCO's tables"),
        (["train2017.zip", "annotations_trainval2017.zip"], "still packed"),
        (["train2017/a.jpg"], "image folders of COCO but no annotation file"),
        (["annotations/readme.md"], "contains annotations .1 x .md., no images"),
        (["holiday/a.jpg"], "has images, e.g. holiday/a.jpg, but no annotations of a known layout"),
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
    for layout in ("annotations/instances_{train,val}2017.json beside", "Roboflow", "CVAT", "Pascal VOC", "YOLO"):
        assert layout in str(caught.value)


def test_detections_are_named_as_results(tmp_path: Path) -> None:
    (tmp_path / "detections.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]')
    with pytest.raises(DatasetError, match=r"detections\.json looks like a file of detections"):
        find_splits(tmp_path)


def test_the_chosen_layout_is_another_one(tmp_path):
    annotated(tmp_path, "csv", ("train", "val"))
    message = r"nothing of the layout Pascal VOC \(--format voc\); it can be read as CSV \(labels.csv\): .*--format csv"
    with pytest.raises(DatasetError, match=message):
        find_splits(tmp_path, format="voc")
