"""Annotation files of Pascal VOC in folders of any names."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from codetr_cli import reading
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.overrides import parse_settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.errors import DatasetError
from codetr_cli.formats.found import FoundDataset, ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.voc_folders import ImageFinder
from codetr_cli.formats.voc_xml import VocFile
from tests.data.fakes import snapshot, write_image, xml
from tests.formats.exported_xml import labelimg, put, roboflow


def open_folder(root: Path, **options: object) -> FoundDataset:
    found = open_dataset(root, ReadOptions(**options))  # type: ignore[arg-type]
    assert found is not None
    return found


def pairs(root: Path, images: Mapping[str, str], **options: object) -> dict[str, int]:
    """Writes an image and an annotation file each, whose box starts at 1, 2, ...; returns where boxes are found."""
    for number, (image, name) in enumerate(images.items(), 1):
        write_image(root / image)
        put(root / name, xml(("ant", number + 1, 2, 30, 20)))
    found = open_folder(root, val_fraction=0.0, **options)
    tables = [read_annotations(split.annotations_path) for split in found.splits.values()]
    return {
        name: int(box[0])
        for table in tables
        for name, box in zip(table.file_names, table.boxes_xywh.tolist(), strict=True)
    }


LAYOUTS: dict[str, dict[str, str]] = {
    "kaggle": {"images/a.png": "annotations/a.xml", "images/b.png": "annotations/b.xml"},
    "capitals": {"Images/a.jpg": "Annotations/a.xml", "Images/b.JPG": "Annotations/b.xml"},
    "labelimg": {"a.jpg": "a.xml", "b.jpeg": "b.xml"},
    "xmls": {"photos/1.jpg": "xmls/1.xml", "photos/2.jpg": "xmls/2.xml"},
    "labels": {"images/1.jpg": "labels/1.xml", "images/2.jpg": "labels/2.xml"},
    "bndbox": {"imgs/1.jpg": "bndbox/1.xml", "imgs/2.jpg": "bndbox/2.xml"},
    "any names": {"fotos/1.jpg": "marcas/1.xml", "fotos/2.jpg": "marcas/2.xml"},
    "parallel trees": {
        "images/cats/1.jpg": "annotations/cats/1.xml",
        "images/dogs/1.jpg": "annotations/dogs/1.xml",
        "images/1.jpg": "annotations/1.xml",
    },
    "folders of classes": {"cats/1.jpg": "cats/1.xml", "dogs/1.jpg": "dogs/1.xml"},
    "dates": {
        "2020-01-01/images/1.jpg": "2020-01-01/xml/1.xml",
        "2020-01-02/images/1.jpg": "2020-01-02/xml/1.xml",
    },
    "any names, parallel": {"fotos/x/1.jpg": "marcas/x/1.xml", "fotos/y/1.jpg": "marcas/y/1.xml"},
    "one folder of files": {"images/cats/1.jpg": "annotations/1.xml", "images/dogs/2.jpg": "annotations/2.xml"},
    "two suffixes": {"images/1.jpg": "annotations/1.jpg.xml", "images/2.jpg": "annotations/2.jpg.xml"},
    "splits": {
        "train/images/1.jpg": "train/annotations/1.xml",
        "test/images/1.jpg": "test/annotations/1.xml",
        "valid/images/1.jpg": "valid/annotations/1.xml",
    },
    "published names in splits": {
        "train/JPEGImages/1.jpg": "train/Annotations/1.xml",
        "val/JPEGImages/1.jpg": "val/Annotations/1.xml",
    },
    "splits below": {"images/train/1.jpg": "annotations/train/1.xml", "images/val/1.jpg": "annotations/val/1.xml"},
    "splits in names": {"train_images/1.jpg": "train_annots/1.xml", "val_images/1.jpg": "val_annots/1.xml"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_file_belongs_to_its_image(tmp_path: Path, layout: str) -> None:
    files = LAYOUTS[layout]
    assert pairs(tmp_path / "set", files) == {name: number for number, name in enumerate(files, 1)}


def names_of(found: FoundDataset) -> dict[str, list[str]]:
    return {name: read_annotations(split.annotations_path).file_names for name, split in found.splits.items()}


def test_roboflow(tmp_path: Path) -> None:
    root = tmp_path / "robo"
    for split in ("train", "valid", "test"):
        for number in (1, 2):
            name = f"{number}_jpg.rf.0123456789abcdef"
            write_image(root / split / f"{name}.jpg")
            boxes = [("ant", 11, 6, 20, 10)] if number == 1 else []
            put(root / split / f"{name}.xml", roboflow(f"{name}.jpg", *boxes))
    put(root / "README.roboflow.txt", "made by roboflow\n")
    before = snapshot(root)
    found = open_folder(root)
    assert {name: len(names) for name, names in names_of(found).items()} == {"train": 2, "val": 2, "test": 2}
    assert {name: split.where for name, split in found.splits.items()} == {
        "train": "train/", "val": "valid/", "test": "test/",
    }  # fmt: skip
    train = read_annotations(found.splits["train"].annotations_path)
    assert train.boxes_xywh.tolist() == [[10, 5, 10, 5]]
    assert len(train.file_names) == 2, "a file without objects makes background"
    assert not found.findings
    assert snapshot(root) == before


def test_labelimg_with_paths_of_another_computer(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("one", "two"):
        write_image(root / "photos" / f"{name}.jpg")
    put(root / "marks" / "x1.xml", labelimg("C:\\Users\\me\\photos\\one.jpg", ("ant", 1, 1, 9, 9)))
    put(root / "marks" / "x2.xml", labelimg("/home/me/photos/TWO.JPG", ("bee", 1, 1, 9, 9)))
    found = open_folder(root, val_fraction=0.0)
    assert names_of(found) == {"train": ["photos/one.jpg", "photos/two.jpg"]}


def test_the_same_name_in_another_folder_is_another_image(tmp_path: Path) -> None:
    files = dict(LAYOUTS["parallel trees"])
    pairs(tmp_path / "set", files)
    (tmp_path / "set" / "images" / "cats" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 images are missing in .*annotations/cats/1.xml. Copy"):
        open_folder(tmp_path / "set")
    (tmp_path / "set" / "annotations" / "dogs" / "1.xml").unlink()  # leaves an image of that name, of dogs
    with pytest.raises(DatasetError, match=r"1 of 2 images are missing in .*annotations/cats/1.xml. Copy"):
        open_folder(tmp_path / "set")


def test_two_files_for_one_image_are_an_error(tmp_path: Path) -> None:
    pairs(tmp_path, {"images/a.jpg": "annotations/a.xml"})
    put(tmp_path / "annotations" / "b.xml", labelimg("images/a.jpg", ("ant", 1, 1, 5, 5)))
    with pytest.raises(DatasetError, match=r"a.jpg has two annotation files, annotations/a.xml and annotations/b.xml"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("lists", "splits"),
    [
        ({"train.txt": "a\nb\n", "val.txt": "c\n"}, {"train": "ab", "val": "c"}),
        ({"ImageSets/train.txt": "images/a.jpg\nb.jpg\n", "ImageSets/test.txt": "c.jpg"}, {"train": "ab", "val": "c"}),
        ({"ImageSets/Main/trainval.txt": "a\nb\nc 1\n", "ImageSets/Main/val.txt": "c -1"}, {"train": "ab", "val": "c"}),
        (
            {"train_list.txt": "images/a.jpg annotations/a.xml\nimages/b.jpg annotations/b.xml\n",
             "val_list.txt": "./images/c.jpg ./annotations/c.xml\n"},
            {"train": "ab", "val": "c"},
        ),
        (
            {"train.txt": "C:\\x\\images\\a.jpg\n/home/me/images/b.jpg\n", "val.txt": "C.JPG\n"},
            {"train": "ab", "val": "c"},
        ),
        ({"train.txt": "no list of images\n"}, {"train": "abc"}),
    ],
)  # fmt: skip
def test_lists(tmp_path: Path, lists: dict[str, str], splits: dict[str, str]) -> None:
    pairs(tmp_path, {f"images/{name}.jpg": f"annotations/{name}.xml" for name in "abc"})
    for name, text in lists.items():
        put(tmp_path / name, text)
    found = open_folder(tmp_path, val_fraction=0.0)
    assert names_of(found) == {split: [f"images/{name}.jpg" for name in names] for split, names in splits.items()}


def test_names_of_lists_without_a_file_are_an_error(tmp_path: Path) -> None:
    pairs(tmp_path, {f"images/{name}.jpg": f"annotations/{name}.xml" for name in "abc"})
    put(tmp_path / "train.txt", "a\nx\n")
    with pytest.raises(DatasetError, match=r"1 of the 2 names of train.txt .* have no annotation file, or several: x"):
        open_folder(tmp_path)
    put(tmp_path / "train.txt", "a\n")
    found = open_folder(tmp_path)
    assert {each.kind: each.first for each in found.findings}["unlisted_annotation"] == [
        "annotations/b.xml",
        "annotations/c.xml",
    ]


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    text = xml(("Cat", 1, 1, 9, 9), ("cat", 2, 2, 9, 9)).replace(
        "</annotation>", "<object><name>dot</name><point><x>1</x><y>2</y></point></object></annotation>"
    )
    write_image(tmp_path / "a.jpg")
    put(tmp_path / "a.xml", text)
    for name in ("b.jpg", "docs/logo.png", "__MACOSX/._a.jpg", ".ipynb_checkpoints/a.jpg"):
        write_image(tmp_path / "x.jpg")
        put(tmp_path / name, "")
        (tmp_path / "x.jpg").rename(tmp_path / name)
    put(tmp_path / ".ipynb_checkpoints" / "a.xml", text)
    put(tmp_path / "sitemap.xml", "<?xml version='1.0'?><urlset/>")
    put(tmp_path / "a.xml.bak", text)
    found = open_folder(tmp_path)
    assert {each.kind: (each.severity, each.first) for each in found.findings} == {
        "image_without_annotation": ("warning", ["b.jpg"]),
        "unlisted_file": ("info", ["docs/logo.png"]),
        "other_xml": ("info", ["sitemap.xml", "a.xml.bak"]),
        "object_without_box": ("warning", ["dot in a.xml"]),
        "alike_class_names": ("warning", ["Cat and cat"]),
    }


def test_broken_files_are_named(tmp_path: Path) -> None:
    pairs(tmp_path, {f"images/{name}.jpg": f"annotations/{name}.xml" for name in "abc"})
    put(tmp_path / "annotations" / "b.xml", "<annotation><object>")
    with pytest.raises(DatasetError, match=r"annotations/b.xml is not valid XML"):
        open_folder(tmp_path)


def test_a_new_image_or_file_is_seen(tmp_path: Path) -> None:
    assert len(pairs(tmp_path, {"images/a.jpg": "annotations/a.xml"})) == 1
    assert len(pairs(tmp_path, {"images/a.jpg": "annotations/a.xml", "images/b.jpg": "annotations/b.xml"})) == 2


def test_missing_images_are_skipped_where_asked(tmp_path: Path) -> None:
    files = {f"images/{number:02d}.jpg": f"annotations/{number:02d}.xml" for number in range(20)}
    pairs(tmp_path, files)
    (tmp_path / "images" / "07.jpg").unlink()
    with pytest.raises(DatasetError, match="1 of 20 images are missing"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, skip_bad=True).skipped == ["annotations/07.xml (no such file)"]


def test_training_reads_the_images(tmp_path: Path) -> None:
    pairs(tmp_path, LAYOUTS["parallel trees"])
    settings = parse_settings({"name": "x", "data": {"root": str(tmp_path), "min_side": 16}}, where="test")
    names = []
    for split in ("train", "val"):
        dataset = build_dataset(settings, split=split, training=False)  # type: ignore[arg-type]
        assert dataset[0][0].ndim == 3
        names += [dataset.image_path(index) for index in range(len(dataset))]
    assert sorted(names) == sorted(tmp_path / name for name in LAYOUTS["parallel trees"])


def test_links_to_folders_of_the_layout_are_followed(tmp_path: Path) -> None:
    pairs(tmp_path / "there", {"images/a.jpg": "annotations/a.xml", "photos/b.jpg": "b.xml"})
    root = tmp_path / "set"
    root.mkdir()
    for name, target in (("images", "images"), ("annotations", "annotations"), ("other", "photos")):
        (root / name).symlink_to(tmp_path / "there" / target)
    (root / "xml").symlink_to(root)  # a loop
    found = open_folder(root)
    assert names_of(found) == {"train": ["images/a.jpg"]}
    assert [(each.kind, each.first) for each in found.findings] == [("linked_folder", ["other"])]


@pytest.mark.parametrize("linked", ["JPEGImages", "Annotations"])
def test_links_in_the_published_folder(tmp_path: Path, linked: str) -> None:
    root = tmp_path / "set"
    pairs(root, {"JPEGImages/a.jpg": "Annotations/a.xml", "JPEGImages/b.jpg": "Annotations/b.xml"})
    (root / linked).rename(tmp_path / "elsewhere")
    (root / linked).symlink_to(tmp_path / "elsewhere")
    found = open_folder(root)
    assert sorted(name for names in names_of(found).values() for name in names) == ["a.jpg", "b.jpg"]
    assert not found.findings


def test_each_file_is_opened_once_and_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        for number in range(60):
            write_image(tmp_path / split / f"{number}.jpg")
            put(tmp_path / split / f"{number}.xml", xml(("ant", 1, 1, 9, 9)))
    opened: list[str] = []
    original = reading.open_descriptor

    def counted(path: str | Path) -> tuple[int, int]:
        opened.append(str(path))
        return original(path)

    monkeypatch.setattr(reading, "open_descriptor", counted)
    open_folder(tmp_path)
    files = [path for path in opened if path.endswith(".xml")]
    assert len(set(files)) == 120
    assert len(files) <= 120 + 25  # a few heads show the layout
    assert [path for path in opened if path.endswith(".jpg")] == []


def test_many_images_take_linear_time() -> None:
    names = [f"{number % 100}/images/{number}.jpg" for number in range(50_000)]
    files = [f"{number % 100}/annotations/{number}.xml" for number in range(50_000)]
    start = time.process_time()
    finder = ImageFinder(names, files)
    assert [finder.find(name, VocFile((1, 1), [])) for name in files[:5_000]] == names[:5_000]
    assert time.process_time() - start < 3
