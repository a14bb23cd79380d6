from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.annotations.cache import cache_folder, source_of
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.config.overrides import parse_settings
from codetr_cli.data.coco import build_dataset
from codetr_cli.errors import DatasetError, ResourceError
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.resolve import find_data
from codetr_cli.training.plan import plan_job
from tests.data.fakes import snapshot, write_voc, xml


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    files = {
        "a": xml(("zebra", 1, 1, 40, 30), ("ant", 11, 6, 20, 10)),
        "b": xml(("bee", 5, 5, 9, 9), difficult=1),
        "c": xml(("ant", 30, 20, 50, 44), ("ant", 60, 5, 70, 9), size=False),
    }
    return write_voc(tmp_path / "voc", files, {"train": "a\nb\n", "val": "c 1\n"})


def read(root: Path, split: str) -> Annotations:
    return read_annotations(find_data(DataConfig(), str(root), split).annotations_path)  # type: ignore[arg-type]


def test_boxes_classes_and_difficult_objects(voc: Path) -> None:
    before = snapshot(voc)
    train = read(voc, "train")
    assert (train.class_names, train.category_ids) == (["ant", "bee", "zebra"], [1, 2, 3])
    assert train.file_names == ["a.jpg", "b.jpg"]
    # Corners count from 1 and belong to the box: the first is the whole image.
    assert train.boxes_xywh.tolist() == [[0, 0, 40, 30], [10, 5, 10, 5], [4, 4, 5, 5]]
    assert train.labels.tolist() == [2, 0, 1]
    assert train.iscrowd.tolist() == [0, 0, 1]
    assert len(train.usable_objects(np.arange(2), with_crowd=False).labels) == 2
    assert snapshot(voc) == before, "nothing may be written into the folder"


def test_boxes_over_the_edge_are_clipped_and_counted(voc: Path) -> None:
    val = read(voc, "val")
    assert val.boxes_xywh.tolist() == [[29, 19, 11, 11]]
    assert val.class_names == ["ant", "bee", "zebra"]  # those of all splits
    assert val.sizes.tolist() == [[30, 40]]  # from the image itself
    converted = open_dataset(voc)
    assert converted is not None
    counts = {finding.kind: (finding.count, finding.where) for finding in converted.findings}
    place = "ImageSets/Main/val.txt"
    assert counts["box_beyond_edge"] == (1, place)
    assert counts["box_outside"] == (1, place)
    assert counts["difficult"] == (1, "ImageSets/Main/train.txt")


def test_a_conversion_is_kept_until_a_file_changes(voc: Path) -> None:
    path = find_data(DataConfig(), str(voc), "train").annotations_path
    time = path.stat().st_mtime_ns
    assert path.is_relative_to(cache_folder())
    assert find_data(DataConfig(), str(voc), "train").annotations_path == path
    assert path.stat().st_mtime_ns == time
    changed = voc / "Annotations" / "a.xml"
    changed.write_text(xml(("ant", 2, 2, 9, 9)))
    os.utime(changed, ns=(1, 1))
    assert len(read(voc, "train").labels) == 2


def test_a_folder_around_it_is_enough_unless_it_holds_two(voc: Path, tmp_path: Path) -> None:
    inner = tmp_path / "VOCdevkit" / "VOC2007"
    inner.parent.mkdir()
    voc.rename(inner)
    assert len(read(inner.parent, "train").image_ids) == 2
    write_voc(inner.parent / "VOC2012", {"x": xml(("ant", 1, 1, 5, 5))}, {})
    with pytest.raises(DatasetError, match=r"contains several data sets: .*VOC2007 .*VOC2012"):
        read(inner.parent, "train")


def test_tools_that_count_from_zero_are_reported(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "v", {"a": xml(("ant", 0, 0, 9, 9))}, {"train": "a", "val": "a"})
    assert read(root, "train").boxes_xywh.tolist() == [[0, 0, 9, 9]]
    notes = " ".join(find_data(DataConfig(), str(root), "train").notes)
    assert "1 box starts at pixel 0" in notes
    assert "1 image is in both train and val" in notes


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "Annotations/a.xml").write_text("<annotation><obj"), r"a.xml is not valid XML: .*line 1"),
        (lambda root: (root / "Annotations/a.xml").unlink(), "1 of the 3 names of .* have no file in .*: a. Add"),
        (lambda root: (root / "JPEGImages/c.jpg").unlink(), "1 of 3 images are missing in .*JPEGImages: c. Copy"),
        (
            lambda root: (root / "Annotations/a.xml").write_text(xml(("ant", 9, 1, 5, 5))),
            r"a.xml: object 1 \(ant\) has swapped corners: 9, 1, 5, 5",
        ),
        (lambda root: (root / "Annotations/a.xml").write_text(xml(("", 9, 1, 15, 5))), "object 1 has no <name>"),
        (
            lambda root: (root / "Annotations/a.xml").write_text(xml(("ant", 1, 1, 5, 5)).replace("xmax", "x")),
            r"object 1 \(ant\) lacks a number of <bndbox>",
        ),
        (lambda root: pipe(root / "Annotations/a.xml"), "cannot read .*a.xml: it is a named pipe"),
        (lambda root: pipe(root / "ImageSets/Main/train.txt"), "cannot read .*train.txt: it is a named pipe"),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text("../../x"), "val.txt: 1 name leads out of the"),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text("x" * 5000), "1 of the 3 names of .* have no file"),
        (lambda root: (root / "JPEGImages/c.jpg").write_bytes(b""), "c.jpg cannot be used: the file has zero bytes"),
    ],
)
def test_damage_is_named(voc: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(voc)
    with pytest.raises(DatasetError, match=words):
        read(voc, "train")


def test_a_real_set(shared_dir: Path) -> None:
    root = shared_dir / "data" / "bccd"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    converted = open_dataset(root)
    assert converted is not None
    counts = {name: read_annotations(split.annotations_path) for name, split in converted.splits.items()}
    assert {name: len(table.image_ids) for name, table in counts.items()} == {"train": 205, "val": 87, "test": 72}
    assert sum(len(table.labels) for table in counts.values()) == 361 + 4155 + 372
    assert len(counts["train"].labels) == 2805
    assert counts["test"].class_names == ["Platelets", "RBC", "WBC"]
    assert not converted.notes


def test_the_third_split_is_found_by_its_name(tmp_path: Path) -> None:
    files = {name: xml(("ant", 1, 1, 9, 9)) for name in "abc"}
    root = write_voc(tmp_path / "v", files, {"train": "a", "val": "b", "test": "c"})
    assert read(root, "test").file_names == ["c.jpg"]
    (root / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(DatasetError, match="has no test images, only train, val"):
        read(root, "test")


def test_the_test_images_have_two_names_where_they_serve_for_evaluation(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "val.txt").rename(voc / "ImageSets" / "Main" / "test.txt")
    assert read(voc, "test").file_names == read(voc, "val").file_names == ["c.jpg"]
    converted = open_dataset(voc)
    assert converted is not None
    assert list(converted.splits) == ["train", "val"]  # written once


def test_messages_name_the_folder_and_not_the_cache(voc: Path) -> None:
    path = find_data(DataConfig(), str(voc), "train").annotations_path
    assert source_of(path).name == f"{voc} (Pascal VOC, ImageSets/Main/train.txt)"
    assert source_of(path).check == f"`codetr prepare {voc}`"
    (voc / "Annotations" / "a.xml").write_text(xml(difficult=1))
    settings = parse_settings({"name": "x", "data": {"root": str(voc)}}, where="test")
    with pytest.raises(DatasetError, match=f"^{voc}.* has no object of any class.*`codetr prepare {voc}`") as caught:
        plan_job(settings)
    assert str(cache_folder()) not in str(caught.value)
    (voc / "JPEGImages" / "c.jpg").write_bytes(b"")
    dataset = build_dataset(settings, split="val", training=False)
    with pytest.raises(DatasetError, match=f"c.jpg: the file has zero bytes.*`codetr prepare {voc}`"):
        dataset[0]


def test_missing_images_are_skipped_where_asked(tmp_path: Path) -> None:
    names = [f"n{number:02d}" for number in range(20)]
    root = write_voc(tmp_path / "v", {name: xml(("ant", 1, 1, 9, 9)) for name in names}, {"train": "\n".join(names)})
    (root / "JPEGImages" / "n03.jpg").unlink()
    with pytest.raises(DatasetError, match="1 of 20 images are missing"):
        find_data(DataConfig(root=str(root)), None, "train")
    found = find_data(DataConfig(root=str(root), bad_files="skip"), None, "train")
    assert "n03 (no such file)" in found.warnings[0]
    kept = [found, find_data(DataConfig(root=str(root), bad_files="skip"), None, "val")]
    assert sum(len(read_annotations(paths.annotations_path).file_names) for paths in kept) == 19


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
@pytest.mark.parametrize("listed", [True, False])
def test_names_that_are_no_utf8(tmp_path: Path, listed: bool) -> None:
    names = {"a": b"caf\xe9", "b": b"th\xe9"}
    root = write_voc(tmp_path / "voc", dict.fromkeys(names, xml(("ant", 1, 1, 9, 9))), {})
    for plain, odd in names.items():
        for folder, ending in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
            (root / folder / f"{plain}{ending}").rename(root / folder / f"{os.fsdecode(odd)}{ending}")
    if listed:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\n".join(names.values()))
    settings = parse_settings({"name": "x", "data": {"root": str(root)}}, where="test")
    dataset = build_dataset(settings, split="val", training=False)
    assert dataset.image_path(0).is_file()
    assert dataset[0][0].ndim == 3


def test_a_cache_that_cannot_be_written_is_named(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"file/datasets: .*another folder with .* CODETR_CACHE") as caught:
        open_dataset(voc)
    assert caught.value.exit_code == 5
