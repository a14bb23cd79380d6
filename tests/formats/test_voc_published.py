"""The published folder of Pascal VOC, inside others, and as CVAT exports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.voc_published import roots, stems_of
from tests.data.fakes import write_image, write_voc, xml
from tests.formats.exported_xml import put, write_cvat_voc

ANT = xml(("ant", 1, 1, 9, 9))


def test_roots(tmp_path: Path) -> None:
    write_voc(tmp_path / "x" / "VOC2007", {"a": ANT}, {})
    write_voc(tmp_path / "y", {"b": ANT}, {})
    put(tmp_path / "z" / "Annotations" / "c.xml", ANT)
    found = roots(Survey.of(tmp_path))
    assert found == {"x/VOC2007": "x/VOC2007/Annotations/a.xml", "y": "y/Annotations/b.xml"}
    assert stems_of(Survey.of(tmp_path / "y")) == ["b"]


def test_a_deeper_one_is_found(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "a" / "b" / "c" / "VOC2007", {"a": ANT, "b": ANT}, {"train": "a", "val": "b"})
    found = open_dataset(tmp_path)
    assert found is not None
    assert found.splits["train"].images_dir == root / "JPEGImages"
    assert found.splits["train"].where == "ImageSets/Main/train.txt"
    write_voc(tmp_path / "a" / "b" / "d" / "VOC2012", {"a": ANT}, {})
    with pytest.raises(DatasetError, match=r"contains several data sets: .*VOC2007, .*VOC2012"):
        open_dataset(tmp_path)


def test_cvats_export(tmp_path: Path) -> None:
    found = open_dataset(write_cvat_voc(tmp_path / "cvat"))
    assert found is not None
    tables = {name: read_annotations(split.annotations_path) for name, split in found.splits.items()}
    boxes = {table.file_names[0]: table.boxes_xywh.tolist() for table in tables.values()}
    assert boxes == {"a b.jpg": [[10.5, 9, 10, 4]], "sub/c.jpg": [[13.5, 6, 4, 10]]}  # the second one is turned by 90
    assert set(found.splits) == {"train", "val"}
    assert "reserved for validation" in found.notes[0]
    assert not found.findings


def test_names_of_images_in_the_files_are_used_where_the_files_have_other_names(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "v", {"a": ANT, "b": ANT}, {"train": "a\nx1", "val": "b"})
    write_image(root / "JPEGImages" / "Photo 7.JPG")
    put(root / "Annotations" / "x1.xml", ANT.replace("<size>", "<filename>photo%207.jpg</filename><size>"))
    found = open_dataset(root)
    assert found is not None
    assert read_annotations(found.splits["train"].annotations_path).file_names == ["a.jpg", "Photo 7.JPG"]


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "v", {"a": ANT, "b": ANT, "c": ANT}, {"train": "a", "val": "b"})
    write_image(root / "JPEGImages" / "no_xml.jpg")
    write_image(root / "SegmentationClass" / "a.png")
    put(root / "Annotations" / "a.xml.bak", ANT)
    put(root / "export" / "sitemap.xml", "<urlset></urlset>")
    found = open_dataset(root)
    assert found is not None
    assert {each.kind: (each.where, each.first) for each in found.findings} == {
        "image_without_annotation": ("Annotations/", ["no_xml.jpg"]),
        "unlisted_annotation": ("Annotations/", ["c"]),
        "other_xml": ("Annotations/", ["export/sitemap.xml", "Annotations/a.xml.bak"]),
    }


def test_xml_of_another_kind_is_skipped_unless_a_list_names_it(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "v", {"a": ANT, "b": ANT}, {})
    put(root / "Annotations" / "annotations.xml", "<annotations><broken")
    found = open_dataset(root)
    assert found is not None
    assert [(each.kind, each.first) for each in found.findings] == [("other_xml", ["annotations.xml"])]
    put(root / "ImageSets" / "Main" / "train.txt", "a\nb\nannotations\n")
    with pytest.raises(DatasetError, match=r"1 files of .* are no annotation files: annotations.xml \(<annotations>\)"):
        open_dataset(root)


def names_of(root: Path) -> dict[str, list[str]]:
    found = open_dataset(root, ReadOptions(val_fraction=0.0))
    assert found is not None
    return {name: read_annotations(split.annotations_path).file_names for name, split in found.splits.items()}


@pytest.mark.parametrize(
    "lists",
    [
        {"train.txt": "a\nb\n", "val.txt": "c\n"},
        {"ImageSets/train.txt": "a.jpg\nb\n", "ImageSets/val.txt": "JPEGImages/c.jpg\n"},
        {"train_list.txt": "JPEGImages/a.jpg Annotations/a.xml\nJPEGImages/b.jpg Annotations/b.xml\n",
         "val_list.txt": "JPEGImages/c.jpg Annotations/c.xml\n"},
        {"ImageSets/Main/ant_train.txt": "a.jpg 1\nb.jpg -1\n", "ImageSets/Main/ant_val.txt": "c.jpg 1\n",
         "ImageSets/Main/bee_train.txt": "a.jpg -1\nb.jpg 1\n"},  # VoTT
        {"ImageSets/Main/train.txt": "JPEGImages/a.jpg\nb.jpeg\n", "ImageSets/Main/val.txt": "c  1\n"},
        {"ImageSets/Main/Train.txt": "a\nb\n", "ImageSets/Main/validation.txt": "c\n"},
        {"ImageSets/Main/train.txt": "a\nb\n", "ImageSets/Main/val.txt": "c\n", "ImageSets/Main/valid.txt": "a\n"},
    ],
)  # fmt: skip
def test_lists_in_other_places(tmp_path: Path, lists: dict[str, str]) -> None:
    root = write_voc(tmp_path / "v", dict.fromkeys("abc", ANT), {})
    for name, text in lists.items():
        put(root / name, text)
    assert names_of(root) == {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"]}


def test_a_name_in_another_folder_is_another_file(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "v", {"a": ANT}, {"train": "a\ncats/1\n"})
    for name in ("dogs/1", "cats/2"):
        write_image(root / "JPEGImages" / f"{name}.jpg")
        put(root / "Annotations" / f"{name}.xml", ANT)
    with pytest.raises(DatasetError, match=r"1 of the 2 names of .* have no file in .*Annotations: cats/1"):
        open_dataset(root)
    put(root / "ImageSets" / "Main" / "train.txt", "a\ndogs/1\n2\n")
    assert names_of(root) == {"train": ["a.jpg", "dogs/1.jpg", "cats/2.jpg"]}


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "v", {"a": ANT, "b": ANT}, {"train": "a", "val": "b"})
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "a.XML")
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "a.JPEG")
    assert names_of(root) == {"train": ["a.JPEG"], "val": ["b.jpg"]}
