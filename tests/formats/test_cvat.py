"""Folders with CVAT's XML."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.errors import DatasetError
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.open import open_dataset
from tests.data.fakes import write_image
from tests.formats.exported_xml import cvat_box, cvat_images, put, roboflow

SIZE = {"width": 40, "height": 30}


def open_folder(root: Path, **options: object) -> FoundDataset:
    found = open_dataset(root, ReadOptions(**options))  # type: ignore[arg-type]
    assert found is not None
    return found


def names_of(found: FoundDataset) -> dict[str, list[str]]:
    return {name: read_annotations(split.annotations_path).file_names for name, split in found.splits.items()}


def test_a_task(tmp_path: Path) -> None:
    shapes = cvat_box("dog", 11, 6, 20.5, 10) + '<polyline label="lane" points="1,2;3,4"/>'
    put(
        tmp_path / "annotations.xml",
        cvat_images(
            [({"name": "a.jpg", **SIZE}, shapes), ({"name": "sub/b.jpg"}, cvat_box("Dog", 1, 1, 5, 5))],
            labels=[("zebra", "any"), ("dog", "any"), ("lane", "polyline")],
        ),
    )
    for name in ("images/a.jpg", "images/sub/b.jpg", "images/c.jpg"):
        write_image(tmp_path / name)
    put(tmp_path / "other.xml", "<urlset/>")
    found = open_folder(tmp_path, val_fraction=0.0)
    assert (found.title, found.evidence) == ("CVAT XML", "annotations.xml")
    assert found.splits["train"].where == "annotations.xml"
    table = read_annotations(found.splits["train"].annotations_path)
    assert table.file_names == ["images/a.jpg", "images/sub/b.jpg"]
    assert (table.class_names, table.category_ids) == (["zebra", "dog", "Dog"], [1, 2, 3])
    assert table.boxes_xywh.tolist() == [[11, 6, 9.5, 4], [1, 1, 4, 4]]
    assert table.sizes.tolist() == [[30, 40], [30, 40]]  # the second one from the image itself
    assert {each.kind: each.first for each in found.findings} == {
        "object_without_box": ["polyline of lane in images/a.jpg"],
        "alike_class_names": ["dog and Dog"],
        "unlisted_file": ["images/c.jpg"],
        "other_xml": ["other.xml"],
    }


def test_subsets_of_a_project_are_splits(tmp_path: Path) -> None:
    records = []
    for subset in ("Train", "Validation", "Test"):
        write_image(tmp_path / "images" / subset / "1.jpg")
        records.append(({"name": "1.jpg", "subset": subset, **SIZE}, cvat_box("cat", 1, 1, 5, 5)))
    put(tmp_path / "annotations.xml", cvat_images(records))
    assert names_of(open_folder(tmp_path)) == {
        "train": ["images/Train/1.jpg"],
        "val": ["images/Validation/1.jpg"],
        "test": ["images/Test/1.jpg"],
    }


def test_a_file_a_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / split / "images" / "1.jpg")
        put(tmp_path / split / "annotations.xml", cvat_images([({"name": "1.jpg"}, cvat_box("cat", 1, 1, 5, 5))]))
    found = open_folder(tmp_path)
    assert names_of(found) == {"train": ["train/images/1.jpg"], "val": ["test/images/1.jpg"]}
    assert found.splits["val"].where == "test/annotations.xml (test)"


def test_polygons_keep_their_outline(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    text = (
        '<polygon label="cat" points="1,2;30.5,4;5,20"/>'
        '<mask label="cat" rle="1" left="1" top="2" width="3" height="4"/>'
    )
    put(tmp_path / "1_annotations.xml", cvat_images([({"name": "a.jpg", **SIZE}, text)]))
    found = open_folder(tmp_path)
    text = found.splits["train"].annotations_path.read_text()
    assert '"segmentation": [[1, 2, 30.5, 4, 5, 20]]' in text
    assert [(each.kind, each.count) for each in found.findings] == [("mask_as_box", 1)]


def test_missing_images(tmp_path: Path) -> None:
    records = [({"name": f"{number}.jpg", **SIZE}, cvat_box("cat", 1, 1, 5, 5)) for number in range(20)]
    for number in range(1, 20):
        write_image(tmp_path / "images" / f"{number}.jpg")
    put(tmp_path / "annotations.xml", cvat_images(records))
    with pytest.raises(DatasetError, match=r"1 of the 20 images of annotations.xml are missing in .*: 0.jpg. Copy"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, skip_bad=True).skipped == ["0.jpg (no such file)"]


def test_the_same_name_in_another_folder_is_another_image(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "dogs" / "1.jpg")
    put(tmp_path / "annotations.xml", cvat_images([({"name": "cats/1.jpg", **SIZE}, cvat_box("cat", 1, 1, 5, 5))]))
    with pytest.raises(DatasetError, match=r"are missing in .*: cats/1.jpg. Copy"):
        open_folder(tmp_path)
    write_image(tmp_path / "images" / "1.jpg")  # copied without its folder, but now there are two of that name
    (tmp_path / "images" / "dogs" / "1.jpg").unlink()
    assert names_of(open_folder(tmp_path)) == {"train": ["images/1.jpg"]}


def test_an_image_in_two_files(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    text = cvat_images([({"name": "a.jpg", **SIZE}, cvat_box("cat", 1, 1, 5, 5))])
    put(tmp_path / "annotations.xml", text)
    put(tmp_path / "copy.xml", text)
    with pytest.raises(DatasetError, match=r"a.jpg is twice in the annotations, in annotations.xml and in copy.xml"):
        open_folder(tmp_path)


def test_no_shapes(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    put(tmp_path / "annotations.xml", cvat_images([({"name": "a.jpg", **SIZE}, "")]))
    with pytest.raises(DatasetError, match=r"no image of annotations.xml has a shape with a box"):
        open_folder(tmp_path)


def test_pascal_voc_in_the_same_folder_is_the_users_choice(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    put(tmp_path / "annotations.xml", cvat_images([({"name": "a.jpg", **SIZE}, cvat_box("cat", 1, 1, 5, 5))]))
    put(tmp_path / "images" / "a.xml", roboflow("a.jpg", ("dog", 1, 1, 5, 5)))
    with pytest.raises(DatasetError, match="--format voc or --format cvat"):
        open_folder(tmp_path)
    for key, name in (("voc", "dog"), ("cvat", "cat")):
        found = open_folder(tmp_path, format=key)
        assert name in read_annotations(found.splits["train"].annotations_path).class_names
