"""Which layout a folder has: one, several, or one that the user chooses."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from tests.formats import yolo_exports
from tests.formats.annotated_folders import annotated

XML = (
    "<annotation><size><width>64</width><height>48</height></size><object><name>{}</name><bndbox><xmin>3</xmin>"
    "<ymin>5</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))


@pytest.fixture
def both(tmp_path) -> Path:
    """A Pascal VOC folder that also has YOLO's labels."""
    for name in ("1", "2"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        picture(tmp_path / "images" / f"{name}.jpg")
        for path, text in ((f"Annotations/{name}.xml", XML.format("cat")), (f"labels/{name}.txt", "0 .5 .5 .1 .1\n")):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
    (tmp_path / "classes.txt").write_text("dog\n")
    return tmp_path


def test_two_layouts_in_one_folder_are_the_users_choice(both):
    with pytest.raises(DatasetError, match=r"Pascal VOC \(Annotations/1.xml\), YOLO \(labels/1.txt\).*--format voc or"):
        open_dataset(both)
    for choice, classes in (("voc", "Pascal VOC"), ("yolo", "YOLO")):
        found = open_dataset(both, ReadOptions(format=choice))
        assert found is not None
        assert found.title == classes


def test_a_chosen_layout_that_the_folder_does_not_have_is_none(both):
    assert open_dataset(both, ReadOptions(format="coco")) is None


def test_no_folder_and_no_layout(tmp_path):
    assert open_dataset(tmp_path) is None
    assert open_dataset(tmp_path / "nowhere") is None


def test_the_fraction_is_part_of_the_conversion(both):
    def count(fraction: float) -> int:
        found = open_dataset(both, ReadOptions(format="voc", val_fraction=fraction))
        assert found is not None
        return found.splits["train"].annotations_path.read_text().count("file_name")

    assert (count(0.5), count(0.0), count(0.5)) == (1, 2, 1)


def test_two_exports_beside_each_other(tmp_path):
    yolo_exports.roboflow(tmp_path / "yolo")
    annotated(tmp_path / "voc", "voc", ("train", "valid"))
    message = r"several data sets: .*Pascal VOC\), .*yolo \(YOLO\)\. .*folder of one.*--format voc or --format yolo"
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)
    found = open_dataset(tmp_path, ReadOptions(format="voc"))
    assert found is not None
    assert found.title == "Pascal VOC"


def test_a_description_without_images_beside_it_is_no_second_data_set(tmp_path):
    annotated(tmp_path, "voc", ("train", "valid"))
    yolo_exports.write(tmp_path, "program/data/coco.yaml", "names: [a]\ntrain: images\nval: images\n")
    found = open_dataset(tmp_path)
    assert found is not None
    assert found.title == "Pascal VOC"


@pytest.mark.parametrize("folders", ["archive", "archive/My Data", "a/b/c/d"])
def test_a_data_set_in_the_folders_of_an_archive(folders, tmp_path):
    yolo_exports.roboflow(tmp_path / folders)
    (tmp_path / "readme.txt").write_text("text")
    found = open_dataset(tmp_path)
    assert found is not None
    assert (found.folder, found.evidence) == (tmp_path / folders, "data.yaml")


def test_data_sets_at_several_depths(tmp_path):
    yolo_exports.roboflow(tmp_path / "one")
    yolo_exports.roboflow(tmp_path / "more" / "two")
    merge = r"merge them, several: --data \S+/one --data \S+/more/two$"
    with pytest.raises(DatasetError, match=r"several data sets: .*one \(YOLO\), .*two \(YOLO\)\. .*" + merge):
        open_dataset(tmp_path)


def test_an_inner_folder_in_two_layouts(both):
    outer = both.with_name("outer")
    outer.mkdir()
    both.rename(outer / "set")
    with pytest.raises(DatasetError, match=r"several data sets: .*YOLO.*Pascal VOC.*choose with --format yolo or"):
        open_dataset(outer)
