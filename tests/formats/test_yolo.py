from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli import reading
from codetr_cli.annotations.file_names import NameRule
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.annotations.survey import Survey
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.errors import DatasetError
from codetr_cli.formats import yolo as yolo_format
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.resolve import find_data
from tests.data.fakes import snapshot, write_image
from tests.formats import yolo_exports as exports
from tests.formats.yolo_exports import XYWH

DESCRIPTION = "path: .\ntrain: images/train\nval: images/val  # kept apart\nnames:\n  0: disc\n  1: 'red ring'\n"


def write(root: Path, name: str, labels: str | None) -> None:
    write_image(root / f"{name}.jpg")
    if labels is not None:
        path = root / f"{name.replace('images', 'labels')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(labels)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    write(root, "images/train/a", "1 0.5 0.5 0.5 0.5\n\n0 0.0 0.5 0.5 0.2\n")
    write(root, "images/train/b", None)
    write(root, "images/val/c", "0 0.75 0.9 0.25 0.5 0.75 0.5\n")
    (root / "data.yaml").write_text(DESCRIPTION)
    return root


def read(root: Path, split: str) -> Annotations:
    return read_annotations(find_data(DataConfig(), str(root), split).annotations_path)  # type: ignore[arg-type]


def test_boxes_names_and_bare_images(yolo: Path) -> None:
    before = snapshot(yolo)
    train, val = read(yolo, "train"), read(yolo, "val")
    assert (train.class_names, train.category_ids) == (["disc", "red ring"], [0, 1])
    assert train.file_names == ["images/train/a.jpg", "images/train/b.jpg"]
    assert train.boxes_xywh.tolist() == [[10, 7.5, 20, 15], [0, 12, 10, 6]]  # the second is clipped
    assert train.labels.tolist() == [1, 0]
    assert val.boxes_xywh.tolist() == [[10, 15, 20, 12]]  # around the outline
    converted = open_dataset(yolo)
    assert converted is not None
    assert converted.notes == ["1 of 3 objects are outlines, whose bounding boxes are used"]
    findings = {finding.kind: finding.first for finding in converted.findings}
    assert list(findings) == ["image_without_labels", "box_beyond_edge"]
    assert findings["image_without_labels"] == ["images/train/b.jpg"]
    assert snapshot(yolo) == before
    path = find_data(DataConfig(), str(yolo), "val").annotations_path
    assert read_annotations(path, with_outlines=True).outlines is not None


@pytest.mark.parametrize("names", ["train/images", "../train/images", "train"])
def test_exports_with_a_folder_a_split(tmp_path: Path, names: str) -> None:
    write(tmp_path, "train/images/a", "0 0.5 0.5 0.5 0.5")
    write(tmp_path, "valid/images/b", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(
        f"train: {names}\nval: {names.replace('train', 'valid')}\nnc: 1\nnames: ['a']\n"
    )
    assert read(tmp_path, "train").file_names == ["train/images/a.jpg"]
    assert len(read(tmp_path, "val").labels) == 1


def test_lists_of_images(yolo: Path) -> None:
    (yolo / "train.txt").write_text("./images/train/a.jpg\n")
    (yolo / "data.yaml").write_text("train: train.txt\ntest: [images/val]\nnames: [disc, ring]\n")
    assert read(yolo, "train").file_names == ["images/train/a.jpg"]
    assert read(yolo, "val").file_names == ["images/val/c.jpg"]
    assert "the test images are used" in find_data(DataConfig(), str(yolo), "train").notes[0]
    (yolo / "train.txt").write_text("gone.jpg\n")
    with pytest.raises(DatasetError, match=r"train.txt lists 1 image that is missing: gone.jpg"):
        read(yolo, "train")


def test_folders_without_a_description(yolo: Path) -> None:
    (yolo / "data.yaml").unlink()
    with pytest.raises(DatasetError, match=r"without class names: write them into .*classes.txt"):
        read(yolo, "train")
    (yolo / "classes.txt").write_text("disc\nred ring\n")
    assert read(yolo, "train").class_names == ["disc", "red ring"]
    assert len(read(yolo, "val").labels) == 1


def label(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "labels/train/a.txt").write_text(text)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (label("2 0.5 0.5 0.1 0.1"), r"a.txt, line 1: class 2, but .*data.yaml names 2 classes, 0 to 1"),
        (label("\n0 200 100 20 30"), r"a.txt, line 2: '0 200 100 20 30' has values in pixels"),
        (label("0 0.5 0.5 -0.1 0.1"), "cannot be negative"),
        (label("0 0.5 0.5 0.1"), "is neither `class cx cy w h` nor an outline"),
        (label("disc 0.5 0.5 0.1 0.1"), "is neither"),
        (label("0 nan 0.5 0.1 0.1"), "line 1: '0 nan 0.5 0.1 0.1' is neither"),
        (label("0 0.5 0.5 0.1 inf"), "is neither"),
        (label("0 0.5 0.5 0.1 1e300"), "has values in pixels"),
        (label("1e300 0.5 0.5 0.1 0.1"), "line 1: class 1e[+]300, but"),
        (label("-1 0.5 0.5 0.1 0.1"), "line 1: class -1, but"),
        (label("0.5 0.5 0.5 0.1 0.1"), "line 1: class 0.5, but"),
        (label("0 " + "9" * 10**5 + " 0.5 0.1 0.1"), "has values in pixels|is neither"),
        (label("0" + " 0.5" * 10**6), "line 1 has 4,000,001 letters"),
        (label("0 0.5 0.5 0.1 0.1\n" * 10**5 + "x"), "has 100,001 lines, 100,000 are possible"),
        (label("0 0.5\0"), "a.txt is not UTF-8 text"),
        (lambda root: pipe(root / "labels/train/a.txt"), "cannot read .*a.txt: it is a named pipe"),
        (lambda root: pipe(root / "data.yaml"), "cannot read .*data.yaml: it is a named pipe"),
        (lambda root: (root / "images/train/a.jpg").write_bytes(b""), r"1 of 3 images cannot be used: .*a.jpg \(the f"),
        (
            lambda root: (root / "data.yaml").write_text(DESCRIPTION.replace("s/val", "s/vol")),
            "val: .*vol does not exist",
        ),
        (lambda root: (root / "data.yaml").write_text(DESCRIPTION.replace("1:", "3:")), "must be 0, 1, 2"),
        (
            lambda root: (root / "data.yaml").write_text("train: x\nnames: &n [a\n"),
            "data.yaml: it is not YAML",
        ),
        (
            lambda root: [path.unlink() for path in root.glob("labels/*/*.txt")],
            "none of the 3 images of .* has a label file; .*labels/train/a.txt",
        ),
    ],
)
def test_damage_is_named(yolo: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(yolo)
    with pytest.raises(DatasetError, match=words) as caught:
        read(yolo, "train")
    assert len(str(caught.value)) < 1000


def test_images_that_cannot_be_read_are_skipped_where_asked(tmp_path: Path) -> None:
    root = tmp_path / "many"
    for number in range(20):
        write_image(root / "images" / "train" / f"{number}.jpg")
        (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "train" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "classes.txt").write_text("ant\n")
    (root / "images" / "train" / "7.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match="1 of 20 images cannot be used"):
        find_data(DataConfig(root=str(root)), None, "train")
    config = DataConfig(root=str(root), bad_files="skip")
    found = [find_data(config, None, split) for split in ("train", "val")]
    assert sum(len(read_annotations(paths.annotations_path).file_names) for paths in found) == 19
    (warning,) = found[0].warnings
    assert "1 image cannot be used and is skipped" in warning
    assert "7.jpg (the file has zero bytes)" in warning
    for number in (8, 9):
        (root / "images" / "train" / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match="3 of 20 images cannot be used"):
        find_data(config, None, "train")


# ----------------------------------------------------------------------------------------------------------- exporters


@pytest.mark.parametrize(
    ("export", "evidence", "counts"),
    [
        (exports.ultralytics, "coco8.yaml", {"train": 2, "val": 2}),
        (exports.roboflow, "data.yaml", {"train": 2, "val": 1}),
        (exports.roboflow_darknet, "train/a_jpg.rf.1.txt", {"train": 1, "val": 1}),
        (exports.cvat_yolo_11, "obj.data", {"train": 2, "val": 1}),
        (exports.cvat_ultralytics, "data.yaml", {"train": 1, "val": 1}),
        (exports.label_studio, "labels/0ab3-photo.txt", {"train": 3, "val": 1}),
        (exports.labelimg, "DSC_0.txt", {"train": 3, "val": 1}),
        (exports.darknet, "cfg/obj.data", {"train": 2, "val": 1}),
    ],
)
def test_every_exporter(tmp_path: Path, export: Callable[[Path], Path], evidence: str, counts: dict[str, int]) -> None:
    root = export(tmp_path / "set")
    found = open_dataset(root)
    assert found is not None
    assert (found.title, found.evidence) == ("YOLO", evidence)
    tables = exports.tables(root)
    assert {split: len(table) for split, table in tables.items()} == counts
    assert all(boxes == XYWH for table in tables.values() for boxes in table.values())
    assert [finding.kind for finding in found.findings] == []
    assert exports.classes(root) in (["cat", "dog"], ["person", "bicycle"])


def test_a_test_set_that_is_named_but_absent_or_bare(tmp_path: Path) -> None:
    root = exports.roboflow(tmp_path / "set")
    found = open_dataset(root)
    assert found is not None
    assert found.notes == ["data.yaml names ../test/images for test, which does not exist"]
    write_image(root / "test/images/1.jpg")
    found = open_dataset(root)
    assert found is not None
    assert found.notes == ["the test image has no label file: it is not used"]
    assert list(found.splits) == ["train", "val"]
    assert [(finding.kind, finding.first) for finding in found.findings] == [("unlisted_file", ["test/images/1.jpg"])]


def test_the_same_conversion_wherever_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = exports.labelimg(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    relative = open_dataset(Path("set"))
    absolute = open_dataset(root)
    assert relative is not None
    assert absolute is not None
    assert relative.splits["train"] == absolute.splits["train"]
    assert relative.splits["train"].images_dir == root


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    root = exports.ultralytics(tmp_path / "set")
    write_image(root / "images/train/bare.jpg")
    write_image(root / "images/extra/x.jpg")
    write_image(root / "images/val/000000000036.png")
    exports.write(root, "labels/train/gone.txt", exports.box_row(*exports.BOXES[0]))
    exports.write(root, "labels/train/empty.txt", "")
    exports.write(root, "labels/train/notes.txt", "to do\n")
    exports.write(root, "requirements.txt", "numpy\n")
    for name in ("images/train/.ipynb_checkpoints/a.jpg", "images/train/._b.jpg", "labels/train/._b.txt"):
        exports.write(root, name, "debris")
    found = open_dataset(root)
    assert found is not None
    assert {finding.kind: (finding.count, finding.first) for finding in found.findings} == {
        "image_without_labels": (1, ["images/train/bare.jpg"]),
        "labels_without_image": (1, ["labels/train/gone.txt"]),
        "shared_labels": (1, ["images/val/000000000036.png and images/val/000000000036.jpg"]),
        "unlisted_file": (1, ["images/extra/x.jpg"]),
    }


def test_text_files_that_are_no_labels_are_no_evidence(tmp_path: Path) -> None:
    for name, text in (("a", "1 2\n"), ("b", "some words here and there\n"), ("c", "0 0.5 0.5 x 0.1\n")):
        write_image(tmp_path / "images" / f"{name}.jpg")
        exports.write(tmp_path, f"labels/{name}.txt", text)
    assert open_dataset(tmp_path) is None
    exports.write(tmp_path, "labels/b.txt", "3 .1 .2 .3 .4\n")
    with pytest.raises(DatasetError, match="without class names"):
        open_dataset(tmp_path)


def test_a_folder_of_data_sets_and_one_that_contains_one(tmp_path: Path) -> None:
    one = exports.ultralytics(tmp_path / "sets" / "one")
    found = open_dataset(tmp_path / "sets")
    assert found is not None
    assert found.folder == one
    exports.roboflow(tmp_path / "sets" / "two")
    with pytest.raises(DatasetError, match=r"contains several data sets: .*one .YOLO.*two .YOLO"):
        open_dataset(tmp_path / "sets")


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = exports.ultralytics(tmp_path / "set")
    opened: list[str] = []
    real = reading.open_descriptor

    def counted(path: str | Path) -> tuple[int, int]:
        opened.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(reading, "open_descriptor", counted)
    survey = Survey.of(root)
    yolo_format.read(survey, NameRule.of(root), ReadOptions())
    labels = [name for name in opened if name.endswith(".txt")]
    assert sorted(labels) == sorted(set(labels))
    assert len(labels) == 4
    images = [name for name in opened if name.endswith(".jpg")]
    assert len(images) <= 4


def test_another_description_is_noted(tmp_path: Path) -> None:
    root = exports.roboflow(tmp_path / "set")
    exports.write(root, "pets.yaml", "train: train/images\nnames: [a, b]\n")
    found = open_dataset(root)
    assert found is not None
    assert found.evidence == "data.yaml"
    assert found.notes[0] == "data.yaml describes the data set; pets.yaml, which differ, are not used"


@pytest.mark.parametrize("val", ["", "val:\n", "val: null\n", "val: []\n"])
def test_without_validation_images_some_are_reserved(tmp_path: Path, val: str) -> None:
    root = exports.label_studio(tmp_path / "set")
    exports.write(root, "data.yaml", f"names: [cat, dog]\ntrain: images\n{val}test:\n")
    assert {split: len(table) for split, table in exports.tables(root).items()} == {"train": 3, "val": 1}


def test_the_description_that_the_user_names(tmp_path: Path) -> None:
    root = exports.ultralytics(tmp_path / "set")
    text = (root / "coco8.yaml").read_text()
    (root / "other.yaml").write_text(text.replace("bicycle", "bike"))
    with pytest.raises(DatasetError, match=r"several descriptions .*: coco8.yaml, other.yaml"):
        open_dataset(root)
    for name, label in (("coco8.yaml", "bicycle"), ("other.yaml", "bike")):
        assert exports.classes(root / name) == ["person", label]
        found = open_dataset(root / name)
        assert found is not None
        assert found.evidence == name
